//! Everything there is one of: what a hypercall and a virtual CPU's turn work on.
//!
//! Boot makes it once, before any CPU enters VM 0. It allocates nothing: the frame table and
//! root's tables lie in frames that boot reserved, partitions and counters in static memory.

use crate::arch::CpuFacts;
use crate::counters::ExitCounters;
use crate::log::Log;
use crate::memory::{Hpa, Memory};
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
    /// Its CPUs.
    pub cpu: CpuFacts,
    /// CPUs that run the microvisor.
    pub cpus: u32,
    /// Frames of RAM.
    pub frames: u64,
    /// Of those, taken at boot.
    pub reserved_frames: u64,
    /// Types of memory.
    pub types: MemoryTypes,
}

/// What decides over the types of memory: root may set them for what is no RAM.
#[derive(Clone, Copy, Debug)]
pub struct MemoryTypes {
    /// End of the RAM below 4 GiB.
    pub low: Hpa,
    /// End of all RAM.
    pub high: Hpa,
    /// End of the physical addresses that the CPU has.
    pub end: Hpa,
    /// The boot CPU's variable ranges, MSRs 0x200 to 0x21f; 0 for one that is not there.
    pub variable: [u64; 32],
    /// The boot CPU's default type, MSR 0x2ff.
    pub default: u64,
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
