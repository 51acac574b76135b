//! Microvisor's userspace in the root partition.
//!
//! [`cli`] is what a user types; [`client`] carries it to the [`daemon`], which supervises one
//! [`worker`] process per VM. [`config`] is a VM's TOML file. The command line talks to the driver
//! itself where no VM's state is asked for (`doctor`, `top`, `hv-log`, `verify`), so that those work without
//! a daemon. Imports run `cli → client, daemon, worker → config, disk, wire`; the daemon knows of a
//! worker only its process, its socket and its messages. [`disk`] opens, locks and makes disk images,
//! `file` opens what users name, [`image`] makes whole systems, [`net`] makes host networks, [`nic`] plugs into them; none of them knows a VM
//! that runs.

// `print!` and `eprint!` end the process where the file system is full or the reader is gone.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

pub mod cli;
pub mod client;
pub mod config;
pub mod console;
pub mod daemon;
pub mod disk;
pub mod driver;
pub mod exit;
mod file;
pub mod image;
pub mod logging;
pub mod net;
pub mod nic;
pub mod platform;
mod proc;
mod progress;
pub mod wire;
pub mod worker;
