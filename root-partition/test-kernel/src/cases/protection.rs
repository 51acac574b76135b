//! What root may not do.

use guest_proto::Status;
use guest_proto::hypercall::CALLS;
use x86_64::registers::control::EferFlags;

use super::root_registers::value;
use super::{IMAGE, MICROVISOR};
use crate::memory::Pages;
use crate::probe::{self, GENERAL_PROTECTION, INVALID_OPCODE};
use crate::report::{Outcome, cases, equal};
use crate::{hv, ring3};

cases![
    hypercalls_from_ring_3_are_refused,
    the_microvisors_memory_is_absent,
    start_up_code_is_roots_and_scrubbed,
    svms_instructions_are_undefined,
    svms_registers_are_absent,
    efer_follows_the_manual_for_root,
];

fn hypercalls_from_ring_3_are_refused() -> Outcome {
    for call in CALLS {
        ring3::call(call.call.raw(), [0; 5]).is(Status::NotPermitted)?;
    }
    let target = Pages::take(1);
    ring3::call(5, [target.pfn(), 0, 0, 0, 0]).is(Status::NotPermitted)?;
    equal("the page is as it was", target.holds(Pages::PATTERN), true)?;
    ring3::call(u64::MAX, [u64::MAX; 5]).is(Status::NotPermitted)?;
    equal("partitions", hv::machine_info()?.partitions, 1)
}

fn the_microvisors_memory_is_absent() -> Outcome {
    equal("a read", probe::read(MICROVISOR), Err(GENERAL_PROTECTION))?;
    equal(
        "a write",
        probe::write(MICROVISOR, 0),
        Err(GENERAL_PROTECTION),
    )
}

fn start_up_code_is_roots_and_scrubbed() -> Outcome {
    let words = (IMAGE..MICROVISOR).step_by(8).map(probe::read);
    let words = words.take_while(Result::is_ok);
    let mut bytes = 0;
    for word in words {
        equal("a word of it", word, Ok(0))?;
        bytes += 8;
    }
    equal("it is whole pages", bytes % 4096, 0)?;
    equal("it has pages", bytes >= 4096, true)
}

fn svms_instructions_are_undefined() -> Outcome {
    let page = Pages::take(1).address();
    for which in 0..5 {
        equal("fault", probe::svm(page, which), Err(INVALID_OPCODE))?;
    }
    Ok(())
}

fn svms_registers_are_absent() -> Outcome {
    const EFER: u32 = 0xc000_0080;
    const SVME: u64 = EferFlags::SECURE_VIRTUAL_MACHINE_ENABLE.bits();
    const VM_CR: u32 = 0xc001_0114;
    const VM_HSAVE_PA: u32 = 0xc001_0117;
    for msr in [VM_CR, VM_HSAVE_PA] {
        equal("a read", probe::rdmsr(msr), Err(GENERAL_PROTECTION))?;
        equal("a write", probe::wrmsr(msr, 0), Err(GENERAL_PROTECTION))?;
    }
    let efer = value(EFER)?;
    equal("SVME", efer & SVME, 0)?;
    let with_svme = probe::wrmsr(EFER, efer | SVME);
    equal("SVME cannot be set", with_svme, Err(GENERAL_PROTECTION))?;
    equal("what EFER holds can be", probe::wrmsr(EFER, efer), Ok(0))
}

/// As on hardware: what no CPU can have would make VMRUN refuse root for good.
fn efer_follows_the_manual_for_root() -> Outcome {
    const EFER: u32 = 0xc000_0080;
    const LME: u64 = EferFlags::LONG_MODE_ENABLE.bits();
    const LMA: u64 = EferFlags::LONG_MODE_ACTIVE.bits();
    let efer = value(EFER)?;
    let without_lme = probe::wrmsr(EFER, efer & !LME);
    equal("LME off under paging", without_lme, Err(GENERAL_PROTECTION))?;
    let unknown = probe::wrmsr(EFER, efer | 1 << 63);
    equal("a bit that is not", unknown, Err(GENERAL_PROTECTION))?;
    // LMA is the CPU's: Linux writes it as 0.
    equal("LMA off", probe::wrmsr(EFER, efer & !LMA), Ok(0))?;
    equal("LMA", probe::rdmsr(EFER), Ok(efer))
}
