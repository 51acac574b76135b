//! Model-specific registers and instructions by which root would reach what the microvisor has.

use guest_proto::hypercall::ExitKind;

use super::machine::root_exits;
use crate::memory::Pages;
use crate::probe::{self, GENERAL_PROTECTION, rdmsr, wrmsr};
use crate::report::{Outcome, cases, ensure, equal, fail};
use crate::{cpu, hv};

cases![
    what_moves_memory_keeps_its_value,
    what_is_not_listed_is_refused,
    the_apic_stays_where_it_is,
    what_the_cpu_refuses_is_roots_fault,
    memory_types_of_ram_stay,
    the_default_memory_type_stays,
    branches_are_not_recorded,
    what_a_kernel_writes_often_does_not_exit,
    features_that_cannot_be_had_are_hidden,
    invd_writes_back,
];

const APIC_BASE: u32 = 0x1b;

/// What a register of root's holds.
#[track_caller]
pub(super) fn value(msr: u32) -> Outcome<u64> {
    match rdmsr(msr) {
        Ok(value) => Ok(value),
        Err(vector) => fail(format_args!("{msr:#x} cannot be read: vector {vector}")),
    }
}

/// Each bit that a write changes makes it fault, and none has changed.
#[track_caller]
fn keeps(msr: u32, changeable: u64) -> Outcome {
    let old = value(msr)?;
    equal("what it holds", wrmsr(msr, old), Ok(0))?;
    for bit in (0..64).map(|bit| 1_u64 << bit) {
        if changeable & bit == 0 {
            equal(
                "a changed bit",
                wrmsr(msr, old ^ bit),
                Err(GENERAL_PROTECTION),
            )?;
            equal("the register", value(msr)?, old)?;
        }
    }
    Ok(())
}

fn what_moves_memory_keeps_its_value() -> Outcome {
    // IORRs, TOP_MEM, TOM2, MMIO_CFG_BASE, SMM_BASE, SMM_ADDR, SMM_MASK.
    let iorrs = 0xc001_0016..=0xc001_0019;
    let others = [
        0xc001_001a,
        0xc001_001d,
        0xc001_0058,
        0xc001_0111,
        0xc001_0112,
        0xc001_0113,
    ];
    for msr in iorrs.chain(others) {
        keeps(msr, 0)?;
    }
    // SYSCFG, HWCR, NB_CFG.
    keeps(0xc001_0010, 1 << 18 | 1 << 19)?;
    keeps(0xc001_0015, 1 << 25 | 1 << 30 | 1 << 35)?;
    keeps(0xc001_001f, 1 << 46)
}

/// Whatever a CPU does with a number that it has not: the write does not get there.
fn what_is_not_listed_is_refused() -> Outcome {
    // TSC_RATIO, P-state definition, GHCB, RMP_BASE, RMP_END, IBS, an unknown one.
    for msr in [
        0xc000_0104,
        0xc001_0064,
        0xc001_0130,
        0xc001_0132,
        0xc001_0133,
        0xc001_1033,
        0xc001_1fff,
        0x1fff,
        0xc000_1fff,
        0xc000_2000,
        0x4000_0000,
        u32::MAX,
    ] {
        equal("a write", wrmsr(msr, 0), Err(GENERAL_PROTECTION))?;
    }
    Ok(())
}

fn the_apic_stays_where_it_is() -> Outcome {
    keeps(APIC_BASE, 1 << 10 | 1 << 11)
}

/// x2APIC mode without the APIC on is no state of a CPU (APM vol. 2 §16.9): the microvisor's own WRMSR faults.
fn what_the_cpu_refuses_is_roots_fault() -> Outcome {
    const EXTD: u64 = 1 << 10;
    const ENABLED: u64 = 1 << 11;
    let old = value(APIC_BASE)?;
    let refused = wrmsr(APIC_BASE, old & !ENABLED | EXTD);
    equal("EXTD alone", refused, Err(GENERAL_PROTECTION))?;
    equal("the register", value(APIC_BASE)?, old)?;
    hv::machine_info().map(drop)
}

