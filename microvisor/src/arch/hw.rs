//! The door to the CPU: a guest's virtual CPU, and VM 0 on a physical CPU, whatever the vendor.
//!
//! [`Guest`] and [`Root`] are closed: one variant for each vendor. Nothing outside of `arch` knows a control block, and
//! nothing inside of `arch` knows what an exit means to a guest.

use guest_proto::vcpu_page::{VcpuState, Vectors};

use super::exit::{BadState, Event, Exit, RawExit, TurnState};
use super::svm;
pub use super::svm::Cpu;
use crate::memory::frame_table::OwnedFrame;
use crate::memory::{Frame, PhysMap};

/// A register of a virtual CPU, or of VM 0 on a CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// RAX.
    Rax,
    /// RCX.
    Rcx,
    /// RDX.
    Rdx,
    /// RBX.
    Rbx,
    /// RSI.
    Rsi,
    /// RDI.
    Rdi,
    /// R8.
    R8,
    /// R10.
    R10,
    /// Instruction pointer.
    Rip,
    /// Control register 0.
    Cr0,
    /// Control register 2.
    Cr2,
    /// Control register 4.
    Cr4,
    /// Control register 8: the task priority, of which the CPU keeps 4 bits.
    Cr8,
    /// EFER as the guest sees it.
    Efer,
    /// PAT.
    Pat,
    /// XCR0, which is a guest's own. Written inside a turn only.
    Xcr0,
    /// SPEC_CTRL, which is a guest's own. Written inside a turn only.
    SpecCtrl,
    /// The guest's time-stamp counter less this CPU's.
    TscOffset,
}

/// When [`Exit::InterruptWindow`] comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// Never.
    Closed,
    /// As soon as the guest can take an interrupt of any priority class.
    Any,
    /// As soon as the guest can take an interrupt of this priority class.
    Class(u8),
}

/// A virtual CPU in the hardware's form.
#[derive(Debug)]
pub enum Guest {
    /// AMD.
    Svm(svm::Guest),
}

macro_rules! vendor {
    ($self:ident, $inner:ident => $call:expr) => {
        match $self {
            Self::Svm($inner) => $call,
        }
    };
}

impl Guest {
    /// Frames that a virtual CPU's hardware form takes.
    pub const FRAMES: usize = svm::Guest::FRAMES;

    /// Makes a virtual CPU in the state after INIT. `components` are those of XSAVE's state that the guest may use.
    ///
    /// # Errors
    ///
    /// Gives the frames back if one lies outside of `map`.
    pub fn new(
        map: PhysMap,
        frames: [OwnedFrame; Self::FRAMES],
        components: u64,
    ) -> Result<Self, [OwnedFrame; Self::FRAMES]> {
        svm::Guest::new(map, frames, components).map(Self::Svm)
    }

    /// Ends the virtual CPU, and gives its frames back.
    pub fn into_frames(self) -> [OwnedFrame; Self::FRAMES] {
        vendor!(self, guest => guest.into_frames())
    }

    /// Puts the virtual CPU's state into CPU `cpu`. Every [`Guest::enter`] lies between this and [`Guest::unload`],
    /// on one CPU.
    pub fn load(&mut self, cpu: &mut Cpu, turn: &TurnState) {
        vendor!(self, guest => guest.load(cpu, turn));
    }

    /// Takes the virtual CPU's state out of the CPU, and puts root's back.
    pub fn unload(&mut self, cpu: &mut Cpu) {
        vendor!(self, guest => guest.unload(cpu));
    }

    /// Runs the guest until its next exit.
    #[inline]
    pub fn enter(&mut self) -> Exit {
        vendor!(self, guest => guest.enter())
    }

    /// Returns the last exit in the hardware's numbers.
    pub fn raw_exit(&self) -> RawExit {
        vendor!(self, guest => guest.raw_exit())
    }

    /// Skips the instruction that made the last exit.
    pub fn skip(&mut self) {
        vendor!(self, guest => guest.skip());
    }

    /// Reads a register.
    #[inline]
    pub fn read(&self, register: Register) -> u64 {
        vendor!(self, guest => guest.read(register))
    }

    /// Writes a register. The caller has checked the value.
    #[inline]
    pub fn write(&mut self, register: Register, value: u64) {
        vendor!(self, guest => guest.write(register, value));
    }

    /// Returns the current privilege level.
    pub fn cpl(&self) -> u8 {
        vendor!(self, guest => guest.cpl())
    }

    /// Whether an interrupt can be injected at the next entry.
    pub fn takes_interrupts(&self) -> bool {
        vendor!(self, guest => guest.takes_interrupts())
    }

    /// Whether an NMI can be injected at the next entry, if none is in service.
    pub fn takes_nmis(&self) -> bool {
        vendor!(self, guest => guest.takes_nmis())
    }

