//! Calls about virtual CPUs that cannot be answered, and what a virtual CPU's page is to root.

use guest_proto::Status;
use guest_proto::hypercall::{Counters, ExitKind, Hypercall, Property};
use guest_proto::limits::MAX_VCPUS;

use super::{FOREIGN_PAGES, NO_PARTITIONS};
use crate::guest::code::code;
use crate::guest::{Guest, Plan};
use crate::hv;
use crate::memory::Pages;
use crate::report::{Outcome, cases, ensure, equal};

cases![
    a_virtual_cpu_needs_metadata,
    there_are_as_many_as_the_limit_says,
    its_page_must_be_roots,
    its_page_is_shared_until_the_end,
    what_does_not_exist_is_refused,
    a_guest_without_memory_runs_into_an_intercept,
    properties_are_fixed_once_it_runs,
    exits_are_counted_by_kind,
    everything_comes_back,
];

fn create(id: u64, vcpu: u64, page: Pages) -> hv::Answer {
    hv::call(Hypercall::VcpuCreate, [id, vcpu, page.pfn()])
}

fn a_virtual_cpu_needs_metadata() -> Outcome {
    let (id, page) = (hv::create()?, Pages::take(1));
    let needed = create(id, 0, page).is(Status::NeedPages)?;
    ensure("a few pages are needed", (1..=16).contains(&needed))?;
    hv::deposit(id, needed - 1)?;
    equal(
        "one is lacking",
        create(id, 0, page).is(Status::NeedPages)?,
        1,
    )?;
    hv::deposit(id, 1)?;
    equal("value", create(id, 0, page).ok()?, 0)?;
    create(id, 0, Pages::take(1)).is(Status::Exists)?;
    equal("frames given back", hv::destroy(id)?, needed + 1)
}

fn there_are_as_many_as_the_limit_says() -> Outcome {
    let id = hv::create()?;
    hv::deposit(id, 512)?;
    let pages = Pages::take(MAX_VCPUS);
    for vcpu in (0..MAX_VCPUS).rev() {
        create(id, vcpu, pages.page(vcpu)).ok()?;
    }
    for vcpu in [MAX_VCPUS, 255, 256, 1 << 32, u64::MAX] {
        create(id, vcpu, Pages::scratch()).is(Status::OutOfRange)?;
    }
    hv::destroy(id)?;
    Ok(())
}

fn its_page_must_be_roots() -> Outcome {
    let id = hv::create()?;
    let pool = hv::deposit(id, 16)?;
    for (pfn, status) in FOREIGN_PAGES {
        hv::call(Hypercall::VcpuCreate, [id, 0, pfn]).is(status)?;
    }
    create(id, 0, pool.page(3)).is(Status::NotOwner)?;
    let page = Pages::take(1);
    create(id, 0, page).ok()?;
    create(id, 1, page).is(Status::NotOwner)?;
    hv::destroy(id)?;
    Ok(())
}

fn its_page_is_shared_until_the_end() -> Outcome {
    let guest = Guest::new(code!["hlt"])?;
    let page = guest.page_of(0);
    let other = hv::create()?;
    hv::call(Hypercall::Deposit, [other, page.pfn(), 1]).is(Status::NotOwner)?;
    hv::call(Hypercall::MachineInfo, [page.pfn()]).is(Status::NotOwner)?;
    let given = crate::guest::map(other, 0, page);
    ensure("it is no guest's RAM", given.is_err())?;
    guest.end()?;
    hv::call(Hypercall::Deposit, [other, page.pfn(), 1]).ok()?;
    hv::destroy(other)?;
    Ok(())
}

fn what_does_not_exist_is_refused() -> Outcome {
    let calls = |id, vcpu| {
        [
            hv::call(Hypercall::VcpuRun, [id, vcpu]),
            hv::call(Hypercall::VcpuGetState, [id, vcpu]),
            hv::call(Hypercall::VcpuSetState, [id, vcpu]),
            hv::call(Hypercall::VcpuApic, [id, vcpu, 0x20, 0]),
            hv::call(
                Hypercall::VcpuSetCpuid,
                [id, vcpu, Pages::scratch().pfn(), 0],
            ),
        ]
    };
    for id in NO_PARTITIONS {
        for answer in calls(id, 0) {
            answer.is(Status::NoSuchPartition)?;
        }
        create(id, 0, Pages::scratch()).is(Status::NoSuchPartition)?;
    }
    let guest = Guest::new(code!["hlt"])?;
    for vcpu in [1, 63, 64, 1 << 32, u64::MAX] {
        for answer in calls(guest.id, vcpu) {
            answer.is(Status::NoSuchVcpu)?;
        }
    }
    guest.end()
}

fn a_guest_without_memory_runs_into_an_intercept() -> Outcome {
    use guest_proto::vcpu_page::{Intercept, InterceptKind, RunExit};
    let (id, page) = (hv::create()?, Pages::take(1));
    page.fill(0);
    hv::deposit(id, 16)?;
    create(id, 0, page).ok()?;
    let value = hv::call(Hypercall::VcpuRun, [id, 0]).ok()?;
    equal("exit", value, RunExit::Intercept.raw().into())?;
    let intercept: Intercept = page.shared().intercept.load();
    equal("kind", intercept.kind, InterceptKind::Memory.raw())?;
    // The first instruction after reset.
    equal("address", intercept.address, 0xffff_fff0)?;
    hv::destroy(id)?;
    Ok(())
}

fn properties_are_fixed_once_it_runs() -> Outcome {
    let guest = Guest::new(code!["hlt"])?;
    let set = || {
        hv::call(
            Hypercall::PartitionSet,
            [guest.id, Property::TscKhz.raw(), 1_000_000],
        )
    };
    set().ok()?;
    guest.halt(0)?;
    set().is(Status::InvalidState)?;
    guest.end()
}

fn exits_are_counted_by_kind() -> Outcome {
    let guest = Guest::new(code![
        "cpuid",
        "cpuid",
        "cpuid",
        "out 0x80, al",
        "out 0x80, al",
        "vmmcall",
        "hlt",
    ])?;
    guest.port()?;
    guest.port()?;
    guest.halt(0)?;
    let page = Pages::scratch();
    hv::call(Hypercall::CountersRead, [guest.id, 0, page.pfn()]).ok()?;
    let counters: Counters = page.load(0);
    let count = |kind: ExitKind| counters.exits[kind.raw() as usize];
    let got = [
        ExitKind::Cpuid,
        ExitKind::Port,
        ExitKind::Hypercall,
        ExitKind::Halt,
    ]
    .map(count);
    equal("CPUID, ports, hypercalls, halts", got, [3, 2, 1, 1])?;
    ensure("runs", counters.runs >= 3)?;
    ensure("time in the guest", counters.guest_tsc > 0)?;
    guest.end()
}

fn everything_comes_back() -> Outcome {
    let before = hv::machine_info()?;
    for _ in 0..50 {
        let guest = Guest::build(&Plan {
            vcpus: 2,
            ..Plan::new(code!["hlt"])
        })?;
        guest.halt(0)?;
        guest.end()?;
    }
    let after = hv::machine_info()?;
    let kept = |info: &guest_proto::hypercall::MachineInfo| {
        (info.partitions, info.deposited_frames, info.guest_frames)
    };
    equal("partitions, frames", kept(&after), kept(&before))
}
