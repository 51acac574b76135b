//! A virtual CPU: its control block, and everything beside it that a world switch swaps.
#![allow(unsafe_code, reason = "the world switch")]

use guest_proto::vcpu_page::Vectors;
use x86_64::registers::debug::Dr6Flags;
use x86_64::registers::rflags::RFlags;

use super::asid::Asid;
use super::cpu::{SvmFeatures, svm_features};
use super::registers::{self, Registers};
use super::vmcb::{TlbControl, Vmcb};
use super::{Cpu, exit, permissions, switch};
use crate::arch::cpuid;
use crate::arch::exit::{Event, Exit, NestedFault, RawExit, TurnState};
use crate::arch::extended::{Area, Extended, Root};
use crate::arch::hw::{Register, Window};
use crate::memory::Hpa;
use crate::memory::frame_table::OwnedFrame;
use crate::memory::physmap::{PhysMap, Placed};

const TRAP_FLAG: u64 = RFlags::TRAP_FLAG.bits();
const SINGLE_STEP: u64 = Dr6Flags::STEP.bits();
/// Bits of DR7 that enable a breakpoint.
const ARMED: u64 = 0xff;

/// A step over an IRET: the guest's own bits of RFLAGS and DR6 that the step uses.
#[derive(Debug)]
struct Step {
    trap_flag: u64,
    single_step: u64,
}

/// A virtual CPU.
#[derive(Debug)]
pub struct Guest {
    pub(super) vmcb: Placed<Vmcb>,
    pub(super) registers: Registers,
    pub(super) area: Placed<Area>,
    pub(super) extended: Extended,
    /// Root's values, inside a turn.
    root: Root,
    /// `Cpu::host` of the CPU of the turn.
    host: Hpa,
    asid: Asid,
    has_next_rip: bool,
    /// The next entry is a step.
    step: Option<Step>,
}

impl Guest {
    pub(crate) const FRAMES: usize = 2;

    pub(crate) fn new(
        map: PhysMap,
        [vmcb, area]: [OwnedFrame; Self::FRAMES],
        components: u64,
    ) -> Result<Self, [OwnedFrame; Self::FRAMES]> {
        let mut vmcb = match Placed::new(map, vmcb, Vmcb::zeroed()) {
            Ok(vmcb) => vmcb,
            Err(vmcb) => return Err([vmcb, area]),
        };
        let area = match Placed::new(map, area, Area::reset()) {
            Ok(area) => area,
            Err(area) => return Err([vmcb.into_parts().1, area]),
        };
        let features = svm_features();
        vmcb.init_guest(&permissions::guest_maps());
        let mut guest = Self {
            vmcb,
            registers: Registers::default(),
            area,
            extended: Extended {
                components,
                xcr0: 1,
                spec_ctrl: 0,
                swaps_spec_ctrl: !features.contains(SvmFeatures::VIRTUAL_SPEC_CTRL),
                tsc_aux: 0,
                debug: [0; 4],
            },
            root: Root::default(),
            host: Hpa::new(0),
            asid: Asid::default(),
            has_next_rip: features.contains(SvmFeatures::NEXT_RIP_SAVE),
            step: None,
        };
        guest.init();
        Ok(guest)
    }

    pub(crate) fn into_frames(self) -> [OwnedFrame; Self::FRAMES] {
        [self.vmcb.into_parts().1, self.area.into_parts().1]
    }

    pub(crate) fn vectors(&self) -> Vectors {
        self.area.vectors()
    }

    pub(crate) fn set_vectors(&mut self, vectors: &Vectors) {
        self.area.set_vectors(vectors);
    }

    pub(crate) fn load(&mut self, cpu: &mut Cpu, turn: &TurnState) {
        let index = cpu.index();
        if !cpu.asids.is_valid(&self.asid, index, turn.flush) {
            let (asid, flush) = cpu.asids.take(index, turn.flush);
            self.asid = asid;
            self.vmcb.control.guest_asid = asid.number;
            if flush {
                self.vmcb.flush_next(TlbControl::FLUSH_ALL);
            }
        }
        self.vmcb.set_nested_map(turn.map);
        self.vmcb.control.tsc_offset = turn.tsc_offset;
        self.host = cpu.host;
        self.extended
            .load(&cpu.features, &self.area, &mut self.root);
        // Breakpoints that are on must be there before the guest's first instruction.
        let armed = self.vmcb.save.dr7 & ARMED != 0;
        self.vmcb.intercept_debug_registers(!armed);
        if armed {
            self.extended.load_debug(&mut self.root);
        }
    }

    pub(crate) fn unload(&mut self, cpu: &mut Cpu) {
        self.extended
            .unload(&cpu.features, &mut self.area, &mut self.root);
    }