    /// Injects `event` at the next entry, in place of any other event. An interrupt closes the window, too.
    pub fn inject(&mut self, event: Event) {
        vendor!(self, guest => guest.inject(event));
    }

    /// Sets when [`Exit::InterruptWindow`] comes. While an interrupt is on its way, nothing changes.
    pub fn set_window(&mut self, window: Window) {
        vendor!(self, guest => guest.set_window(window));
    }

    /// Sets whether IRET makes [`Exit::Return`].
    pub fn watch_return(&mut self, on: bool) {
        vendor!(self, guest => guest.watch_return(on));
    }

    /// Makes the guest execute one instruction at the next entry, which is an IRET. [`Exit::Returned`] tells that it
    /// did; after any other exit it has not executed the IRET. Nothing may be injected at that entry.
    pub fn step_over_return(&mut self) {
        vendor!(self, guest => guest.step_over_return());
    }

    /// Sets the state after INIT (APM vol. 2 table 14-1).
    pub fn init(&mut self) {
        vendor!(self, guest => guest.init());
    }

    /// Sets where a SIPI with this vector starts.
    pub fn start_at(&mut self, vector: u8) {
        vendor!(self, guest => guest.start_at(vector));
    }

    /// Returns the state; fields that are not the hardware's are 0.
    pub fn state(&self) -> VcpuState {
        vendor!(self, guest => guest.state())
    }

    /// Sets the state, if the CPU can load it without harm. `xcr0_allowed` tells that the caller has checked XCR0.
    ///
    /// # Errors
    ///
    /// Fails with [`BadState`], and changes nothing.
    pub fn set_state(&mut self, state: &VcpuState, xcr0_allowed: bool) -> Result<(), BadState> {
        vendor!(self, guest => guest.set_state(state, xcr0_allowed))
    }

    /// Sets general registers, RIP and RFLAGS.
    pub fn set_registers(&mut self, state: &VcpuState) {
        vendor!(self, guest => guest.set_registers(state));
    }

    /// Returns the XMM registers. Outside of a turn.
    pub fn vectors(&self) -> Vectors {
        vendor!(self, guest => guest.vectors())
    }

    /// Sets the XMM registers. Outside of a turn.
    pub fn set_vectors(&mut self, vectors: &Vectors) {
        vendor!(self, guest => guest.set_vectors(vectors));
    }
}

/// VM 0 on one physical CPU.
#[derive(Debug)]
pub enum Root {
    /// AMD.
    Svm(svm::Root),
}

impl Root {
    /// Returns the physical CPU, for the turns of guests.
    pub fn cpu(&mut self) -> &mut Cpu {
        vendor!(self, root => root.cpu())
    }

    /// Returns which CPU this is, from 0.
    pub fn index(&self) -> usize {
        vendor!(self, root => root.index())
    }

    /// Sets the top table of VM 0's nested map. The next entry uses no translation of the map before.
    pub fn set_nested_map(&mut self, top: Frame) {
        vendor!(self, root => root.set_nested_map(top));
    }

    /// Makes the next entry forget VM 0's translations.
    pub fn flush(&mut self) {
        vendor!(self, root => root.flush());
    }

    /// Makes INIT, NMIs and interrupts wait until this CPU is in guest mode.
    pub fn hold_events(&mut self) {
        vendor!(self, root => root.hold_events());
    }

    /// Runs VM 0 until its next exit.
    #[inline]
    pub fn enter(&mut self) -> Exit {
        vendor!(self, root => root.enter())
    }

    /// Returns the last exit in the hardware's numbers.
    pub fn raw_exit(&self) -> RawExit {
        vendor!(self, root => root.raw_exit())
    }

    /// Skips the instruction that made the last exit.
    pub fn skip(&mut self) {
        vendor!(self, root => root.skip());
    }

    /// Reads a register.
    #[inline]
    pub fn read(&self, register: Register) -> u64 {
        vendor!(self, root => root.read(register))
    }

    /// Writes a register. The caller has checked the value.
    #[inline]
    pub fn write(&mut self, register: Register, value: u64) {
        vendor!(self, root => root.write(register, value));
    }

    /// Returns the current privilege level.
    pub fn cpl(&self) -> u8 {
        vendor!(self, root => root.cpl())
    }

    /// Injects `event` at the next entry.
    pub fn inject(&mut self, event: Event) {
        vendor!(self, root => root.inject(event));
    }

    /// Writes a model-specific register of the CPU. Root's policy has let the value pass. Returns false if the CPU
    /// refuses it.
    #[must_use]
    pub fn write_msr(&mut self, number: u32, value: u64) -> bool {
        vendor!(self, root => root.write_msr(number, value))
    }

    /// Consumes the INIT of the last exit, which would be there again at the next entry (APM vol. 2 §15.28). Returns
    /// whether an NMI came meanwhile, or `None` if this CPU would obey the INIT.
    pub fn consume_init(&mut self) -> Option<bool> {
        vendor!(self, root => root.consume_init())
    }
}
