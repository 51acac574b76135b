//! One VM's worker process: its virtual CPUs and its devices.
//!
//! The daemon starts `vmctl worker NAME` with the descriptors that
//! [`guest_proto::control`] names (`WORKER_CONTROL_FD`, `WORKER_CONSOLE_FD`,
//! `WORKER_STATE_DIR_FD`), standard error on the worker's log, and nothing else. The worker accepts
//! on the control listener, answers `Hello`, and obeys `WorkerCommand`s; a newer connection takes
//! the place of an older one, and a lost one does not disturb the VM, because the daemon may be
//! restarting.

pub mod acpi;
pub mod devices;
pub mod loader;
pub mod memory;

use std::path::PathBuf;
use std::process::ExitCode;

/// What the daemon passes on the command line.
#[derive(Clone, Debug, clap::Args)]
pub struct WorkerArgs {
    /// Name of the VM.
    pub name: String,
    /// The driver's device.
    #[arg(long, default_value = "/dev/microvisor")]
    pub device: PathBuf,
}

/// Runs a VM until it ends.
pub fn main(args: &WorkerArgs) -> ExitCode {
    eprintln!("{}: this build has no worker", args.name);
    ExitCode::FAILURE
}
