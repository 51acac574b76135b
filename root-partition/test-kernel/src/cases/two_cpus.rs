//! What needs a second CPU.

use guest_proto::Status;
use guest_proto::hypercall::{ExitKind, Hypercall, MapRange};

use super::machine::root_exits;
use crate::hv::{self, Answer};
use crate::memory::Pages;
use crate::probe::{self, GENERAL_PROTECTION};
use crate::report::{Outcome, cases, ensure, equal};
use crate::{cpu, second};

cases![
    an_epoch_waits_for_both,
    deposited_frames_are_absent_on_both,
    a_frame_goes_to_one_of_two_that_race,
    partitions_come_and_go_on_both,
    counters_are_each_cpus_own,
];

fn an_epoch_waits_for_both() -> Outcome {
    let partition = hv::create()?;
    let pool = Pages::take(8);
    let epoch = hv::call(Hypercall::Deposit, [partition, pool.pfn(), 8]).ok()?;
    let passed = hv::call(Hypercall::EpochPass, []).ok()?;
    ensure("the epoch is not over", passed < epoch)?;
    let (list, ram) = (Pages::take(1), Pages::take(1));
    list.store(
        0,
        &MapRange {
            gpa_pfn: 0,
            pfn: ram.pfn(),
            pages: 1,
            flags: 0,
        },
    );
    let map = || hv::call(Hypercall::MemoryMap, [partition, list.pfn(), 0, 1]);
    map().is(Status::TryAgain)?;
    let passed = second::call(Hypercall::EpochPass, [])?.ok()?;
    ensure("the second CPU ends it", passed >= epoch)?;
    ensure("machine_info says so", hv::machine_info()?.epoch >= epoch)?;
    equal("pages mapped", map().ok()?, 1)?;
    hv::destroy(partition)?;
    Ok(())
}

fn deposited_frames_are_absent_on_both() -> Outcome {
    fn read(args: [u64; 5]) -> Answer {
        let (status, value) = match probe::read(args[0]) {
            Ok(value) => (0, value),
            Err(vector) => (1, vector),
        };
        Answer { status, value }
    }
    fn on_second(page: Pages) -> Outcome<Answer> {
        second::begin(read, [page.address(), 0, 0, 0, 0])?;
        second::finish()
    }
    let page = Pages::take(1);
    let before = on_second(page)?;
    equal(
        "before",
        before,
        Answer {
            status: 0,
            value: Pages::PATTERN,
        },
    )?;
    let partition = hv::create()?;
    hv::call(Hypercall::Deposit, [partition, page.pfn(), 1]).ok()?;
    hv::pass_epoch_everywhere()?;
    let while_away = on_second(page)?;
    equal(
        "fault",
        while_away,
        Answer {
            status: 1,
            value: GENERAL_PROTECTION,
        },
    )?;
    hv::destroy(partition)?;
    equal(
        "after",
        on_second(page)?,
        Answer {
            status: 0,
            value: 0,
        },
    )
}

fn a_frame_goes_to_one_of_two_that_race() -> Outcome {
    fn deposits(args: [u64; 5]) -> Answer {
        let [partition, first, count, ..] = args;
        let value = (first..first + count)
            .filter(|pfn| {
                hv::call(Hypercall::Deposit, [partition, *pfn, 1]).status() == Some(Status::Ok)
            })
            .count() as u64;
        Answer { status: 0, value }
    }
    const COUNT: u64 = 200;
    let pages = Pages::take(COUNT);
    let (first, other) = (hv::create()?, hv::create()?);
    second::begin(deposits, [other, pages.pfn(), COUNT, 0, 0])?;
    let here = deposits([first, pages.pfn(), COUNT, 0, 0]).value;
    let there = second::finish()?.value;
    equal("deposited", here + there, COUNT)?;
    hv::pass_epoch_everywhere()?;
    let back = (hv::destroy(first)?, hv::destroy(other)?);
    equal("given back", back, (here, there))?;
    ensure("all zero", pages.holds(0))
}

fn partitions_come_and_go_on_both() -> Outcome {
    fn rounds(args: [u64; 5]) -> Answer {
        let mut status = 0;
        for _ in 0..100 {
            let done = hv::create().and_then(|id| {
                let set = hv::call(Hypercall::Deposit, [id, args[0], 4]).ok();
                let back = hv::destroy(id)?;
                set.and(equal("given back", back, 4))
            });
            status |= u64::from(done.is_err());
        }
        Answer { status, value: 0 }
    }
    let (here, there) = (Pages::take(4), Pages::take(4));
    second::begin(rounds, [there.pfn(), 0, 0, 0, 0])?;
    let own = rounds([here.pfn(), 0, 0, 0, 0]);
    let other = second::finish()?;
    equal("failures", (own.status, other.status), (0, 0))
}

fn counters_are_each_cpus_own() -> Outcome {
    fn cpuids(_: [u64; 5]) -> Answer {
        for _ in 0..5 {
            cpu::cpuid(0, 0);
        }
        Answer {
            status: 0,
            value: 0,
        }
    }
    let count = |cpu| root_exits(cpu, ExitKind::Cpuid);
    let before = (count(0)?, count(1)?);
    second::begin(cpuids, [0; 5])?;
    second::finish()?;
    equal(
        "CPUID exits",
        (count(0)? - before.0, count(1)? - before.1),
        (0, 5),
    )
}
