//! The life of partitions, and their properties.

use guest_proto::Status;
use guest_proto::hypercall::{Hypercall, PartitionFlags, Property};
use guest_proto::limits::MAX_PARTITIONS;

use super::NO_PARTITIONS;
use crate::guest;
use crate::hv;
use crate::memory::Pages;
use crate::report::{Outcome, cases, ensure, equal};

cases![
    one_is_made_and_ended,
    only_known_flags_are_taken,
    there_are_as_many_as_the_limit_says,
    what_does_not_exist_is_refused,
    properties_have_ranges,
    one_that_ends_can_only_end,
];

fn one_is_made_and_ended() -> Outcome {
    let first = hv::create()?;
    let second = hv::create()?;
    equal("the first ids", (first, second), (1, 2))?;
    equal("partitions", hv::machine_info()?.partitions, 3)?;
    equal("frames of an empty one", hv::destroy(first)?, 0)?;
    hv::call(Hypercall::PartitionDestroy, [first]).is(Status::NoSuchPartition)?;
    equal("the id is free again", hv::create()?, first)?;
    hv::destroy(first)?;
    hv::destroy(second)?;
    Ok(())
}

fn only_known_flags_are_taken() -> Outcome {
    for flags in [2, 1 << 32, u64::MAX] {
        hv::call(Hypercall::PartitionCreate, [flags]).is(Status::InvalidArgument)?;
    }
    let private = hv::call(Hypercall::PartitionCreate, [PartitionFlags::PRIVATE.bits()]);
    private.is(Status::NotSupported)?;
    Ok(())
}

fn there_are_as_many_as_the_limit_says() -> Outcome {
    for id in 1..MAX_PARTITIONS {
        equal("id", hv::create()?, id)?;
    }
    hv::call(Hypercall::PartitionCreate, [0]).is(Status::Full)?;
    equal(
        "partitions",
        u64::from(hv::machine_info()?.partitions),
        MAX_PARTITIONS,
    )?;
    hv::destroy(100)?;
    equal("the free id", hv::create()?, 100)?;
    for id in 1..MAX_PARTITIONS {
        hv::destroy(id)?;
    }
    Ok(())
}

fn what_does_not_exist_is_refused() -> Outcome {
    let tsc = Property::TscKhz.raw();
    for id in NO_PARTITIONS {
        let calls = [
            hv::call(Hypercall::PartitionDestroy, [id]),
            hv::call(Hypercall::PartitionSet, [id, tsc, 1_000_000]),
            hv::call(Hypercall::DoorbellAdd, [id, 0x3f8, 1, 0, 0]),
            hv::call(Hypercall::DoorbellRemove, [id, 0]),
            hv::call(Hypercall::Deposit, [id, 0x8000, 1]),
            hv::call(Hypercall::MemoryMap, [id, 0x8000, 0, 1]),
            hv::call(Hypercall::MemoryUnmap, [id, 0, 1]),
        ];
        for answer in calls {
            answer.is(Status::NoSuchPartition)?;
        }
    }
    Ok(())
}

fn properties_have_ranges() -> Outcome {
    let id = hv::create()?;
    let set = |property: u64, value| hv::call(Hypercall::PartitionSet, [id, property, value]);
    let ranges = [
        (Property::TscKhz, 100_000, 100_000_000),
        (Property::X2Apic, 0, 1),
    ];
    for (property, least, most) in ranges {
        let property = property.raw();
        set(property, least).ok()?;
        set(property, most).ok()?;
        if let Some(less) = u64::checked_sub(least, 1) {
            set(property, less).is(Status::OutOfRange)?;
        }
        if let Some(more) = u64::checked_add(most, 1) {
            set(property, more).is(Status::OutOfRange)?;
            set(property, u64::MAX).is(Status::OutOfRange)?;
        }
    }
    for unknown in [0, 3, 5, 1 << 32 | 1, u64::MAX] {
        set(unknown, 1).is(Status::InvalidArgument)?;
    }
    hv::destroy(id)?;
    Ok(())
}

fn one_that_ends_can_only_end() -> Outcome {
    let (id, page) = (hv::create()?, Pages::take(1));
    hv::deposit(id, 64)?;
    for n in 0..3 {
        guest::map(id, 4000 * n, Pages::take(4000))?;
    }
    hv::call(Hypercall::VcpuCreate, [id, 0, page.pfn()]).ok()?;
    let given = hv::call(Hypercall::PartitionDestroy, [id]).is(Status::TryAgain)?;
    ensure("the call did something", given > 0)?;
    let changes = [
        hv::call(Hypercall::PartitionSet, [id, Property::X2Apic.raw(), 1]),
        hv::call(Hypercall::Deposit, [id, page.pfn(), 1]),
        hv::call(Hypercall::MemoryMap, [id, page.pfn(), 0, 1]),
        hv::call(Hypercall::MemoryUnmap, [id, 0, 1]),
        hv::call(Hypercall::VcpuCreate, [id, 1, page.pfn()]),
    ];
    for answer in changes {
        answer.is(Status::InvalidState)?;
    }
    let uses = [
        hv::call(Hypercall::DoorbellAdd, [id, 0x3f8, 1, 0, 0]),
        hv::call(Hypercall::VcpuRun, [id, 0]),
        hv::call(Hypercall::VcpuGetState, [id, 0]),
        hv::call(Hypercall::CountersRead, [id, 0, page.pfn()]),
    ];
    for answer in uses {
        // Its virtual CPUs go first.
        if answer.status() != Some(Status::NoSuchVcpu) {
            answer.is(Status::NoSuchPartition)?;
        }
    }
    // The id is not given out while it ends.
    let other = hv::create()?;
    ensure("another id", other != id)?;
    hv::destroy(other)?;
    let rest = hv::destroy(id)?;
    equal("frames given back", given + rest, 64 + 3 * 4000 + 1)
}
