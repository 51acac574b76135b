//! The machine: the objects that exist once, on which hypercalls and turns work.
//!
//! Boot makes it before any CPU enters VM 0. It allocates nothing: the frame table and root's tables lie in frames
//! that boot reserved, partitions and counters lie in static memory.

use crate::arch::CpuFacts;
use crate::counters::ExitCounters;
use crate::log_buffer::LogBuffer;
use crate::memory::{Hpa, Memory};
use crate::partition::Partitions;

/// The machine.
#[derive(Debug)]
pub struct Machine {
    /// Frames, epochs, root's nested map.
    pub memory: Memory,
    /// All partitions but root.
    pub partitions: Partitions,
    /// Facts that boot found out.
    pub facts: MachineFacts,
    /// Exits of VM 0 by physical CPU.
    pub root_counters: &'static [ExitCounters],
    /// The microvisor's messages.
    pub log: &'static LogBuffer,
}

/// Facts that boot found out about the machine.
#[derive(Clone, Copy, Debug)]
pub struct MachineFacts {
    /// Its CPUs.
    pub cpu: CpuFacts,
    /// Count of CPUs that run the microvisor.
    pub cpus: u32,
    /// Count of frames of RAM.
    pub frames: u64,
    /// Count of the frames that the microvisor took at boot.
    pub reserved_frames: u64,
    /// Facts about memory types.
    pub types: MemoryTypes,
}

/// Facts by which root's writes of memory types are checked: root may set the types of addresses that are no RAM.
#[derive(Clone, Copy, Debug)]
pub struct MemoryTypes {
    /// End of the RAM below 4 GiB.
    pub low: Hpa,
    /// End of all RAM.
    pub high: Hpa,
    /// End of the physical addresses that the CPU has.
    pub end: Hpa,
    /// The boot CPU's variable ranges, MSRs 0x200 to 0x21f; 0 for a register that does not exist.
    pub variable: [u64; 32],
    /// The boot CPU's default type, MSR 0x2ff.
    pub default: u64,
}

impl Machine {
    /// Makes the machine of its parts.
    pub const fn new(
        memory: Memory,
        partitions: Partitions,
        facts: MachineFacts,
        root_counters: &'static [ExitCounters],
        log: &'static LogBuffer,
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
