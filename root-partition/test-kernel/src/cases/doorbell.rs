//! Doorbells as they are registered; `guest_posted` rings them.

use guest_proto::Status;
use guest_proto::hypercall::Hypercall;
use guest_proto::limits::MAX_DOORBELLS;

use crate::hv;
use crate::report::{Outcome, cases};

cases![
    ranges_have_limits,
    ranges_and_tags_are_unique,
    there_are_as_many_as_the_limit_says,
    reserved_bits_are_refused,
];

fn add(partition: u64, port: u64, length: u64, tag: u64) -> hv::Answer {
    let args = [partition, port, length, tag, 0];
    hv::call(Hypercall::DoorbellAdd, args)
}

fn remove(partition: u64, tag: u64) -> hv::Answer {
    hv::call(Hypercall::DoorbellRemove, [partition, tag])
}

fn ranges_have_limits() -> Outcome {
    let id = hv::create()?;
    let wrong = [
        (0x100, 0, 1),
        (0x100, 4097, 1),
        (0xffff, 2, 1),
        (1 << 32, 1, 1),
        (u64::MAX, 2, 1),
        (0x100, 1, 0xffff),
        (0x100, 1, 0x1_0000),
    ];
    for (port, length, tag) in wrong {
        add(id, port, length, tag).is(Status::OutOfRange)?;
    }
    add(id, 0xffff, 1, 0).ok()?;
    add(id, 0xe000, 4096, 0xfffe).ok()?;
    remove(id, 0x1_0000).is(Status::OutOfRange)?;
    hv::destroy(id)?;
    Ok(())
}

fn ranges_and_tags_are_unique() -> Outcome {
    let id = hv::create()?;
    add(id, 0x3f8, 8, 1).ok()?;
    add(id, 0x3ff, 1, 2).is(Status::Overlap)?;
    add(id, 0x3f0, 9, 2).is(Status::Overlap)?;
    add(id, 0x2f8, 8, 1).is(Status::Overlap)?;
    add(id, 0x400, 8, 2).ok()?;
    // Another partition's are its own.
    let other = hv::create()?;
    add(other, 0x3f8, 8, 1).ok()?;
    remove(other, 2).is(Status::OutOfRange)?;
    hv::destroy(other)?;
    remove(id, 1).ok()?;
    remove(id, 1).is(Status::OutOfRange)?;
    add(id, 0x3ff, 1, 1).ok()?;
    hv::destroy(id)?;
    // The next partition of this id begins without any.
    let again = hv::create()?;
    remove(again, 1).is(Status::OutOfRange)?;
    hv::destroy(again)?;
    Ok(())
}

fn there_are_as_many_as_the_limit_says() -> Outcome {
    let id = hv::create()?;
    for tag in 0..MAX_DOORBELLS {
        add(id, 0x1000 + 4 * tag, 4, tag).ok()?;
    }
    add(id, 0x8000, 1, 900).is(Status::Full)?;
    remove(id, 17).ok()?;
    add(id, 0x8000, 1, 900).ok()?;
    hv::destroy(id)?;
    Ok(())
}

fn reserved_bits_are_refused() -> Outcome {
    let id = hv::create()?;
    for flags in [1 << 1, 1 << 8, 1 << 63, u64::MAX] {
        let answer = hv::call(Hypercall::DoorbellAdd, [id, 0x100, 1, 1, flags]);
        answer.is(Status::InvalidArgument)?;
    }
    hv::destroy(id)?;
    Ok(())
}
