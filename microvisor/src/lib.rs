//! The microvisor: controls CPUs and memory, and nothing else.
//!
//! `boot` finds the machine and loads VM 0, `arch` is the CPU, `root` runs the root partition,
//! `memory` knows who owns each frame. Everything compiles on the host too, so that what is pure is
//! tested there.
#![no_std]

#[cfg(test)]
extern crate std;

pub mod arch;
pub mod boot;
pub mod console;
pub mod memory;
pub mod root;
