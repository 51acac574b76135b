//! The vendor seam: a virtual CPU as the hardware holds it, and why it stopped.
//!
//! [`Hw`] is closed: one variant per vendor. Nothing above this module knows a control block, and
//! nothing in it knows what an exit means to a guest.

use guest_proto::hypercall::ExitKind;
use guest_proto::vcpu_page::{VcpuState, Vectors};

use super::svm;
use crate::memory::Frame;

/// Why a virtual CPU stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// A physical interrupt waits for root.
    Interrupt,
    /// A physical NMI waits for root.
    Nmi,
    /// An INIT signal waits for this CPU.
    Init,
    /// The guest can take interrupts now ([`Hw::ask_for_window`]).
    InterruptWindow,
    /// It is about to execute IRET ([`Hw::watch_return`]).
    Return,
    /// It has executed an IRET ([`Hw::step_over_return`]).
    Returned,
    /// CPUID.
    Cpuid,
    /// HLT.
    Halt,
    /// RDMSR or WRMSR, of the register in ECX.
    Msr {
        /// WRMSR.
        is_write: bool,
    },
    /// IN, OUT, INS or OUTS.
    Port(PortAccess),
    /// VMMCALL or VMCALL.
    Hypercall,
    /// Guest physical memory that is not mapped, or not for this access.
    NestedFault(NestedFault),
    /// XSETBV.
    Xsetbv,
    /// INVD or WBINVD.
    CacheFlush,
    /// First use of a debug register: [`Hw::load_debug_registers`], then enter again.
    DebugRegister,
    /// An exception that must be intercepted, lest the CPU raise it for ever: to be injected.
    Exception(Event),
    /// A machine check, which is root's.
    MachineCheck,
    /// An instruction that the guest does not have: #UD.
    Forbidden,
    /// RDPMC: there are no counters, #GP.
    PerformanceCounter,
    /// Triple fault.
    Shutdown,
    /// The CPU refused the state.
    Refused,
    /// An exit that was not asked for, by its number.
    Other(u32),
}

impl Exit {
    /// As what it is counted. A port access or fault that ends otherwise is counted where that is
    /// found out.
    pub const fn kind(self) -> ExitKind {
        match self {
            Self::Interrupt => ExitKind::Interrupt,
            Self::Nmi => ExitKind::Nmi,
            Self::Init => ExitKind::Init,
            Self::InterruptWindow | Self::Return | Self::Returned => ExitKind::InterruptWindow,
            Self::Cpuid => ExitKind::Cpuid,
            Self::Halt => ExitKind::Halt,
            Self::Msr { is_write: true } => ExitKind::MsrWrite,
            Self::Msr { is_write: false } => ExitKind::MsrRead,
            Self::Port(_) => ExitKind::Port,
            Self::Hypercall => ExitKind::Hypercall,
            Self::NestedFault(_) => ExitKind::NestedFault,
            Self::Xsetbv => ExitKind::Xsetbv,
            Self::DebugRegister => ExitKind::DebugRegister,
            Self::Exception(_) | Self::MachineCheck => ExitKind::Exception,
            Self::Forbidden | Self::PerformanceCounter => ExitKind::Forbidden,
            Self::Shutdown => ExitKind::Shutdown,
            Self::CacheFlush | Self::Refused | Self::Other(_) => ExitKind::Other,
        }
    }
}

/// An exit in the hardware's own words, for a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawExit {
    /// Its number.
    pub code: u32,
    /// What comes with it.
    pub info: (u64, u64),
    /// Instruction pointer.
    pub rip: u64,
}

/// A port access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortAccess {
    /// Port.
    pub port: u16,
    /// Bytes: 1, 2 or 4.
    pub size: u8,
    /// OUT or OUTS.
    pub is_write: bool,
    /// INS or OUTS.
    pub string: bool,
    /// With a REP prefix.
    pub rep: bool,
}

/// A nested page fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NestedFault {
    /// Guest physical address.
    pub address: u64,
    /// As the CPU gives it.
    pub error_code: u64,
    /// Bytes of the instruction, where the CPU gives them.
    pub instruction: [u8; 15],
    /// How many of them.
    pub instruction_len: u8,
}

impl NestedFault {
    /// A write.
    pub const fn is_write(&self) -> bool {
        self.error_code & 2 != 0
    }
}

