//! The door to the CPU: a guest's virtual CPU, and VM 0 on a physical CPU, whatever the vendor.
//!
//! [`Guest`] and [`Root`] are closed: one variant for each vendor. Nothing outside of `arch` knows a control block, and
//! nothing inside of `arch` knows what an exit means to a guest.

use guest_proto::vcpu_page::{ExecutionState, GeneralRegisters, VcpuState, Vectors};

use super::exit::{BadState, Event, Exit, NestedFault, RawExit, TurnState};
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

/// Defines an enum with a variant for each vendor. Each of its methods calls the vendor's method of the same name. A
/// method names the type of `self`, so that one pattern matches every method.
macro_rules! door {
    (
        $(#[$about:meta])*
        pub enum $name:ident;
        $(
            $(#[$attribute:meta])*
            pub fn $method:ident($this:ident: $receiver:ty $(, $argument:ident: $type:ty)*) $(-> $output:ty)?;
        )*
    ) => {
        $(#[$about])*
        #[derive(Debug)]
        pub enum $name {
            /// AMD.
            Svm(svm::$name),
        }

        impl $name {
            $(
                $(#[$attribute])*
                pub fn $method($this: $receiver $(, $argument: $type)*) $(-> $output)? {
                    match $this {
                        Self::Svm(vendor) => vendor.$method($($argument),*),
                    }
                }
            )*
        }
    };
}

door! {
    /// A virtual CPU in the hardware's form.
    pub enum Guest;

    /// Ends the virtual CPU, and gives its frames back.
    pub fn into_frames(self: Self) -> [OwnedFrame; Self::FRAMES];

    /// Puts the virtual CPU's state into CPU `cpu`. Every [`Guest::enter`] lies between this and [`Guest::unload`],
    /// on one CPU.
    pub fn load(self: &mut Self, cpu: &mut Cpu, turn: &TurnState);

    /// Takes the virtual CPU's state out of the CPU, and puts root's back.
    pub fn unload(self: &mut Self, cpu: &mut Cpu);

    /// Runs the guest until its next exit.
    #[inline]
    pub fn enter(self: &mut Self) -> Exit;

    /// Returns the last exit in the hardware's numbers.
    pub fn raw_exit(self: &Self) -> RawExit;

    /// Returns the access that the last exit, [`Exit::NestedFault`], is about.
    pub fn nested_fault(self: &Self) -> NestedFault;

    /// Skips the instruction that made the last exit.
    pub fn skip(self: &mut Self);

    /// Reads a register.
    #[inline]
    pub fn read(self: &Self, register: Register) -> u64;

    /// Writes a register. The caller has checked the value.
    #[inline]
    pub fn write(self: &mut Self, register: Register, value: u64);

    /// Returns the current privilege level.
    pub fn cpl(self: &Self) -> u8;

    /// Whether an interrupt can be injected at the next entry.
    pub fn takes_interrupts(self: &Self) -> bool;

    /// Whether an NMI can be injected at the next entry, if none is in service.
    pub fn takes_nmis(self: &Self) -> bool;

    /// Injects `event` at the next entry, in place of any other event. An interrupt closes the window, too.
    pub fn inject(self: &mut Self, event: Event);

    /// Sets when [`Exit::InterruptWindow`] comes. While an interrupt is on its way, nothing changes.
    pub fn set_window(self: &mut Self, window: Window);

    /// Sets whether IRET makes [`Exit::Return`].
    pub fn watch_return(self: &mut Self, on: bool);

    /// Makes the guest execute one instruction at the next entry, which is an IRET. [`Exit::Returned`] tells that it
    /// did; after any other exit it has not executed the IRET. Nothing may be injected at that entry.
    pub fn step_over_return(self: &mut Self);

    /// Sets the state after INIT (APM vol. 2 table 14-1).
    pub fn init(self: &mut Self);

    /// Sets where a SIPI with this vector starts.
    pub fn start_at(self: &mut Self, vector: u8);

    /// Returns the state; fields that are not the hardware's are 0.
    pub fn state(self: &Self) -> VcpuState;

    /// Sets the state, if the CPU can load it without harm. `xcr0_allowed` tells that the caller has checked XCR0.
    ///
    /// # Errors
    ///
    /// Fails with [`BadState`], and changes nothing.
    pub fn set_state(self: &mut Self, state: &VcpuState, xcr0_allowed: bool) -> Result<(), BadState>;

    /// Returns the registers by which one instruction executes.
    pub fn execution_state(self: &Self) -> ExecutionState;

    /// Sets general registers, RIP and RFLAGS.
    pub fn set_registers(self: &mut Self, registers: &GeneralRegisters);

    /// Returns the XMM registers. Outside of a turn.
    pub fn vectors(self: &Self) -> Vectors;

    /// Sets the XMM registers. Outside of a turn.
    pub fn set_vectors(self: &mut Self, vectors: &Vectors);
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
}

door! {
    /// VM 0 on one physical CPU.
    pub enum Root;

    /// Returns the physical CPU, for the turns of guests.
    pub fn cpu(self: &mut Self) -> &mut Cpu;

    /// Returns which CPU this is, from 0.
    pub fn index(self: &Self) -> usize;

    /// Sets the top table of VM 0's nested map. The next entry uses no translation of the map before.
    pub fn set_nested_map(self: &mut Self, top: Frame);

    /// Makes the next entry forget VM 0's translations.
    pub fn flush(self: &mut Self);

    /// Makes INIT, NMIs and interrupts wait until this CPU is in guest mode.
    pub fn hold_events(self: &mut Self);

    /// Runs VM 0 until its next exit.
    #[inline]
    pub fn enter(self: &mut Self) -> Exit;

    /// Returns the last exit in the hardware's numbers.
    pub fn raw_exit(self: &Self) -> RawExit;

    /// Skips the instruction that made the last exit.
    pub fn skip(self: &mut Self);

    /// Reads a register.
    #[inline]
    pub fn read(self: &Self, register: Register) -> u64;

    /// Writes a register. The caller has checked the value.
    #[inline]
    pub fn write(self: &mut Self, register: Register, value: u64);

    /// Returns the current privilege level.
    pub fn cpl(self: &Self) -> u8;

    /// Injects `event` at the next entry.
    pub fn inject(self: &mut Self, event: Event);

    /// Writes a model-specific register of the CPU. Root's policy has let the value pass. Returns false if the CPU
    /// refuses it.
    #[must_use]
    pub fn write_msr(self: &mut Self, number: u32, value: u64) -> bool;

    /// Consumes the INIT of the last exit, which would be there again at the next entry (APM vol. 2 §15.28). Returns
    /// whether an NMI came meanwhile, or `None` if this CPU would obey the INIT.
    pub fn consume_init(self: &mut Self) -> Option<bool>;
}
