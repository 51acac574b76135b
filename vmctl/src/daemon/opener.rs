//! Opens what devices work with: a file system and the kernel's networks can take long, so it is the work of a job.

use std::os::fd::OwnedFd;

use guest_proto::control::{Failure, FailureKind};

use super::vms::failure;
use crate::config::DeviceConfig;
use crate::disk::{Chain, DiskError, Problem};
use crate::net::NetError;
use crate::nic;

/// The files that a device works with.
#[derive(Debug)]
pub(super) struct Files {
    /// The device, with all that the worker needs to know.
    pub(super) device: DeviceConfig,
    /// Descriptors of the device's files.
    pub(super) files: Vec<OwnedFd>,
}

/// A device that was opened, or why it was not.
#[derive(Debug)]
pub(super) struct Opened {
    /// Name of the VM.
    pub(super) vm: String,
    /// The device, as the VM's configuration has it from now on.
    pub(super) device: DeviceConfig,
    /// The files that it works with.
    pub(super) files: Result<Files, Failure>,
}

/// Opens the files that a device of the VM `vm` works with. A card has `pairs` pairs of queues unless its configuration says.
pub(super) fn open(vm: String, mut device: DeviceConfig, pairs: u16) -> Opened {
    let files = match &mut device {
        DeviceConfig::Disk(disk) => {
            Chain::of_disk(disk)
                .map_err(|e| no_disk(&vm, &e))
                .map(|chain| {
                    // The guest can write another format's header into a raw image. The format stays.
                    disk.format = Some(chain.format());
                    Files {
                        device: DeviceConfig::Disk(disk.clone()),
                        files: chain.into_files(),
                    }
                })
        }
        DeviceConfig::Nic(nic) => nic::Opened::new(&vm, nic, pairs)
            .map_err(|e| no_cable(&vm, &e))
            .map(|opened| {
                let (nic, files) = opened.into_files(nic);
                let device = DeviceConfig::Nic(nic);
                Files { device, files }
            }),
    };
    Opened { vm, device, files }
}

fn no_disk(vm: &str, error: &DiskError) -> Failure {
    let kind = match error.problem {
        Problem::InUse => FailureKind::State,
        Problem::Wrong | Problem::Exists => FailureKind::Config,
        Problem::Io => FailureKind::Internal,
    };
    failure(kind, format!("{vm}: {error}"))
}

fn no_cable(vm: &str, error: &NetError) -> Failure {
    let kind = match error {
        NetError::Invalid(_) => FailureKind::Config,
        NetError::NotFound(_) => FailureKind::NotFound,
        NetError::Conflict(_) => FailureKind::State,
        NetError::Kernel(_) => FailureKind::Internal,
    };
    failure(kind, format!("{vm}: {error}"))
}