/// Something to inject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// An external interrupt.
    Interrupt(u8),
    /// A non-maskable interrupt.
    Nmi,
    /// An exception, with its error code if it has one.
    Exception(u8, Option<u32>),
}

impl Event {
    /// #DB.
    pub const DEBUG: Self = Self::Exception(1, None);
    /// #UD.
    pub const INVALID_OPCODE: Self = Self::Exception(6, None);
    /// #GP(0).
    pub const GENERAL_PROTECTION: Self = Self::Exception(13, Some(0));

    /// #MC.
    pub const MACHINE_CHECK: Self = Self::Exception(18, None);

    /// Exception `vector`, with `error_code` where this exception has one (APM vol. 2 §8.4).
    pub const fn exception(vector: u8, error_code: u32) -> Self {
        match vector {
            8 | 10..=14 | 17 | 21 | 29 | 30 => Self::Exception(vector, Some(error_code)),
            _ => Self::Exception(vector, None),
        }
    }
}

/// A state that a virtual CPU cannot be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadState;

/// A general register, by its number in instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Gpr {
    /// RAX.
    Rax = 0,
    /// RCX.
    Rcx = 1,
    /// RDX.
    Rdx = 2,
    /// RBX.
    Rbx = 3,
}

/// What a turn begins with, besides the virtual CPU's own state.
#[derive(Clone, Copy, Debug)]
pub struct TurnState {
    /// Top table of the nested map.
    pub map: Frame,
    /// Which state of it translations must not be older than.
    pub flush: u64,
    /// Guest's time-stamp counter less this CPU's.
    pub tsc_offset: u64,
}

/// A virtual CPU in the hardware's form.
#[derive(Debug)]
pub enum Hw {
    /// AMD.
    Svm(svm::Guest),
}

macro_rules! vendor {
    ($self:ident, $guest:ident => $call:expr) => {
        match $self {
            Hw::Svm($guest) => $call,
        }
    };
}

impl Hw {
    /// Puts its state into CPU `cpu`. Every [`Hw::enter`] lies between this and [`Hw::unload`],
    /// on one CPU.
    pub fn load(&mut self, cpu: &mut super::Cpu, turn: &TurnState) {
        vendor!(self, guest => guest.load(cpu, turn));
    }

    /// Takes its state out of the CPU, and puts root's back.
    pub fn unload(&mut self, cpu: &mut super::Cpu) {
        vendor!(self, guest => guest.unload(cpu));
    }

    /// Runs the guest until the next exit.
    #[inline]
    pub fn enter(&mut self) -> Exit {
        vendor!(self, guest => guest.enter())
    }

    /// The last exit, for a report.
    pub fn raw_exit(&self) -> RawExit {
        vendor!(self, guest => guest.vmcb().raw_exit())
    }

    /// Skips the instruction that made the last exit.
    pub fn skip(&mut self) {
        vendor!(self, guest => guest.skip());
    }

    /// A general register.
    pub fn gpr(&self, register: Gpr) -> u64 {
        vendor!(self, guest => guest.gpr(register as usize))
    }

    /// Sets a general register.
    pub fn set_gpr(&mut self, register: Gpr, value: u64) {
        vendor!(self, guest => guest.set_gpr(register as usize, value));
    }

    /// Instruction pointer.
    pub fn rip(&self) -> u64 {
        vendor!(self, guest => guest.vmcb().rip())
    }

    /// Control register 0.
    pub fn cr0(&self) -> u64 {
        vendor!(self, guest => guest.vmcb().cr0())
    }

    /// Control register 4.
    pub fn cr4(&self) -> u64 {
        vendor!(self, guest => guest.vmcb().cr4())
    }

    /// Sets control register 2.
    pub fn set_cr2(&mut self, value: u64) {
        vendor!(self, guest => guest.vmcb_mut().set_cr2(value));
    }

    /// Current privilege level.
    pub fn cpl(&self) -> u8 {
        vendor!(self, guest => guest.vmcb().cpl())
    }

    /// EFER as the guest sees it.
    pub fn efer(&self) -> u64 {
        vendor!(self, guest => guest.vmcb().efer())
    }

    /// Sets EFER, checked by the caller.
    pub fn set_efer(&mut self, value: u64) {
        vendor!(self, guest => guest.vmcb_mut().set_efer(value));
    }

    /// PAT.
    pub fn pat(&self) -> u64 {
        vendor!(self, guest => guest.vmcb().pat())
    }

