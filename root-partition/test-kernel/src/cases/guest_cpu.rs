//! The CPU that a guest sees: CPUID and model-specific registers.

use guest_proto::Status;
use guest_proto::cpuid::{CpuidEntry, SIGNATURE, leaf};
use guest_proto::hypercall::Hypercall;
use guest_proto::limits::MAX_CPUID_ENTRIES;
use guest_proto::vcpu_page::InterceptKind;

use super::FOREIGN_PAGES;
use crate::hv;
use crate::memory::Pages;

use crate::guest::code::code;
use crate::guest::{Guest, layout};
use crate::probe::{GENERAL_PROTECTION, INVALID_OPCODE};
use crate::report::{Outcome, cases, ensure, equal};

cases![
    cpuid_is_what_root_sets,
    a_bad_cpuid_table_changes_nothing,
    a_full_cpuid_table_answers,
    cpuid_hides_svm_and_shows_a_hypervisor,
    unknown_registers_fault,
    svm_is_not_there,
    efer_and_pat_keep_what_they_are_given,
    the_worker_answers_registers_that_it_keeps,
    the_tsc_starts_near_zero_and_runs,
];

/// A guest that asks CPUID for the leaf in its EAX and subleaf 0.
fn cpuid_guest() -> Outcome<Guest> {
    Guest::new(code!["2: cpuid", "out 0x80, al", "jmp 2b"])
}

fn cpuid(guest: &Guest, leaf: u32) -> Outcome<[u32; 4]> {
    guest.restart(|state| {
        state.gpr[0] = leaf.into();
        state.gpr[1] = 0;
    })?;
    guest.port()?;
    let gpr = guest.state(0)?.gpr;
    Ok([gpr[0], gpr[3], gpr[1], gpr[2]].map(|word| word as u32))
}

fn cpuid_is_what_root_sets() -> Outcome {
    let guest = cpuid_guest()?;
    let signature = |words: [u32; 4]| {
        let mut bytes = [0; 12];
        for (to, word) in bytes.chunks_exact_mut(4).zip(&words[1..]) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    };
    let own = cpuid(&guest, leaf::GUEST_BASE)?;
    equal("the signature", signature(own), SIGNATURE)?;
    let entry = CpuidEntry {
        leaf: 0x4000_0000,
        eax: 1,
        ebx: 2,
        ecx: 3,
        edx: 4,
        ..CpuidEntry::default()
    };
    guest.set_cpuid(0, &[entry]).ok()?;
    equal("a new answer", cpuid(&guest, 0x4000_0000)?, [1, 2, 3, 4])?;
    equal("a former answer", cpuid(&guest, leaf::GUEST_BASE)?, [0; 4])?;
    guest.set_cpuid(0, &[]).ok()?;
    equal("no answer", cpuid(&guest, 0x4000_0000)?, [0; 4])?;
    guest.end()
}

fn a_bad_cpuid_table_changes_nothing() -> Outcome {
    let guest = cpuid_guest()?;
    let before = cpuid(&guest, 0)?;
    let entry = |leaf| CpuidEntry {
        leaf,
        ..CpuidEntry::default()
    };
    let reserved = CpuidEntry {
        reserved: 1,
        ..entry(2)
    };
    for bad in [
        [entry(1), entry(1)],
        [entry(2), entry(1)],
        [entry(1), reserved],
    ] {
        guest.set_cpuid(0, &bad).is(Status::InvalidArgument)?;
    }
    guest.set_cpuid(1, &[]).is(Status::NoSuchVcpu)?;
    let call = |pfn, count| hv::call(Hypercall::VcpuSetCpuid, [guest.id, 0, pfn, count]);
    call(Pages::scratch().pfn(), 128).is(Status::OutOfRange)?;
    for (pfn, status) in FOREIGN_PAGES {
        call(pfn, 1).is(status)?;
    }
    equal("leaf 0", cpuid(&guest, 0)?, before)?;
    guest.end()
}

fn a_full_cpuid_table_answers() -> Outcome {
    let guest = cpuid_guest()?;
    let mut entries = [CpuidEntry::default(); MAX_CPUID_ENTRIES as usize];
    for (entry, n) in entries.iter_mut().zip(0..) {
        (entry.leaf, entry.ebx) = (0x4000_0000 + n, n);
    }
    guest.set_cpuid(0, &entries).ok()?;
    for n in [0, 63, 126, 127] {
        let expected = if n < MAX_CPUID_ENTRIES as u32 { n } else { 0 };
        let answer = cpuid(&guest, 0x4000_0000 + n)?;
        equal("EBX", answer[1], expected)?;
    }
    guest.end()
}

fn cpuid_hides_svm_and_shows_a_hypervisor() -> Outcome {
    let guest = cpuid_guest()?;
    let [_, _, ecx, _] = cpuid(&guest, 1)?;
    equal("hypervisor", ecx >> 31, 1)?;
    equal(
        "x2APIC, TSC deadline",
        (ecx >> 21 & 1, ecx >> 24 & 1),
        (1, 1),
    )?;
    let [_, _, ecx, _] = cpuid(&guest, 0x8000_0001)?;
    equal("SVM", ecx & 1 << 2, 0)?;
    equal("SVM's leaf", cpuid(&guest, 0x8000_000a)?, [0; 4])?;
    guest.end()
}

