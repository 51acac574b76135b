//! Everything there is one of: what a hypercall and a virtual CPU's turn work on.
//!
//! Boot makes it once, before any CPU enters VM 0. It allocates nothing: the frame table and
//! root's tables lie in frames that boot reserved, partitions and counters in static memory.

use crate::counters::ExitCounters;
use crate::log::Log;
use crate::memory::Memory;
use crate::partition::Partitions;

/// The machine.
#[derive(Debug)]
pub struct Machine {
    /// Frames, epochs, root's nested map.
    pub memory: Memory,
    /// Partitions but root.
    pub partitions: Partitions,
    /// What boot found out.
    pub facts: MachineFacts,
    /// Exits of VM 0 by physical CPU.
    pub root_counters: &'static [ExitCounters],
    /// What the microvisor said.
    pub log: &'static Log,
}

/// What boot found out about the machine.
#[derive(Clone, Copy, Debug)]
pub struct MachineFacts {
    /// `cpuid::features`.
    pub features: u32,
    /// CPUs that run the microvisor.
    pub cpus: u32,
    /// Frames of RAM.
    pub frames: u64,
    /// Of those, taken at boot.
    pub reserved_frames: u64,
    /// The CPU can tell when a guest's task priority falls below a class: see `arch::has_tpr_window`.
    pub tpr_window: bool,
}

impl Machine {
    /// The machine of these parts, nothing counted yet.
    pub const fn new(
        memory: Memory,
        partitions: Partitions,
        facts: MachineFacts,
        root_counters: &'static [ExitCounters],
        log: &'static Log,
    ) -> Self {
        Self {
            memory,
            partitions,
            facts,
            root_counters,
            log,
        }
    }
}
