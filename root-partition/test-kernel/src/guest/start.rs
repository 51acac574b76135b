//! The states that guests begin in.

use guest_proto::vcpu_page::{Segment, VcpuState};
use x86_64::registers::control::{Cr0Flags, Cr4Flags, EferFlags};

use super::layout;

/// A CPU's mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// 16-bit, no paging.
    Real,
    /// 32-bit, flat segments, no paging.
    Protected,
    /// 64-bit, identity pages, exception handlers.
    Long,
}

const PROTECTED: Cr0Flags = Cr0Flags::PROTECTED_MODE_ENABLE
    .union(Cr0Flags::MONITOR_COPROCESSOR)
    .union(Cr0Flags::EXTENSION_TYPE)
    .union(Cr0Flags::NUMERIC_ERROR);
const LONG_CR4: Cr4Flags = Cr4Flags::PHYSICAL_ADDRESS_EXTENSION
    .union(Cr4Flags::OSFXSR)
    .union(Cr4Flags::OSXMMEXCPT_ENABLE);
const LONG_EFER: EferFlags = EferFlags::LONG_MODE_ENABLE.union(EferFlags::LONG_MODE_ACTIVE);
/// PAT after reset.
const PAT: u64 = 0x0007_0406_0007_0406;

/// The state of a virtual CPU that is about to execute [`layout::CODE`] in `mode`.
pub fn state(mode: Mode) -> VcpuState {
    let (code, data, limit) = match mode {
        Mode::Real => (0x9b, 0x93, 0xffff),
        Mode::Protected => (0xc9b, 0xc93, u32::MAX),
        Mode::Long => (0xa9b, 0xc93, u32::MAX),
    };
    let (code_selector, data_selector) = match mode {
        Mode::Real => (0, 0),
        _ => (layout::CODE_SELECTOR, layout::DATA_SELECTOR),
    };
    let segment = |selector, attributes| Segment {
        selector,
        attributes,
        limit,
        base: 0,
    };
    let data = segment(data_selector, data);
    let table = |base, limit| Segment {
        base,
        limit,
        ..Segment::default()
    };
    let mut state = VcpuState {
        rip: layout::CODE,
        rflags: 2,
        segment: [data, segment(code_selector, code), data, data, data, data],
        ldtr: Segment {
            attributes: 0x82,
            ..Segment::default()
        },
        tr: Segment {
            attributes: 0x8b,
            limit: 0xffff,
            ..Segment::default()
        },
        gdtr: table(layout::GDT, 0xff),
        idtr: table(layout::IDT, 0xfff),
        cr0: Cr0Flags::EXTENSION_TYPE.bits(),
        xcr0: 1,
        dr6: 0xffff_0ff0,
        dr7: 0x400,
        pat: PAT,
        apic_base: apic_base(true),
        ..VcpuState::default()
    };
    state.gpr[4] = layout::STACK;
    match mode {
        Mode::Real => {
            state.gdtr = table(0, 0xffff);
            state.idtr = table(0, 0x3ff);
        }
        Mode::Protected => state.cr0 = PROTECTED.bits(),
        Mode::Long => {
            state.cr0 = (PROTECTED | Cr0Flags::PAGING).bits();
            state.cr3 = layout::PML4;
            state.cr4 = LONG_CR4.bits();
            state.efer = LONG_EFER.bits();
        }
    }
    state
}

/// MSR APIC_BASE of the boot CPU.
pub fn apic_base(x2apic: bool) -> u64 {
    if x2apic { 0xfee0_0d00 } else { 0xfee0_0900 }
}
