//! The virtual machine control block, with the names of APM vol. 2 appendix B.
#![allow(unsafe_code, reason = "a block of zeros")]

use core::mem::offset_of;

use bitflags::bitflags;
use guest_proto::vcpu_page::Segment;

use crate::arch::exit::RawExit;

mod events;
mod intercepts;
mod start;

pub(super) use events::{EventInjection, VirtualInterrupt};
pub(super) use intercepts::{Exceptions, Intercepts3, Intercepts4};
pub(super) use start::{DR6_RESET, DR7_RESET, RFLAGS_RESET};

/// The control block: one page.
#[repr(C, align(4096))]
#[derive(Debug)]
pub(super) struct Vmcb {
    pub(super) control: Control,
    pub(super) save: Save,
    reserved: [u8; 0x918],
}

/// The control area. The CPU reads it at VMRUN, and tells in it why the guest stopped.
#[repr(C)]
#[derive(Debug)]
pub(super) struct Control {
    intercept_cr: u32,
    intercept_dr: u32,
    intercept_exceptions: Exceptions,
    intercept_3: Intercepts3,
    intercept_4: Intercepts4,
    intercept_5: u32,
    reserved_018: [u8; 0x24],
    pause_filter: [u16; 2],
    iopm_base_pa: u64,
    msrpm_base_pa: u64,
    pub(super) tsc_offset: u64,
    pub(super) guest_asid: u32,
    tlb_control: TlbControl,
    pub(super) virtual_interrupt: VirtualInterrupt,
    interrupt_shadow: InterruptShadow,
    exit_code: u64,
    exit_info_1: u64,
    exit_info_2: u64,
    exit_interrupt_info: EventInjection,
    nested_control: NestedControl,
    reserved_098: [u8; 0x10],
    event_injection: EventInjection,
    nested_cr3: u64,
    lbr_virtualization: u64,
    clean: u64,
    /// Where the CPU has next-RIP save: the address after the instruction that exits. Otherwise 0.
    pub(super) next_rip: u64,
    instruction_len: u8,
    instruction: [u8; 15],
    reserved_0e0: [u8; 0x320],
}

/// The state save area: registers of the guest.
#[repr(C)]
#[derive(Debug)]
pub(super) struct Save {
    /// ES, CS, SS, DS, FS, GS, in the order of their encoding.
    pub(super) segment: [Segment; 6],
    pub(super) gdtr: Segment,
    pub(super) ldtr: Segment,
    pub(super) idtr: Segment,
    pub(super) tr: Segment,
    reserved_4a0: [u8; 0x2b],
    pub(super) cpl: u8,
    reserved_4cc: u32,
    efer: u64,
    reserved_4d8: [u8; 0x70],
    pub(super) cr4: u64,
    pub(super) cr3: u64,
    pub(super) cr0: u64,
    pub(super) dr7: u64,
    pub(super) dr6: u64,
    pub(super) rflags: u64,
    pub(super) rip: u64,
    reserved_580: [u8; 0x58],
    pub(super) rsp: u64,
    cet: [u64; 3],
    pub(super) rax: u64,
    pub(super) star: u64,
    pub(super) lstar: u64,
    pub(super) cstar: u64,
    pub(super) sfmask: u64,
    pub(super) kernel_gs_base: u64,
    /// SYSENTER_CS, SYSENTER_ESP, SYSENTER_EIP.
    pub(super) sysenter: [u64; 3],
    pub(super) cr2: u64,
    reserved_648: [u8; 0x20],
    pub(super) g_pat: u64,
    reserved_670: [u8; 0x70],
    /// Where the CPU has virtual SPEC_CTRL.
    pub(super) spec_ctrl: u64,
}

