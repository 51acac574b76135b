//! Calls about the machine, and what holds for every call.

use guest_proto::cpuid::{Features, SIGNATURE, leaf};
use guest_proto::hypercall::{CALLS, Counters, ExitKind, Hypercall};
use guest_proto::{ABI_VERSION, Status};

use super::{FOREIGN_PAGES, NO_PARTITIONS};
use crate::memory::Pages;
use crate::report::{Outcome, cases, ensure, equal};
use crate::{cpu, hv, registers, second};

cases![
    abi_version_is_the_crates,
    unknown_numbers_are_refused,
    arguments_without_a_name_must_be_zero,
    no_other_register_changes,
    cpuid_shows_the_microvisor_and_hides_svm,
    machine_info_describes_the_machine,
    a_page_to_fill_must_be_roots,
    root_exits_are_counted,
    counters_of_what_is_not_there_are_refused,
    verify_refuses_other_positions,
];

fn abi_version_is_the_crates() -> Outcome {
    let version = hv::call(Hypercall::AbiVersion, []).ok()?;
    equal("version", version, ABI_VERSION.into())
}

fn unknown_numbers_are_refused() -> Outcome {
    let high = 1 << 32 | Hypercall::AbiVersion.raw();
    for number in [0, 7, 0x100, 0x107, 0x204, 0x307, 0x400, high, u64::MAX] {
        hv::raw(number, [0; 5]).is(Status::UnknownCall)?;
    }
    Ok(())
}

fn arguments_without_a_name_must_be_zero() -> Outcome {
    for call in CALLS {
        for reserved in call.args.len()..5 {
            let mut args = [0; 5];
            args[reserved] = 1;
            let answer = hv::raw(call.call.raw(), args);
            if answer.status() != Some(Status::NotSupported) {
                answer.is(Status::InvalidArgument)?;
            }
        }
    }
    Ok(())
}

fn no_other_register_changes() -> Outcome {
    const RAX: usize = 0;
    const RDX: usize = 2;
    let mut before: registers::Registers =
        core::array::from_fn(|n| 0x1111_1111_1111_1111 * n as u64);
    // An unknown number has no arguments to check.
    before[RAX] = 0xffff;
    let mut after = before;
    registers::call(&mut after);
    equal("status", after[RAX] as i64, Status::UnknownCall.raw())?;
    equal("value", after[RDX], 0)?;
    after[RAX] = before[RAX];
    after[RDX] = before[RDX];
    equal("registers", after, before)
}

fn cpuid_shows_the_microvisor_and_hides_svm() -> Outcome {
    let base = cpu::cpuid(leaf::ROOT_BASE, 0);
    let words = [base.ebx, base.ecx, base.edx].map(u32::to_le_bytes);
    equal("signature", words.as_flattened(), &SIGNATURE[..])?;
    ensure("the next leaf is there", base.eax > leaf::ROOT_BASE)?;
    let next = cpu::cpuid(leaf::ROOT_BASE + 1, 0);
    equal(
        "version, partition",
        (next.eax, next.ecx, next.edx),
        (ABI_VERSION, 0, 0),
    )?;
    ensure(
        "nested paging",
        next.ebx & Features::NESTED_PAGING.bits() != 0,
    )?;
    equal("SVM's bit", cpu::cpuid(0x8000_0001, 0).ecx & 1 << 2, 0)?;
    let svm = cpu::cpuid(0x8000_000a, 0);
    equal("SVM's leaf", [svm.eax, svm.ebx, svm.ecx, svm.edx], [0; 4])
}

fn machine_info_describes_the_machine() -> Outcome {
    let info = hv::machine_info()?;
    equal("version", info.abi_version, ABI_VERSION)?;
    equal(
        "features",
        info.features,
        cpu::cpuid(leaf::ROOT_BASE + 1, 0).ebx,
    )?;
    equal("CPUs", info.cpus, if second::is_up() { 2 } else { 1 })?;
    equal("partitions", info.partitions, 1)?;
    ensure("there is RAM", info.frames > 128 << 8)?;
    ensure(
        "the microvisor took some",
        (1..info.frames / 16).contains(&info.reserved_frames),
    )?;
    equal(
        "given away",
        (info.deposited_frames, info.guest_frames),
        (0, 0),
    )
}

fn a_page_to_fill_must_be_roots() -> Outcome {
    for (pfn, status) in FOREIGN_PAGES {
        hv::call(Hypercall::MachineInfo, [pfn]).is(status)?;
        hv::call(Hypercall::CountersRead, [0, 0, pfn]).is(status)?;
        hv::call(Hypercall::Verify, [pfn, 0]).is(status)?;
    }
    let partition = hv::create()?;
    let deposited = hv::deposit(partition, 1)?;
    hv::call(Hypercall::MachineInfo, [deposited.pfn()]).is(Status::NotOwner)?;
    hv::destroy(partition)?;
    Ok(())
}

/// Exits of root's on this CPU.
pub(super) fn root_exits(cpu: u64, kind: ExitKind) -> Outcome<u64> {
    Ok(counters(0, cpu)?.exits[kind.raw() as usize])
}

fn counters(partition: u64, vcpu: u64) -> Outcome<Counters> {
    let page = Pages::scratch();
    hv::call(Hypercall::CountersRead, [partition, vcpu, page.pfn()]).ok()?;
    Ok(page.load(0))
}

fn root_exits_are_counted() -> Outcome {
    let before = counters(0, 0)?;
    for _ in 0..10 {
        cpu::cpuid(leaf::ROOT_BASE, 0);
    }
    hv::call(Hypercall::AbiVersion, []).ok()?;
    let now = cpu::tsc();
    let after = counters(0, 0)?;
    let grown = |kind: ExitKind| {
        let index = kind.raw() as usize;
        after.exits[index] - before.exits[index]
    };
    equal("CPUID", grown(ExitKind::Cpuid), 10)?;
    equal("hypercalls", grown(ExitKind::Hypercall), 2)?;
    equal("runs", after.runs - before.runs, 2)?;
    let total: u64 = after
        .exits
        .iter()
        .zip(before.exits)
        .map(|(a, b)| a - b)
        .sum();
    equal("all kinds", total, 12)?;
    ensure(
        "the reading has its time",
        after.now_tsc >= now && after.now_tsc <= cpu::tsc(),
    )
}

fn counters_of_what_is_not_there_are_refused() -> Outcome {
    let page = Pages::scratch().pfn();
    for partition in NO_PARTITIONS {
        let answer = hv::call(Hypercall::CountersRead, [partition, 0, page]);
        // Root has counters.
        if partition != 0 {
            answer.is(Status::NoSuchPartition)?;
        }
    }
    for cpu in [2, 63, 64, 1 << 32, u64::MAX] {
        hv::call(Hypercall::CountersRead, [0, cpu, page]).is(Status::NoSuchVcpu)?;
    }
    let partition = hv::create()?;
    for vcpu in [0, 63, 64, u64::MAX] {
        let answer = hv::call(Hypercall::CountersRead, [partition, vcpu, page]);
        answer.is(Status::NoSuchVcpu)?;
    }
    hv::destroy(partition)?;
    Ok(())
}

fn verify_refuses_other_positions() -> Outcome {
    let page = Pages::scratch().pfn();
    for position in [258 << 36, 1 << 63, u64::MAX] {
        hv::call(Hypercall::Verify, [page, position]).is(Status::OutOfRange)?;
    }
    // The last page of the last partition, and the last frame: both are positions in a pass.
    for position in [(256 << 36) - 1, (258 << 36) - 1] {
        hv::call(Hypercall::Verify, [page, position]).ok()?;
    }
    Ok(())
}
