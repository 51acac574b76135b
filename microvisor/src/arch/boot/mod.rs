//! The part of `arch` that only start-up needs. Its code is gone once VM 0 runs, as all code of modules named `boot`.

pub mod descriptors;
pub mod paging;

pub use super::svm::boot::{Unsupported, features, supported};

use super::hw::Root;
use super::svm;
use crate::memory::Gpa;

/// Where and how a CPU of VM 0 begins: in 64-bit mode.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    /// First instruction.
    pub rip: Gpa,
    /// RSI: the Linux boot protocol's parameters, or the APIC ID.
    pub rsi: u64,
    /// Top of its stack, which has room for the frame of an NMI.
    pub rsp: Gpa,
    /// Its page tables.
    pub cr3: Gpa,
    /// Its descriptor table: code at 0x10, data at 0x18, as the Linux boot protocol asks.
    pub gdt: Gpa,
    /// Its interrupt descriptor table, vectors 0 to 2: an NMI may come before VM 0 has one of its own.
    pub idt: Gpa,
}

impl Root {
    /// Turns virtualisation on for CPU `index`, which is this CPU, and sets the state that VM 0 begins in. `None` if
    /// the index was taken, or is too large.
    pub fn new(index: usize, start: &Start) -> Option<Self> {
        svm::Root::new(index, start).map(Self::Svm)
    }
}