    /// Sets PAT, checked by the caller.
    pub fn set_pat(&mut self, value: u64) {
        vendor!(self, guest => guest.vmcb_mut().set_pat(value));
    }

    /// XCR0.
    pub fn xcr0(&self) -> u64 {
        vendor!(self, guest => guest.xcr0())
    }

    /// Sets XCR0, checked by the caller. Inside a turn.
    pub fn set_xcr0(&mut self, value: u64) {
        vendor!(self, guest => guest.set_xcr0(value));
    }

    /// SPEC_CTRL.
    pub fn spec_ctrl(&self) -> u64 {
        vendor!(self, guest => guest.spec_ctrl())
    }

    /// Sets SPEC_CTRL, checked by the caller. Inside a turn.
    pub fn set_spec_ctrl(&mut self, value: u64) {
        vendor!(self, guest => guest.set_spec_ctrl(value));
    }

    /// Changes the guest's time-stamp counter's distance to this CPU's, inside a turn.
    pub fn set_tsc_offset(&mut self, offset: u64) {
        vendor!(self, guest => guest.vmcb_mut().set_tsc_offset(offset));
    }

    /// CR8.
    pub fn cr8(&self) -> u8 {
        vendor!(self, guest => guest.vmcb().virtual_tpr())
    }

    /// Sets CR8.
    pub fn set_cr8(&mut self, value: u8) {
        vendor!(self, guest => guest.vmcb_mut().set_virtual_tpr(value));
    }

    /// Whether an interrupt can be injected at the next entry.
    pub fn takes_interrupts(&self) -> bool {
        vendor!(self, guest => guest.takes_interrupts())
    }

    /// Whether an NMI can be injected at the next entry, if none is in service.
    pub fn takes_nmis(&self) -> bool {
        vendor!(self, guest => guest.takes_nmis())
    }

    /// Injects at the next entry, in place of what would have been; an interrupt in place of a window.
    pub fn inject(&mut self, event: Event) {
        vendor!(self, guest => guest.inject(event));
    }

    /// [`Exit::InterruptWindow`] when the guest can take an interrupt: of this priority class, or
    /// any if `None`.
    pub fn ask_for_window(&mut self, class: Option<u8>) {
        vendor!(self, guest => guest.vmcb_mut().ask_for_window(class));
    }

    /// No longer.
    pub fn forget_window(&mut self) {
        vendor!(self, guest => guest.vmcb_mut().forget_window());
    }

    /// Whether IRET makes [`Exit::Return`].
    pub fn watch_return(&mut self, on: bool) {
        vendor!(self, guest => guest.vmcb_mut().intercept_iret(on));
    }

    /// At the next entry the guest executes one instruction, which is an IRET: [`Exit::Returned`], or another exit and the IRET
    /// has not been executed. Nothing may be injected with it.
    pub fn step_over_return(&mut self) {
        vendor!(self, guest => guest.step_over_return());
    }

    /// Puts the guest's debug registers into the CPU, for the rest of the turn.
    pub fn load_debug_registers(&mut self) {
        vendor!(self, guest => guest.load_debug_registers());
    }

    /// The state after INIT (APM vol. 2 table 14-1).
    pub fn init(&mut self) {
        vendor!(self, guest => guest.init());
    }

    /// Where a SIPI with this vector starts.
    pub fn start_at(&mut self, vector: u8) {
        vendor!(self, guest => guest.vmcb_mut().start_at(vector));
    }

    /// Copies the state out; what is not the hardware's stays 0.
    pub fn state(&self) -> VcpuState {
        vendor!(self, guest => guest.state())
    }

    /// Takes a state over, if it can be loaded without harm.
    ///
    /// # Errors
    ///
    /// [`BadState`], with nothing changed.
    pub fn set_state(&mut self, state: &VcpuState, xcr0_allowed: bool) -> Result<(), BadState> {
        vendor!(self, guest => guest.set_state(state, xcr0_allowed))
    }

    /// Takes general registers, RIP and RFLAGS over.
    pub fn set_registers(&mut self, state: &VcpuState) {
        vendor!(self, guest => guest.set_registers(state));
    }

    /// XMM registers, outside of a turn.
    pub fn vectors(&self) -> Vectors {
        vendor!(self, guest => guest.vectors())
    }

    /// Takes XMM registers over, outside of a turn.
    pub fn set_vectors(&mut self, vectors: &Vectors) {
        vendor!(self, guest => guest.set_vectors(vectors));
    }
}