fn memory_types_of_ram_stay() -> Outcome {
    const VALID: u64 = 1 << 11;
    let count = (value(0xfe)? & 0xff) as u32;
    ensure("there are variable ranges", count > 0)?;
    let page = Pages::take(1).address();
    let free = (0..count).map(|n| 0x200 + 2 * n).rev();
    let bits = cpu::cpuid(0x8000_0008, 0).eax & 0xff;
    let one_page = ((1 << bits) - 4096) | VALID;
    for base in free {
        let old = (value(base)?, value(base + 1)?);
        equal("its own base", wrmsr(base, old.0), Ok(0))?;
        equal("its own mask", wrmsr(base + 1, old.1), Ok(0))?;
        if old.1 & VALID != 0 {
            continue;
        }
        for memory in [page, super::MICROVISOR] {
            equal("a base", wrmsr(base, memory), Ok(0))?;
            let refused = wrmsr(base + 1, one_page);
            equal("a range of RAM", refused, Err(GENERAL_PROTECTION))?;
        }
        // The first GiB below 4 GiB has none here.
        equal("a base above RAM", wrmsr(base, 0xe000_0001), Ok(0))?;
        equal("its mask", wrmsr(base + 1, one_page), Ok(0))?;
        equal("the mask", value(base + 1)?, one_page)?;
        let refused = wrmsr(base, super::MICROVISOR);
        equal("a move into RAM", refused, Err(GENERAL_PROTECTION))?;
        equal("off", wrmsr(base + 1, old.1), Ok(0))?;
        equal("the base of before", wrmsr(base, old.0), Ok(0))?;
    }
    Ok(())
}

fn the_default_memory_type_stays() -> Outcome {
    const DEFAULT: u32 = 0x2ff;
    const FIXED: u64 = 1 << 10;
    let old = value(DEFAULT)?;
    for new in [0, old ^ 1 << 11, old ^ 7, u64::MAX] {
        equal("a write", wrmsr(DEFAULT, new), Ok(0))?;
        equal(
            "all but the fixed ranges",
            value(DEFAULT)? & !FIXED,
            old & !FIXED,
        )?;
    }
    equal("the old one", wrmsr(DEFAULT, old), Ok(0))?;
    equal("the register", value(DEFAULT)?, old)
}

fn branches_are_not_recorded() -> Outcome {
    const DEBUGCTL: u32 = 0x1d9;
    equal("LBR", wrmsr(DEBUGCTL, 1), Err(GENERAL_PROTECTION))?;
    equal("single-stepping by branches", wrmsr(DEBUGCTL, 2), Ok(0))?;
    equal("nothing", wrmsr(DEBUGCTL, 0), Ok(0))
}

fn what_a_kernel_writes_often_does_not_exit() -> Outcome {
    let exits = || root_exits(0, ExitKind::MsrWrite);
    let before = exits()?;
    // Kernel GS base, TSC_AUX, LSTAR, SYSENTER_EIP, PAT, a fixed memory type range.
    for msr in [0xc000_0102, 0xc000_0103, 0xc000_0082, 0x176, 0x277, 0x250] {
        equal("a write", wrmsr(msr, value(msr)?), Ok(0))?;
    }
    equal("exits", exits()?, before)
}

fn features_that_cannot_be_had_are_hidden() -> Outcome {
    const HYPERVISOR: u32 = 1 << 31;
    ensure(
        "the hypervisor's bit",
        cpu::cpuid(1, 0).ecx & HYPERVISOR != 0,
    )?;
    equal("IBS, SKINIT", cpu::cpuid(0x8000_0001, 0).ecx & 0x1400, 0)?;
    equal(
        "scalable machine checks",
        cpu::cpuid(0x8000_0007, 0).ebx & 1 << 3,
        0,
    )?;
    equal("INVLPGB", cpu::cpuid(0x8000_0008, 0).ebx & 1 << 3, 0)?;
    equal("memory encryption", cpu::cpuid(0x8000_001f, 9).eax, 0)
}

fn invd_writes_back() -> Outcome {
    let exits = || root_exits(0, ExitKind::Other);
    let before = exits()?;
    equal("INVD", probe::invd(), Ok(0))?;
    equal("exits for it", exits()?, before + 1)
}