const EFER: u32 = 0xc000_0080;
const PAT: u32 = 0x277;

fn unknown_registers_fault() -> Outcome {
    let guest = Guest::for_msrs()?;
    for msr in [
        2,
        0x3fff,
        0x1_0000,
        0x4b56_4d7f,
        0xc000_1fff,
        0xc001_1fff,
        u32::MAX,
    ] {
        equal("a read", guest.rdmsr(msr)?, Some([GENERAL_PROTECTION, 0]))?;
        equal(
            "a write",
            guest.wrmsr(msr, 0)?,
            Some([GENERAL_PROTECTION, 0]),
        )?;
    }
    equal("a known one", guest.rdmsr(EFER)?, None)?;
    equal("EFER", guest.state(0)?.gpr[0], 0x500)?;
    guest.end()
}

fn svm_is_not_there() -> Outcome {
    const SVME: u64 = 1 << 12;
    let guest = Guest::for_msrs()?;
    for msr in [0xc001_0114, 0xc001_0117] {
        equal("a read", guest.rdmsr(msr)?, Some([GENERAL_PROTECTION, 0]))?;
        equal(
            "a write",
            guest.wrmsr(msr, 0)?,
            Some([GENERAL_PROTECTION, 0]),
        )?;
    }
    let with_svme = guest.wrmsr(EFER, 0x500 | SVME)?;
    equal("SVME", with_svme, Some([GENERAL_PROTECTION, 0]))?;
    guest.end()?;
    let instructions = [
        code!["vmrun rax", "hlt"],
        code!["vmload rax", "hlt"],
        code!["vmsave rax", "hlt"],
        code!["stgi", "hlt"],
        code!["clgi", "hlt"],
        code!["invlpga rax, ecx", "hlt"],
        code!["skinit eax", "hlt"],
        code!["monitor", "hlt"],
        code!["mwait", "hlt"],
    ];
    for code in instructions {
        let guest = Guest::new(code)?;
        guest.halt(0)?;
        equal("exceptions", guest.exceptions().count(), 1)?;
        equal("vector", guest.exceptions().last()[0], INVALID_OPCODE)?;
        guest.end()?;
    }
    Ok(())
}

fn efer_and_pat_keep_what_they_are_given() -> Outcome {
    let guest = Guest::for_msrs()?;
    let pat = 0x0606_0606_0000_0104;
    equal("PAT", guest.wrmsr(PAT, pat)?, None)?;
    equal("PAT", guest.rdmsr(PAT)?, None)?;
    let state = guest.state(0)?;
    equal("PAT", (state.gpr[0], state.pat), (pat, pat))?;
    let bad_type = guest.wrmsr(PAT, 2)?;
    equal(
        "a type that is not",
        bad_type,
        Some([GENERAL_PROTECTION, 0]),
    )?;
    equal("EFER with SCE and NXE", guest.wrmsr(EFER, 0xd01)?, None)?;
    equal("EFER", guest.state(0)?.efer, 0xd01)?;
    let off = guest.wrmsr(EFER, 0)?;
    equal("LME off under paging", off, Some([GENERAL_PROTECTION, 0]))?;
    guest.end()
}

fn the_worker_answers_registers_that_it_keeps() -> Outcome {
    const NUMBER: u64 = 0xc001_0015;
    let guest = Guest::new(code![
        "mov ecx, 0xc0010015",
        "mov rax, -1",
        "mov rdx, -1",
        "rdmsr",
        "mov [{data}], rax",
        "mov [{data} + 8], rdx",
        "mov eax, 0x11223344",
        "mov edx, 0x55667788",
        "wrmsr",
        "hlt",
        ; data = const layout::DATA,
    ])?;
    let read = guest.intercept(0, InterceptKind::Msr)?;
    equal("number, write", (read.address, read.is_write), (NUMBER, 0))?;
    // Without an answer the guest asks again.
    let again = guest.intercept(0, InterceptKind::Msr)?;
    equal("rip", again.rip, read.rip)?;
    guest.reply(0, 0x8765_4321_0fed_cba9);
    let write = guest.intercept(0, InterceptKind::Msr)?;
    let got = (write.address, write.is_write, write.data);
    equal(
        "number, write, value",
        got,
        (NUMBER, 1, 0x5566_7788_1122_3344),
    )?;
    let halves = [0, 8].map(|offset| guest.read(layout::DATA + offset));
    equal("EAX, EDX", halves, [0x0fed_cba9, 0x8765_4321])?;
    guest.reply(0, 0);
    guest.halt(0)?;
    equal("exceptions", guest.exceptions().count(), 0)?;
    guest.end()
}

fn the_tsc_starts_near_zero_and_runs() -> Outcome {
    let guest = Guest::new(code![
        "2: rdtsc",
        "shl rdx, 32",
        "or rax, rdx",
        "out 0x80, al",
        "jmp 2b",
    ])?;
    let mut last = 0;
    for _ in 0..10 {
        guest.port()?;
        let state = guest.state(0)?;
        ensure("it runs forward", state.gpr[0] > last)?;
        ensure("its state says the same", state.tsc >= state.gpr[0])?;
        last = state.gpr[0];
    }
    ensure(
        "its zero is the partition's creation",
        last < 30_000_000_000,
    )?;
    guest.end()
}
