//! A virtual CPU on SVM: its control block, and everything beside it that a world switch swaps.

use guest_proto::vcpu_page::Vectors;

use super::asid::Asid;
use super::exit;
use super::vmcb::Vmcb;
use super::{Cpu, Registers, permissions, switch};
use crate::arch::extended::{Area, Extended, Root};
use crate::arch::hw::{Event, Exit, TurnState};
use crate::memory::frame_table::OwnedFrame;
use crate::memory::physmap::Placed;

/// CPUID 8000_000A EDX: VMRUN loads SPEC_CTRL from the control block (APM vol. 2 §15.5.3).
const VIRTUAL_SPEC_CTRL: u32 = 1 << 20;

const TRAP_FLAG: u64 = 1 << 8;
/// DR6: a single step.
const SINGLE_STEP: u64 = 1 << 14;

/// A step over an IRET: the guest's own bits of RFLAGS and DR6 that the step uses.
#[derive(Debug)]
struct Step {
    trap_flag: u64,
    single_step: u64,
}

/// A virtual CPU.
#[derive(Debug)]
pub struct Guest {
    vmcb: Placed<Vmcb>,
    registers: Registers,
    area: Placed<Area>,
    pub(super) extended: Extended,
    /// Root's values, inside a turn.
    root: Root,
    /// `Cpu::host` of the CPU of the turn.
    host: u64,
    asid: Asid,
    /// Where the instruction of the last exit ends.
    next_rip: u64,
    has_next_rip: bool,
    /// The next entry is a step.
    step: Option<Step>,
}

impl Guest {
    /// After INIT. `components`: what of XSAVE's state the guest may use. `next_rip`: the CPU has
    /// next-RIP save.
    pub fn new(
        mut vmcb: Placed<Vmcb>,
        area: Placed<Area>,
        components: u64,
        has_next_rip: bool,
    ) -> Self {
        vmcb.init_guest(&permissions::guest_maps());
        let mut guest = Self {
            vmcb,
            registers: Registers::default(),
            area,
            extended: Extended {
                components,
                xcr0: 1,
                spec_ctrl: 0,
                swaps_spec_ctrl: super::cpuid(0x8000_000a, 0).edx & VIRTUAL_SPEC_CTRL == 0,
                tsc_aux: 0,
                debug: [0; 4],
            },
            root: Root::default(),
            host: 0,
            asid: Asid::default(),
            next_rip: 0,
            has_next_rip,
            step: None,
        };
        guest.init();
        guest
    }

    /// Its frames, when it ends.
    pub fn into_frames(self) -> [OwnedFrame; 2] {
        [self.vmcb.into_parts().1, self.area.into_parts().1]
    }

    /// Outside of a turn.
    pub(crate) fn vectors(&self) -> Vectors {
        self.area.vectors()
    }

    /// Outside of a turn.
    pub(crate) fn set_vectors(&mut self, vectors: &Vectors) {
        self.area.set_vectors(vectors);
    }

    pub(crate) fn vmcb(&self) -> &Vmcb {
        &self.vmcb
    }

    /// Its vector registers, outside of a turn.
    pub(super) fn area(&self) -> &Area {
        &self.area
    }

    pub(crate) fn vmcb_mut(&mut self) -> &mut Vmcb {
        &mut self.vmcb
    }

    pub(crate) fn load(&mut self, cpu: &mut Cpu, turn: &TurnState) {
        let index = cpu.index();
        if !cpu.asids.is_valid(&self.asid, index, turn.flush) {
            let (asid, flush) = cpu.asids.take(index, turn.flush);
            self.asid = asid;
            self.vmcb.set_asid(asid.number);
            if flush {
                self.vmcb.flush_next();
            }
        }
        self.vmcb.set_nested_map(turn.map.base().as_u64());
        self.vmcb.set_tsc_offset(turn.tsc_offset);
        self.host = cpu.host;
        self.extended
            .load(&cpu.features, &self.area, &mut self.root);
        // Breakpoints that are on must be there before the guest's first instruction.
        let armed = self.vmcb.dr7() & 0xff != 0;
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
        // SAFETY: the control block is complete (`init_guest`), its nested map holds only what the
        // frame table gave the partition, and the caller's turn has loaded the rest.
        unsafe { switch::enter(self.physical(), &mut self.registers, self.host) };
        self.vmcb.entered();
        self.vmcb.keep_interrupted_event();
        let (exit, next) = exit::decode(&self.vmcb, self.has_next_rip);
        self.next_rip = next;
        match self.step.take() {
            None => exit,
            Some(step) => self.end_step(&step, exit),
        }
    }

