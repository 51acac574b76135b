//! The states of a processor after INIT and SIPI.

use guest_proto::vcpu_page::Segment;
use x86_64::registers::control::Cr0Flags;

use super::{Save, Vmcb};

/// RFLAGS with nothing set: bit 1 is always 1.
pub(in crate::arch::svm) const RFLAGS_RESET: u64 = 2;
/// DR6 and DR7 with nothing set.
pub(in crate::arch::svm) const DR6_RESET: u64 = 0xffff_0ff0;
pub(in crate::arch::svm) const DR7_RESET: u64 = 0x400;

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