bitflags! {
    /// TLB_CONTROL (APM vol. 2 §15.16.2).
    #[repr(transparent)]
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) struct TlbControl: u32 {
        const FLUSH_ALL = 1;
        /// The entries of this block's identifier, where the CPU has flush by ASID.
        const FLUSH_OWN = 3;
    }

    #[repr(transparent)]
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct NestedControl: u64 {
        const NESTED_PAGING = 1;
    }

    /// Bit 1 is the guest's interrupt mask, which the CPU writes.
    #[repr(transparent)]
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct InterruptShadow: u64 {
        const SHADOW = 1;
        const _ = !0;
    }
}

macro_rules! offsets {
    ($($area:ident { $($field:ident $offset:literal),* $(,)? })*) => {
        $( const _: () = { $( assert!(offset_of!($area, $field) == $offset); )* }; )*
    };
}

offsets! {
    Vmcb { control 0, save 0x400 }
    Control {
        intercept_dr 0x004, intercept_exceptions 0x008, intercept_3 0x00c, intercept_4 0x010, iopm_base_pa 0x040,
        msrpm_base_pa 0x048, tsc_offset 0x050, guest_asid 0x058, tlb_control 0x05c, virtual_interrupt 0x060,
        interrupt_shadow 0x068, exit_code 0x070, exit_info_1 0x078, exit_info_2 0x080, exit_interrupt_info 0x088,
        nested_control 0x090, event_injection 0x0a8, nested_cr3 0x0b0, clean 0x0c0, next_rip 0x0c8,
        instruction_len 0x0d0, instruction 0x0d1,
    }
    Save {
        segment 0x000, gdtr 0x060, ldtr 0x070, idtr 0x080, tr 0x090, cpl 0x0cb, efer 0x0d0, cr4 0x148, cr3 0x150,
        cr0 0x158, dr7 0x160, dr6 0x168, rflags 0x170, rip 0x178, rsp 0x1d8, rax 0x1f8, star 0x200, sfmask 0x218,
        kernel_gs_base 0x220, sysenter 0x228, cr2 0x240, g_pat 0x268, spec_ctrl 0x2e0,
    }
}
const _: () = assert!(size_of::<Vmcb>() == 4096);

const SVME: u64 =
    x86_64::registers::model_specific::EferFlags::SECURE_VIRTUAL_MACHINE_ENABLE.bits();

impl Save {
    /// Index of CS and of SS in `segment`.
    pub(super) const CS: usize = 1;
    pub(super) const SS: usize = 2;

    /// EFER as the guest sees it: without SVME.
    pub(super) fn efer(&self) -> u64 {
        self.efer & !SVME
    }

    /// Sets EFER; SVME stays set, without which VMRUN refuses.
    pub(super) fn set_efer(&mut self, value: u64) {
        self.efer = value | SVME;
    }
}

impl Vmcb {
    /// A block of zeros.
    pub(super) const fn zeroed() -> Self {
        // SAFETY: integers, and sets of flags, all of which may be 0.
        unsafe { core::mem::zeroed() }
    }

    /// Sets the top table of the nested map.
    pub(super) fn set_nested_map(&mut self, top: crate::memory::Frame) {
        self.control.nested_cr3 = top.base().as_u64();
    }

    /// Flushes the TLB at the next entry.
    pub(super) fn flush_next(&mut self, what: TlbControl) {
        self.control.tlb_control = what;
    }

    /// What holds for one entry only has been done, unless the CPU refused the entry.
    pub(super) fn entered(&mut self) {
        if self.exit_code() != super::exit::INVALID {
            self.control.tlb_control = TlbControl::empty();
        }
    }

    /// Why the guest stopped, narrowed to 32 bits: QEMU 10.0 writes VMEXIT_INVALID as 0x00000000ffffffff.
    pub(super) fn exit_code(&self) -> u32 {
        self.control.exit_code as u32
    }

    /// EXITINFO1 and EXITINFO2.
    pub(super) fn exit_info(&self) -> (u64, u64) {
        (self.control.exit_info_1, self.control.exit_info_2)
    }