    #[inline]
    pub(crate) fn enter(&mut self) -> Exit {
        let vmcb = self.vmcb.frame().base();
        // SAFETY: the control block is complete (`init_guest`), its nested map holds only what the
        // frame table gave the partition, and the caller's turn has loaded the rest.
        unsafe { switch::enter(vmcb, &mut self.registers, self.host) };
        self.vmcb.entered();
        self.vmcb.keep_interrupted_event();
        let exit = exit::decode(&self.vmcb);
        if matches!(exit, Exit::DebugRegister) {
            self.extended.load_debug(&mut self.root);
            self.vmcb.intercept_debug_registers(false);
        }
        match self.step.take() {
            None => exit,
            Some(step) => self.end_step(&step, exit),
        }
    }

    pub(crate) fn raw_exit(&self) -> RawExit {
        self.vmcb.raw_exit()
    }

    pub(crate) fn nested_fault(&self) -> NestedFault {
        exit::nested_fault(&self.vmcb)
    }

    /// By the trap flag, which IRET loads anew. Its faults are intercepted, lest they push it.
    pub(crate) fn step_over_return(&mut self) {
        let save = &mut self.vmcb.save;
        self.step = Some(Step {
            trap_flag: save.rflags & TRAP_FLAG,
            single_step: save.dr6 & SINGLE_STEP,
        });
        save.rflags |= TRAP_FLAG;
        save.dr6 &= !SINGLE_STEP;
        self.vmcb.intercept_return_faults(true);
    }

    fn end_step(&mut self, step: &Step, exit: Exit) -> Exit {
        const PAGE_FAULT: u8 = 14;
        self.vmcb.intercept_return_faults(false);
        let (_, fault_address) = self.vmcb.exit_info();
        let save = &mut self.vmcb.save;
        let is_done = matches!(exit, Exit::Exception(Event::DEBUG)) && save.dr6 & SINGLE_STEP != 0;
        if is_done && step.trap_flag != 0 {
            return exit;
        }
        let is_breakpoint = save.dr7 & ARMED != 0 && save.dr6 & Dr6Flags::TRAP.bits() != 0;
        save.dr6 = save.dr6 & !SINGLE_STEP | step.single_step;
        if is_done {
            return if is_breakpoint { exit } else { Exit::Returned };
        }
        save.rflags = save.rflags & !TRAP_FLAG | step.trap_flag;
        if matches!(exit, Exit::Exception(Event::Exception(PAGE_FAULT, _))) {
            save.cr2 = fault_address;
        }
        exit
    }

    pub(crate) fn skip(&mut self) {
        let next = exit::next_rip(&self.vmcb, self.has_next_rip);
        self.vmcb.set_interrupt_shadow(false);
        let save = &mut self.vmcb.save;
        save.rip = next;
        if save.rflags & TRAP_FLAG != 0 {
            save.dr6 |= SINGLE_STEP;
            self.inject(Event::DEBUG);
        }
    }

    #[inline]
    pub(crate) fn read(&self, register: Register) -> u64 {
        match register {
            Register::Xcr0 => self.extended.xcr0,
            Register::SpecCtrl => self.extended.spec_ctrl,
            _ => registers::read(&self.vmcb, &self.registers, register),
        }
    }

    #[inline]
    pub(crate) fn write(&mut self, register: Register, value: u64) {
        match register {
            Register::Xcr0 => self.extended.set_xcr0(value),
            Register::SpecCtrl => {
                self.keep_spec_ctrl(value);
                if self.extended.swaps_spec_ctrl {
                    self.extended.load_spec_ctrl();
                }
            }
            _ => registers::write(&mut self.vmcb, &mut self.registers, register, value),
        }
    }

    pub(crate) fn cpl(&self) -> u8 {
        self.vmcb.save.cpl
    }

    /// Sets SPEC_CTRL outside of a turn.
    pub(super) fn keep_spec_ctrl(&mut self, value: u64) {
        self.extended.spec_ctrl = value;
        if !self.extended.swaps_spec_ctrl {
            self.vmcb.save.spec_ctrl = value;
        }
    }

    pub(crate) fn takes_interrupts(&self) -> bool {
        self.vmcb.save.rflags & RFlags::INTERRUPT_FLAG.bits() != 0 && self.takes_nmis()
    }

    pub(crate) fn takes_nmis(&self) -> bool {
        !self.vmcb.interrupt_shadow() && !self.vmcb.has_event()
    }

    pub(crate) fn inject(&mut self, event: Event) {
        self.vmcb.inject(event);
    }

    pub(crate) fn set_window(&mut self, window: Window) {
        match window {
            Window::Closed => self.vmcb.close_window(),
            Window::Any => self.vmcb.open_window(None),
            Window::Class(class) => self.vmcb.open_window(Some(class)),
        }
    }

    pub(crate) fn watch_return(&mut self, on: bool) {
        self.vmcb.intercept_iret(on);
    }

    pub(crate) fn init(&mut self) {
        self.registers = Registers::default();
        self.vmcb.init_state();
        // The family, model and stepping, as CPUs leave them.
        self.registers.rdx = cpuid(1, 0).eax.into();
        self.extended.debug = [0; 4];
        self.vmcb.forget_event();
    }

    pub(crate) fn start_at(&mut self, vector: u8) {
        self.vmcb.start_at(vector);
    }
}