    /// By the trap flag, which IRET loads anew. Its faults are intercepted, lest they push it.
    pub(crate) fn step_over_return(&mut self) {
        let (flags, dr6, dr7) = (self.vmcb.rflags(), self.vmcb.dr6(), self.vmcb.dr7());
        self.step = Some(Step {
            trap_flag: flags & TRAP_FLAG,
            single_step: dr6 & SINGLE_STEP,
        });
        self.vmcb.set_rflags(flags | TRAP_FLAG);
        self.vmcb.set_debug(dr6 & !SINGLE_STEP, dr7);
        self.vmcb.intercept_return_faults(true);
    }

    fn end_step(&mut self, step: &Step, exit: Exit) -> Exit {
        const PAGE_FAULT: u8 = 14;
        self.vmcb.intercept_return_faults(false);
        let (dr6, dr7) = (self.vmcb.dr6(), self.vmcb.dr7());
        let is_done = exit == Exit::Exception(Event::DEBUG) && dr6 & SINGLE_STEP != 0;
        if is_done && step.trap_flag != 0 {
            return exit;
        }
        self.vmcb
            .set_debug(dr6 & !SINGLE_STEP | step.single_step, dr7);
        if is_done {
            let is_breakpoint = dr7 & 0xff != 0 && dr6 & 0xf != 0;
            return if is_breakpoint { exit } else { Exit::Returned };
        }
        let flags = self.vmcb.rflags() & !TRAP_FLAG;
        self.vmcb.set_rflags(flags | step.trap_flag);
        if matches!(exit, Exit::Exception(Event::Exception(PAGE_FAULT, _))) {
            let address = self.vmcb.exit_info().1;
            self.vmcb.set_cr2(address);
        }
        exit
    }

    pub(crate) fn skip(&mut self) {
        self.vmcb.set_rip(self.next_rip);
        self.vmcb.set_interrupt_shadow(false);
        if self.vmcb.rflags() & TRAP_FLAG != 0 {
            let (dr6, dr7) = (self.vmcb.dr6(), self.vmcb.dr7());
            self.vmcb.set_debug(dr6 | SINGLE_STEP, dr7);
            self.inject(Event::DEBUG);
        }
    }

    pub(crate) fn gpr(&self, n: usize) -> u64 {
        match n {
            0 => self.vmcb.rax(),
            4 => self.vmcb.rsp(),
            _ => self.registers.get(n),
        }
    }

    pub(crate) fn set_gpr(&mut self, n: usize, value: u64) {
        match n {
            0 => self.vmcb.set_rax(value),
            4 => self.vmcb.set_rsp(value),
            _ => self.registers.set(n, value),
        }
    }

    pub(crate) fn xcr0(&self) -> u64 {
        self.extended.xcr0
    }

    pub(crate) fn set_xcr0(&mut self, value: u64) {
        self.extended.set_xcr0(value);
    }

    pub(crate) fn spec_ctrl(&self) -> u64 {
        self.extended.spec_ctrl
    }

    pub(crate) fn set_spec_ctrl(&mut self, value: u64) {
        self.keep_spec_ctrl(value);
        if self.extended.swaps_spec_ctrl {
            self.extended.load_spec_ctrl();
        }
    }

    /// The same outside of a turn.
    pub(super) fn keep_spec_ctrl(&mut self, value: u64) {
        self.extended.spec_ctrl = value;
        if !self.extended.swaps_spec_ctrl {
            self.vmcb.set_spec_ctrl(value);
        }
    }

    pub(crate) fn takes_interrupts(&self) -> bool {
        const INTERRUPT_FLAG: u64 = 1 << 9;
        self.vmcb.rflags() & INTERRUPT_FLAG != 0 && self.takes_nmis()
    }

    pub(crate) fn takes_nmis(&self) -> bool {
        !self.vmcb.interrupt_shadow() && !self.vmcb.has_event()
    }

    pub(crate) fn inject(&mut self, event: Event) {
        self.vmcb.inject(event);
    }

    /// No event is under way.
    pub(super) fn forget_event(&mut self) {
        self.vmcb.forget_event();
    }

    pub(crate) fn load_debug_registers(&mut self) {
        self.extended.load_debug(&mut self.root);
        self.vmcb.intercept_debug_registers(false);
    }

    pub(crate) fn init(&mut self) {
        self.registers = Registers::default();
        self.vmcb.init_state();
        // The family, model and stepping, as CPUs leave them.
        self.registers.rdx = super::cpuid(1, 0).eax.into();
        self.extended.debug = [0; 4];
        self.forget_event();
    }

    fn physical(&self) -> u64 {
        self.vmcb.frame().base().as_u64()
    }
}
