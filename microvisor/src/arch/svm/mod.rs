//! AMD's Secure Virtual Machine (APM vol. 2 chapter 15).
//!
//! `vmcb` is the control block, `switch` the world switch, `exit` the meaning of exit codes. `guest` is a virtual CPU,
//! `root` is VM 0 on a CPU, `cpu` is what both need of the physical CPU.

mod asid;
pub(super) mod boot;
mod cpu;
mod exit;
mod guest;
mod permissions;
mod registers;
mod root;
mod state;
mod switch;
mod vmcb;

pub use cpu::{Cpu, guest_efer, root_efer};
pub(super) use guest::Guest;
pub(super) use root::Root;
