//! One VM's worker process: its virtual CPUs and its devices.
//!
//! The daemon starts `vmctl worker NAME` with the descriptors that
//! [`guest_proto::control`] names (`WORKER_CONTROL_FD`, `WORKER_CONSOLE_FD`,
//! `WORKER_STATE_DIR_FD`), standard error on the worker's log, and nothing else. The worker accepts
//! on the control listener, answers `Hello`, and obeys `WorkerCommand`s; a newer connection takes
//! the place of an older one, and a lost one does not disturb the VM, because the daemon may be
//! restarting.
//!
//! One thread per virtual CPU (`vcpu`) and the device thread, which is the main one (`service`),
//! meet in a `vm`. An intercept goes `vcpu → exit → devices, emulate`, and its answer back.
//! A worker exits with 0 after a power-off, 10 after a reboot, 11 if the guest crashed, 12 if it
//! could not be built, 13 if the worker failed, 14 if its sandbox stopped it, and 2 if it was not
//! started as a worker.

pub mod acpi;
mod build;
mod clock;
mod control;
mod cpuid;
pub mod devices;
mod disks;
pub mod emulate;
mod end;
pub mod event;
mod exit;
mod firmware;
mod gate;
#[cfg(any(test, fuzzing))]
pub mod hostile;
mod inherited;
mod journal;
pub mod loader;
pub mod memory;
mod msr;
mod nics;
pub mod pci;
mod plugs;
mod sandbox;
mod service;
pub mod stall;
#[cfg(test)]
mod tests;
mod vcpu;
pub mod virtio;
mod vm;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use guest_proto::control::{VmState, WorkerCommand, WorkerEvent};
use log::{error, info};

use crate::config::VmConfig;
use crate::console::hub::Hub;
use crate::console::log::ConsoleLog;
use crate::logging::Levels;
use build::{Built, Images, NewVm};
use control::Control;
use end::{EXIT_USAGE, End};
use inherited::{Inherited, InheritedError};
use sandbox::SandboxError;
use service::{HOLD_TIMEOUT, Service};

/// The time that a new worker waits for its VM's configuration.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// The time that the news of the VM's end waits for a daemon that is restarting.
const END_TIMEOUT: Duration = Duration::from_secs(60);

/// The arguments that the daemon passes on the command line.
#[derive(Clone, Debug, clap::Args)]
pub struct WorkerArgs {
    /// Name of the VM.
    pub name: String,
    /// The driver's device.
    #[arg(long, default_value = "/dev/microvisor")]
    pub device: PathBuf,
    /// First user ID of the workers: that of partition N is this one plus N.
    #[arg(long, default_value_t = crate::daemon::FIRST_WORKER_UID)]
    pub first_uid: u32,
    /// Messages that are logged.
    #[arg(long, default_value = "info")]
    pub log: Levels,
}

/// Runs a VM until it ends.
pub fn main(args: &WorkerArgs) -> ExitCode {
    journal::begin(&args.log);
    let begun = begin();
    let (mut control, console, log_dir, vsock) = match begun {
        Ok(begun) => begun,
        Err(e) => {
            error!("{}: {e}", args.name);
            return ExitCode::from(EXIT_USAGE);
        }
    };
    let end = work(args, &mut control, console, log_dir, vsock).unwrap_or_else(|end| end);
    info!("{}: {}", args.name, end.reason);
    control.report_end(&end.event(), END_TIMEOUT);
    end.exit_code()
}

/// Error: this process can't be a worker.
#[derive(Debug, thiserror::Error)]
enum NoWorker {
    #[error(transparent)]
    Inherited(#[from] InheritedError),
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error("control socket: {0}")]
    Control(io::Error),
}

/// Takes the descriptors that the daemon has opened, and loses the first rights.
fn begin() -> Result<(Control, UnixListener, OwnedFd, Option<UnixListener>), NoWorker> {
    let inherited = inherited::take()?;
    sandbox::begin()?;
    let control = Control::new(inherited.control).map_err(NoWorker::Control)?;
    let Inherited {
        console,
        log_dir,
        vsock,
        ..
    } = inherited;
    Ok((control, console, log_dir, vsock))
}

