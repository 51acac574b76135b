//! States to begin in: VM 0's, and a processor's after INIT or SIPI.

use guest_proto::vcpu_page::Segment;
use x86_64::registers::control::{Cr0Flags, Cr4Flags};
use x86_64::registers::model_specific::EferFlags;

use super::{Save, Vmcb};
use crate::arch::hw::Start;

/// RFLAGS with nothing set: bit 1 is always 1.
const RFLAGS_RESET: u64 = 2;
/// DR6 and DR7 with nothing set.
const DR6_RESET: u64 = 0xffff_0ff0;
const DR7_RESET: u64 = 0x400;

/// A segment in real mode.
const fn real_mode(selector: u16, attributes: u16) -> Segment {
    Segment {
        selector,
        attributes,
        limit: 0xffff,
        base: (selector as u64) << 4,
    }
}

impl Vmcb {
    /// Sets the state of a CPU of VM 0 in 64-bit mode on identity page tables, interrupts off. NXE is set:
    /// Linux's wakeup trampoline meets no-execute pages before it sets it by itself.
    pub(in crate::arch::svm) fn start(&mut self, start: &Start) {
        let flat = |selector, attributes| Segment {
            selector,
            attributes,
            limit: u32::MAX,
            base: 0,
        };
        let system = |attributes, limit, base: crate::memory::Gpa| Segment {
            selector: 0,
            attributes,
            limit,
            base: base.as_u64(),
        };
        let none = crate::memory::Gpa::new(0);
        let save = &mut self.save;
        save.segment = [flat(0x18, 0xc93); 6];
        save.segment[Save::CS] = flat(0x10, 0xa9b);
        save.gdtr = system(0, 31, start.gdt);
        save.ldtr = system(0x82, 0xffff, none);
        save.idtr = system(0, 3 * 16 - 1, start.idt);
        save.tr = system(0x8b, 0xffff, none);
        let efer = EferFlags::NO_EXECUTE_ENABLE
            | EferFlags::LONG_MODE_ACTIVE
            | EferFlags::LONG_MODE_ENABLE;
        save.set_efer(efer.bits());
        let cr0 = Cr0Flags::PAGING
            | Cr0Flags::WRITE_PROTECT
            | Cr0Flags::NUMERIC_ERROR
            | Cr0Flags::EXTENSION_TYPE
            | Cr0Flags::MONITOR_COPROCESSOR
            | Cr0Flags::PROTECTED_MODE_ENABLE;
        save.cr0 = cr0.bits();
        save.cr3 = start.cr3.as_u64();
        save.cr4 = Cr4Flags::PHYSICAL_ADDRESS_EXTENSION.bits();
        (save.dr6, save.dr7) = (DR6_RESET, DR7_RESET);
        save.rflags = RFLAGS_RESET;
        save.rip = start.rip.as_u64();
        save.rsp = start.rsp.as_u64();
    }

    /// Sets a processor's state after INIT (APM vol. 2 table 14-1).
    pub(in crate::arch::svm) fn init_state(&mut self) {
        const DATA: u16 = 0x093;
        const CODE: u16 = 0x09b;
        let save = &mut self.save;
        save.segment = [real_mode(0, DATA); 6];
        save.segment[Save::CS] = Segment {
            base: 0xffff_0000,
            ..real_mode(0xf000, CODE)
        };
        save.gdtr = real_mode(0, 0);
        save.idtr = real_mode(0, 0);
        save.ldtr = real_mode(0, 0x082);
        save.tr = real_mode(0, 0x08b);
        save.cpl = 0;
        let cr0 = Cr0Flags::CACHE_DISABLE | Cr0Flags::NOT_WRITE_THROUGH | Cr0Flags::EXTENSION_TYPE;
        (save.cr0, save.cr2, save.cr3, save.cr4) = (cr0.bits(), 0, 0, 0);
        save.set_efer(0);
        (save.dr6, save.dr7) = (DR6_RESET, DR7_RESET);
        save.rflags = RFLAGS_RESET;
        (save.rip, save.rax, save.rsp) = (0xfff0, 0, 0);
        self.set_interrupt_shadow(false);
    }

    /// Sets where a SIPI with this vector starts (APM vol. 2 §14.2.3).
    pub(in crate::arch::svm) fn start_at(&mut self, vector: u8) {
        self.save.segment[Save::CS] = real_mode(u16::from(vector) << 8, 0x09b);
        self.save.rip = 0;
    }
}
