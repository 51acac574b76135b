//! The microvisor: it controls CPUs and memory, and nothing else.
//!
//! `boot` finds the machine and loads VM 0, `arch` is the CPU, `root` runs the root partition,
//! `hypercall` checks its calls, `partition` and `vcpu` are the guests, `memory` knows the owner of each frame.
//! Everything compiles on the host, too, so that pure code is tested there.
#![no_std]

#[cfg(test)]
extern crate std;

pub mod arch;
pub mod boot;
pub mod console;
pub mod counters;
#[cfg(feature = "fault-injection")]
pub mod fault;
pub mod hypercall;
pub mod log_buffer;
pub mod machine;
pub mod memory;
pub mod panic;
pub mod partition;
pub mod root;
pub mod trace;
pub mod vcpu;