/// Builds the VM and runs it.
fn work(
    args: &WorkerArgs,
    control: &mut Control,
    console: UnixListener,
    log_dir: OwnedFd,
    vsock: Option<UnixListener>,
) -> Result<End, End> {
    let config = await_configuration(control)?;
    let images = Images::open(&config, vsock)?;
    let hub = open_console(&config, console, &log_dir)?;
    let partition = NewVm::create(&args.device, &config.name)?;
    let id = partition.id();
    control.send(&WorkerEvent::Ready {
        partition: id,
        devices: config.device_names().map(str::to_owned).collect(),
    });
    let Built { vm, vcpus, clock } = partition.build(&config, images)?;
    let confined = sandbox::become_user(args.first_uid, id, log_dir.as_fd());
    if let Err(e) = confined {
        vm.destroy();
        return Err(End::start_failed(e));
    }
    sandbox::lose_files(log_dir.as_fd());
    drop(log_dir);

    let vm = Arc::new(vm);
    let mut service = Service::new(Arc::clone(&vm), id, hub);
    let mut threads = Vec::new();
    let started = vcpus.into_iter().enumerate().try_for_each(|(i, vcpu)| {
        let thread = vcpu::spawn(i, vcpu, clock, Arc::clone(&vm));
        let failed = |e| End::start_failed(format_args!("thread of a virtual CPU: {e}"));
        threads.push(thread.map_err(failed)?);
        Ok(())
    });
    let confined = started.and_then(|()| {
        if !vm.await_held(HOLD_TIMEOUT) {
            return Err(End::start_failed("the virtual CPUs' threads do not start"));
        }
        sandbox::lose_system_calls().map_err(End::start_failed)
    });
    let end = match confined {
        Ok(()) => service.run(control),
        Err(end) => end,
    };
    if service.finish() {
        for thread in threads {
            // Panics abort the process, so there is no other outcome.
            let _ = thread.join();
        }
        // Their threads work on memory that the partition takes with it.
        let devices = vm.device_state().devices.pci().take_devices();
        for mut device in devices {
            device.close();
        }
        vm.plugs.finish();
        vm.destroy();
    } else {
        error!("a virtual CPU does not stop; the partition is left");
    }
    Ok(end)
}

/// Waits for `Start`; answers whatever else comes before it.
fn await_configuration(control: &mut Control) -> Result<VmConfig, End> {
    let deadline = Instant::now() + START_TIMEOUT;
    loop {
        let commands = control.wait(deadline);
        if commands.is_empty() {
            return Err(End::start_failed("the daemon gave no configuration"));
        }
        for command in commands {
            match command {
                WorkerCommand::Start { config } => {
                    return VmConfig::parse("configuration", &config).map_err(End::start_failed);
                }
                WorkerCommand::Report => control.send(&WorkerEvent::State {
                    state: VmState::Starting,
                    reason: "waiting for its configuration".to_owned(),
                    is_held: false,
                }),
                // A later one comes when the user's terminal has another size.
                WorkerCommand::Resize { .. } => {}
                WorkerCommand::Devices => control.send(&WorkerEvent::Devices {
                    disks: Vec::new(),
                    nics: Vec::new(),
                }),
                WorkerCommand::Pause
                | WorkerCommand::Resume
                | WorkerCommand::PowerButton
                | WorkerCommand::Attach { .. }
                | WorkerCommand::Detach { .. }
                | WorkerCommand::SetLink { .. }
                | WorkerCommand::Connected { .. } => {
                    control.send(&WorkerEvent::Refused {
                        reason: "the VM was not started yet".to_owned(),
                    });
                }
            }
        }
    }
}

fn open_console(config: &VmConfig, listener: UnixListener, log_dir: &OwnedFd) -> Result<Hub, End> {
    let failed = |e| End::start_failed(format_args!("console: {e}"));
    let dir = log_dir.try_clone().map_err(failed)?;
    let log = ConsoleLog::open(dir, config.console.log_limit);
    Hub::new(listener, Some(log)).map_err(failed)
}
