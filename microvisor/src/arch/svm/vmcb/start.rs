//! States to begin in: VM 0's, and a processor's after INIT or SIPI.

use super::super::state::real_mode;
use super::*;

/// Where and how a CPU of VM 0 begins: in 64-bit mode.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    /// First instruction.
    pub rip: u64,
    /// Its stack: room for the frame of an NMI.
    pub rsp: u64,
    /// Its page tables.
    pub cr3: u64,
    /// Its descriptor table: code at 0x10, data at 0x18, as the Linux boot protocol asks.
    pub gdt: u64,
    /// Its interrupt descriptor table, vectors 0 to 2: an NMI may come before VM 0 has one of its own.
    pub idt: u64,
}

impl Vmcb {
    /// A CPU in 64-bit mode on identity page tables, interrupts off. NXE is set: Linux's wakeup
    /// trampoline meets no-execute pages before it sets it by itself.
    pub fn start(&mut self, start: &Start) {
        let flat = |selector, attributes| Segment {
            selector,
            attributes,
            limit: u32::MAX,
            base: 0,
        };
        let system = |attributes, limit, base| Segment {
            selector: 0,
            attributes,
            limit,
            base,
        };
        for index in 0..=5 {
            self.set_segment(index, &flat(0x18, 0xc93));
        }
        self.set_segment(Self::CS, &flat(0x10, 0xa9b));
        self.set_segment(Self::GDTR, &system(0, 31, start.gdt));
        self.set_segment(Self::LDTR, &system(0x82, 0xffff, 0));
        self.set_segment(Self::IDTR, &system(0, 3 * 16 - 1, start.idt));
        self.set_segment(Self::TR, &system(0x8b, 0xffff, 0));
        self.set(EFER, EFER_SVME | 1 << 11 | 1 << 10 | 1 << 8);
        self.set(CR0, 0x8001_0033);
        self.set(CR3, start.cr3);
        self.set(CR4, 0x20);
        self.set(DR6, 0xffff_0ff0);
        self.set(DR7, 0x400);
        self.set(RFLAGS, 2);
        self.set(RIP, start.rip);
        self.set(RSP, start.rsp);
    }

    /// A processor's state after INIT (APM vol. 2 table 14-1).
    pub(in crate::arch::svm) fn init_state(&mut self) {
        const DATA: u16 = 0x093;
        const CODE: u16 = 0x09b;
        for index in 0..=5 {
            self.set_segment(index, &real_mode(0, DATA));
        }
        let reset = Segment {
            base: 0xffff_0000,
            ..real_mode(0xf000, CODE)
        };
        self.set_segment(Self::CS, &reset);
        self.set_segment(Self::GDTR, &real_mode(0, 0));
        self.set_segment(Self::IDTR, &real_mode(0, 0));
        self.set_segment(Self::LDTR, &real_mode(0, 0x082));
        self.set_segment(Self::TR, &real_mode(0, 0x08b));
        self.0[CPL] = 0;
        self.set_control([0x6000_0010, 0, 0]);
        self.set_efer(0);
        self.set_debug(0xffff_0ff0, 0x400);
        self.set_cr2(0);
        self.set_rflags(2);
        self.set_rip(0xfff0);
        self.set_rax(0);
        self.set_rsp(0);
        self.set_interrupt_shadow(false);
    }

    /// Where a SIPI starts (APM vol. 2 §14.2.3).
    pub(crate) fn start_at(&mut self, vector: u8) {
        self.set_segment(Self::CS, &real_mode(u16::from(vector) << 8, 0x09b));
        self.set_rip(0);
    }
}
