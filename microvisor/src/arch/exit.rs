//! Why a CPU left guest mode, and what goes into a guest: the words in which the vendors' modules and the rest of the
//! microvisor speak of a virtual CPU.

use crate::memory::{Frame, Gpa};

/// Why a virtual CPU, or VM 0 on a CPU, stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// A physical interrupt waits for root.
    Interrupt,
    /// A physical NMI waits for root.
    Nmi,
    /// An INIT signal waits for this CPU.
    Init,
    /// The guest can take interrupts now ([`Guest::set_window`](super::hw::Guest::set_window)).
    InterruptWindow,
    /// The guest is about to execute IRET ([`Guest::watch_return`](super::hw::Guest::watch_return)).
    Return,
    /// The guest has executed an IRET ([`Guest::step_over_return`](super::hw::Guest::step_over_return)).
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
    /// Access to guest physical memory that is not mapped, or not for this access
    /// ([`Guest::nested_fault`](super::hw::Guest::nested_fault)).
    NestedFault,
    /// XSETBV.
    Xsetbv,
    /// INVD or WBINVD.
    CacheFlush,
    /// First use of a debug register. The guest's debug registers are in the CPU now: enter again.
    DebugRegister,
    /// An exception to inject. It must be intercepted, lest the CPU raise it for ever.
    Exception(Event),
    /// A machine check. Root handles it.
    MachineCheck,
    /// An instruction that the guest does not have. It is answered with #UD.
    Forbidden,
    /// RDPMC. There are no counters, so it is answered with #GP.
    PerformanceCounter,
    /// Triple fault.
    Shutdown,
    /// The CPU refused the state of the virtual CPU.
    Refused,
    /// An exit that was not asked for, with its number.
    Other(u32),
}

/// An exit in the hardware's own numbers, for a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawExit {
    /// Exit code.
    pub code: u32,
    /// The two words that come with the exit code.
    pub info: (u64, u64),
    /// Instruction pointer.
    pub rip: u64,
}

/// A port access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortAccess {
    /// First port.
    pub port: u16,
    /// Bytes: 1, 2 or 4.
    pub size: u8,
    /// The instruction is OUT or OUTS.
    pub is_write: bool,
    /// The instruction is INS or OUTS.
    pub string: bool,
    /// The instruction has a REP prefix.
    pub rep: bool,
}

/// A nested page fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NestedFault {
    /// Address of the access.
    pub address: Gpa,
    /// Error code (APM vol. 2 §15.25.6).
    pub error_code: u64,
    /// Bytes of the instruction, where the CPU gives them.
    pub instruction: [u8; 15],
    /// Count of bytes in `instruction`; 0 where the CPU gives none.
    pub instruction_len: u8,
}

impl NestedFault {
    /// Whether the access was a write.
    pub const fn is_write(&self) -> bool {
        self.error_code & 2 != 0
    }
}

/// An interrupt or exception to inject.
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

/// Error: a virtual CPU cannot be given this state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadState;

/// The part of a turn's state that is not the virtual CPU's own.
#[derive(Clone, Copy, Debug)]
pub struct TurnState {
    /// Top table of the partition's nested map.
    pub map: Frame,
    /// Generation of the nested map. The TLB must hold no translation of an older one.
    pub flush: u64,
    /// The guest's time-stamp counter less this CPU's.
    pub tsc_offset: u64,
}
