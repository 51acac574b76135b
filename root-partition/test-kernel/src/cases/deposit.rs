//! Metadata deposits: frames that leave root, and come back.

use guest_proto::Status;
use guest_proto::hypercall::Hypercall;
use guest_proto::limits::PAGE_SIZE;

use super::FOREIGN_PAGES;
use crate::hv;
use crate::memory::Pages;
use crate::probe::{self, GENERAL_PROTECTION};
use crate::report::{Outcome, cases, equal};

cases![
    deposited_frames_are_absent,
    they_come_back_scrubbed,
    a_frame_is_given_once,
    all_or_none,
    foreign_frames_are_refused,
    counts_have_a_range,
    the_machine_counts_them,
];

fn deposit(partition: u64, pages: Pages) -> hv::Answer {
    hv::call(Hypercall::Deposit, [partition, pages.pfn(), pages.count()])
}

fn absent(pages: Pages) -> Outcome {
    for n in 0..pages.count() {
        let start = pages.page(n).address();
        for address in [start, start + PAGE_SIZE - 8] {
            equal("a read", probe::read(address), Err(GENERAL_PROTECTION))?;
            equal("a write", probe::write(address, 1), Err(GENERAL_PROTECTION))?;
        }
    }
    Ok(())
}

fn deposited_frames_are_absent() -> Outcome {
    let all = Pages::take(5);
    let partition = hv::create()?;
    hv::call(Hypercall::Deposit, [partition, all.page(1).pfn(), 3]).ok()?;
    hv::pass_epoch_everywhere()?;
    for n in 1..4 {
        absent(all.page(n))?;
    }
    for neighbour in [all.page(0), all.page(4)] {
        equal("a neighbour stays", neighbour.holds(Pages::PATTERN), true)?;
    }
    equal("frames given back", hv::destroy(partition)?, 3)
}

fn they_come_back_scrubbed() -> Outcome {
    let pages = Pages::take(512);
    let partition = hv::create()?;
    deposit(partition, pages).ok()?;
    hv::pass_epoch_everywhere()?;
    absent(pages.page(511))?;
    equal("frames given back", hv::destroy(partition)?, 512)?;
    equal("all zero", pages.holds(0), true)?;
    // And they are root's in full.
    pages.fill(Pages::PATTERN);
    equal("writable", pages.holds(Pages::PATTERN), true)?;
    let partition = hv::create()?;
    deposit(partition, pages.page(7)).ok()?;
    equal("frames given back", hv::destroy(partition)?, 1)
}

fn a_frame_is_given_once() -> Outcome {
    let pages = Pages::take(2);
    let (first, second) = (hv::create()?, hv::create()?);
    deposit(first, pages).ok()?;
    deposit(first, pages).is(Status::NotOwner)?;
    deposit(second, pages.page(1)).is(Status::NotOwner)?;
    hv::destroy(second)?;
    equal("frames given back", hv::destroy(first)?, 2)
}

fn all_or_none() -> Outcome {
    let pages = Pages::take(3);
    let partition = hv::create()?;
    deposit(partition, pages.page(1)).ok()?;
    deposit(partition, pages).is(Status::NotOwner)?;
    equal("deposited", hv::machine_info()?.deposited_frames, 1)?;
    for stays in [pages.page(0), pages.page(2)] {
        equal("still root's", stays.holds(Pages::PATTERN), true)?;
    }
    equal("frames given back", hv::destroy(partition)?, 1)
}

fn foreign_frames_are_refused() -> Outcome {
    let partition = hv::create()?;
    for (pfn, status) in FOREIGN_PAGES {
        hv::call(Hypercall::Deposit, [partition, pfn, 1]).is(status)?;
    }
    // A run that leaves what there can be.
    hv::call(Hypercall::Deposit, [partition, u64::MAX - 3, 8]).is(Status::BadAddress)?;
    let frames = hv::machine_info()?.frames;
    equal("frames given back", hv::destroy(partition)?, 0)?;
    equal("frames of the machine", hv::machine_info()?.frames, frames)
}

fn counts_have_a_range() -> Outcome {
    let page = Pages::take(1).pfn();
    let partition = hv::create()?;
    for count in [0, 513, 1 << 32, u64::MAX] {
        hv::call(Hypercall::Deposit, [partition, page, count]).is(Status::OutOfRange)?;
    }
    hv::destroy(partition)?;
    Ok(())
}

fn the_machine_counts_them() -> Outcome {
    let (first, second) = (hv::create()?, hv::create()?);
    hv::deposit(first, 3)?;
    hv::deposit(second, 4)?;
    equal("deposited", hv::machine_info()?.deposited_frames, 7)?;
    hv::destroy(first)?;
    equal("deposited", hv::machine_info()?.deposited_frames, 4)?;
    hv::destroy(second)?;
    Ok(())
}
