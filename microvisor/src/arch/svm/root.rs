//! VM 0 on one physical CPU.
#![allow(
    unsafe_code,
    reason = "SVM's instructions, and frames that each CPU takes once"
)]

use core::arch::asm;
use core::cell::UnsafeCell;
use core::sync::atomic::AtomicBool;

use guest_proto::limits::MAX_CPUS;

use super::cpu::Cpu;
use super::registers::{self, Registers};
use super::vmcb::{TlbControl, Vmcb};
use super::{exit, switch};
use crate::arch::exception;
use crate::arch::exit::{Event, Exit, RawExit};
use crate::arch::hw::Register;
use crate::memory::{Frame, Hpa};

mod boot;

const VM_HSAVE_PA: u32 = 0xc001_0117;

#[repr(C, align(4096))]
struct Page([u8; 4096]);

/// What one physical CPU needs to run VM 0.
#[repr(C)]
struct RootFrames {
    /// The host save area (APM vol. 2 §15.30.4).
    host_save: Page,
    /// Where VMSAVE stores the microvisor's registers.
    host: Page,
    vmcb: Vmcb,
    taken: AtomicBool,
}

struct PerCpu(UnsafeCell<[RootFrames; MAX_CPUS as usize]>);

// SAFETY: each element is handed out once, guarded by its `taken`.
unsafe impl Sync for PerCpu {}

static ROOT: PerCpu = PerCpu(UnsafeCell::new(
    [const {
        RootFrames {
            host_save: Page([0; 4096]),
            host: Page([0; 4096]),
            vmcb: Vmcb::zeroed(),
            taken: AtomicBool::new(false),
        }
    }; MAX_CPUS as usize],
));

/// VM 0 on this CPU.
#[derive(Debug)]
pub struct Root {
    vmcb: &'static mut Vmcb,
    vmcb_physical: Hpa,
    cpu: Cpu,
    registers: Registers,
    has_next_rip: bool,
    /// What forgets root's translations: those of guests stay, if the CPU can tell them apart.
    flush: TlbControl,
    /// The CPU turns an INIT into #SX.
    redirects_init: bool,
}

impl Root {
    pub(crate) fn cpu(&mut self) -> &mut Cpu {
        &mut self.cpu
    }

    pub(crate) fn index(&self) -> usize {
        self.cpu.index()
    }

    pub(crate) fn set_nested_map(&mut self, top: Frame) {
        self.vmcb.set_nested_map(top);
        self.flush();
    }

    pub(crate) fn flush(&mut self) {
        self.vmcb.flush_next(self.flush);
    }

    /// By GIF = 0, at which each world switch leaves the CPU, too.
    pub(crate) fn hold_events(&mut self) {
        // SAFETY: SVM is on.
        unsafe { asm!("clgi", options(nomem, nostack)) };
    }

    #[inline]
    pub(crate) fn enter(&mut self) -> Exit {
        // SAFETY: the control block is complete, and its nested map is root's.
        unsafe { switch::enter(self.vmcb_physical, &mut self.registers, self.cpu.host) };
        self.vmcb.entered();
        self.vmcb.forget_event();
        exit::decode(self.vmcb)
    }

    pub(crate) fn raw_exit(&self) -> RawExit {
        self.vmcb.raw_exit()
    }

    pub(crate) fn skip(&mut self) {
        self.vmcb.save.rip = exit::next_rip(self.vmcb, self.has_next_rip);
        self.vmcb.set_interrupt_shadow(false);
    }

    #[inline]
    pub(crate) fn read(&self, register: Register) -> u64 {
        registers::read(self.vmcb, &self.registers, register)
    }

    #[inline]
    pub(crate) fn write(&mut self, register: Register, value: u64) {
        registers::write(self.vmcb, &mut self.registers, register, value);
    }

    pub(crate) fn cpl(&self) -> u8 {
        self.vmcb.save.cpl
    }

    pub(crate) fn inject(&mut self, event: Event) {
        self.vmcb.inject(event);
    }

    pub(crate) fn write_msr(&mut self, number: u32, value: u64) -> bool {
        // SAFETY: root's policy lets no value pass that takes from the microvisor what it relies on.
        unsafe { exception::try_write_msr(number, value) }
    }

    pub(crate) fn consume_init(&mut self) -> Option<bool> {
        // SAFETY: SVM is on, and R_INIT set.
        self.redirects_init
            .then(|| unsafe { exception::consume_init() })
    }
}
