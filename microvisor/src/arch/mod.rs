//! The CPU. `hw` is the door to it, whatever its vendor; `svm` is AMD; `extended` is the state that a world switch does
//! not swap by itself. `paging`, `stack` and `exception` are the microvisor's own.

pub mod boot;
mod exception;
pub mod exit;
mod extended;
pub mod hw;
mod instructions;
pub mod layout;
pub mod paging;
mod speculation;
pub mod stack;
mod svm;

pub use exception::try_read_msr;
pub use extended::{AREA_SIZE, predict_anew};
pub use instructions::{
    apic_id, cpuid, halt, in_machine_check, read_port, shut_down, tsc, write_back_caches,
    write_port,
};
pub use speculation::Speculation;
pub use svm::{guest_efer, root_efer};

use instructions::{read_msr, write_msr};

/// Facts about the machine's CPUs, and the policy for them.
#[derive(Clone, Copy, Debug)]
pub struct CpuFacts {
    /// Features that the CPU offers and this microvisor uses.
    pub features: guest_proto::cpuid::Features,
    /// The CPU opens the window for interrupts when a write of CR8 lets a virtual interrupt's class in (APM vol. 2
    /// §15.21.2). Without it an interrupt that the task priority holds up waits for the next exit.
    pub tpr_window: bool,
    /// Policy about speculative execution.
    pub speculation: Speculation,
}