    /// The exit as the CPU tells it.
    pub(super) fn raw_exit(&self) -> RawExit {
        RawExit {
            code: self.exit_code(),
            info: self.exit_info(),
            rip: self.save.rip,
        }
    }

    /// Bytes of the instruction of a nested fault, where the CPU has decode assists, and their count.
    pub(super) fn instruction(&self) -> ([u8; 15], u8) {
        let control = &self.control;
        (control.instruction, control.instruction_len.min(15))
    }

    /// Whether interrupts are held up until the end of the next instruction.
    pub(super) fn interrupt_shadow(&self) -> bool {
        self.control
            .interrupt_shadow
            .contains(InterruptShadow::SHADOW)
    }

    /// Sets or ends the interrupt shadow.
    pub(super) fn set_interrupt_shadow(&mut self, on: bool) {
        self.control
            .interrupt_shadow
            .set(InterruptShadow::SHADOW, on);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn svme_is_hidden_and_cannot_be_cleared() {
        let mut vmcb = Vmcb::zeroed();
        vmcb.save.set_efer(1 << 8);
        assert_eq!(vmcb.save.efer(), 1 << 8);
        assert_eq!(vmcb.save.efer, 1 << 8 | 1 << 12);
    }

    #[test]
    fn a_flush_waits_for_an_entry_that_the_cpu_does_not_refuse() {
        let mut vmcb = Vmcb::zeroed();
        vmcb.flush_next(TlbControl::FLUSH_ALL);
        for refusal in [u64::MAX, 0xffff_ffff] {
            vmcb.control.exit_code = refusal;
            vmcb.entered();
            assert_eq!(vmcb.control.tlb_control, TlbControl::FLUSH_ALL);
        }
        vmcb.control.exit_code = 0x72;
        vmcb.entered();
        assert_eq!(vmcb.control.tlb_control, TlbControl::empty());
    }

    #[test]
    fn flushes_are_those_of_the_manual() {
        let mut vmcb = Vmcb::zeroed();
        for (what, raw) in [(TlbControl::FLUSH_ALL, 1), (TlbControl::FLUSH_OWN, 3)] {
            vmcb.flush_next(what);
            assert_eq!(vmcb.control.tlb_control.bits(), raw);
        }
    }

    #[test]
    fn the_next_instruction_is_told_or_counted() {
        const CPUID: u64 = 0x72;
        const IOIO: u64 = 0x7b;
        let next = |code, told, has_next_rip| {
            let mut vmcb = Vmcb::zeroed();
            vmcb.save.rip = 0x1000;
            (vmcb.control.exit_code, vmcb.control.next_rip) = (code, told);
            vmcb.control.exit_info_2 = 0x1005;
            super::super::exit::next_rip(&vmcb, has_next_rip)
        };
        // A prefix makes the instruction longer.
        assert_eq!(next(CPUID, 0x1003, true), 0x1003);
        assert_eq!(next(CPUID, 0x1003, false), 0x1002, "not this CPU's");
        assert_eq!(next(CPUID, 0, true), 0x1002, "not told for this exit");
        assert_eq!(next(IOIO, 0x1009, true), 0x1005, "told by every CPU");
    }

    #[test]
    fn instruction_bytes_are_at_most_those_that_there_are() {
        let mut vmcb = Vmcb::zeroed();
        vmcb.control.instruction = core::array::from_fn(|i| i as u8);
        for (len, told) in [(0, 0), (15, 15), (0xff, 15)] {
            vmcb.control.instruction_len = len;
            assert_eq!(vmcb.instruction(), (vmcb.control.instruction, told));
        }
    }

    #[test]
    fn invalid_is_read_as_32_bits() {
        let mut vmcb = Vmcb::zeroed();
        for raw in [u64::MAX, 0xffff_ffff] {
            vmcb.control.exit_code = raw;
            assert_eq!(vmcb.exit_code(), u32::MAX);
        }
    }
}
