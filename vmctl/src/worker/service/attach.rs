//! Devices that come while the VM runs.

use std::io;
use std::os::fd::OwnedFd;

use guest_proto::control::{DeviceTable, WorkerEvent};
use log::info;

use super::Service;
use crate::config::{ConfigError, DeviceConfig};
use crate::nic::Opened;
use crate::worker::build::{self, PlugError};
use crate::worker::control::Control;
use crate::worker::plugs::{OpenError, Outcome};

/// Whether a device that is to be attached is.
pub(super) enum Attached {
    Now,
    /// A thread opens it first.
    Later,
}

/// Error: a device can't be attached.
#[derive(Debug, thiserror::Error)]
pub(super) enum AttachError {
    #[error("its files have not arrived")]
    NoFiles,
    #[error(transparent)]
    Configuration(#[from] ConfigError),
    #[error("{0}")]
    Thread(io::Error),
    #[error(transparent)]
    Image(OpenError),
    #[error("{0}")]
    Nic(io::Error),
    #[error(transparent)]
    Plug(#[from] PlugError),
}

impl Service {
    /// Attaches a device, or begins to. Its files are `None` if they did not come.
    pub(super) fn attach(
        &self,
        device: &DeviceTable,
        files: Option<Vec<OwnedFd>>,
    ) -> Result<Attached, AttachError> {
        let files = files.ok_or(AttachError::NoFiles)?;
        let vm = &self.vm;
        match DeviceConfig::parse(device)? {
            DeviceConfig::Disk(disk) => {
                let opening = vm.plugs.open(disk, files);
                opening.map_err(AttachError::Thread)?;
                Ok(Attached::Later)
            }
            DeviceConfig::Nic(nic) => {
                let opened = Opened::of_files(&nic, files).map_err(AttachError::Nic)?;
                build::plug_nic(vm, &nic, opened)?;
                Ok(Attached::Now)
            }
        }
    }

    /// Tells what a thread has done that opens or closes a disk.
    pub(super) fn tell_outcome(&self, control: &mut Control, outcome: Outcome) {
        match outcome {
            Outcome::Closed(name) => {
                info!("{name}: detached");
                control.send(&WorkerEvent::Detached { name });
            }
            Outcome::Opened(disk, image) => {
                self.vm.plugs.opened(&disk.name);
                let attached = image.map_err(AttachError::Image).and_then(|image| {
                    build::plug_disk(&self.vm, &disk, image)?;
                    Ok(Attached::Now)
                });
                self.tell_attached(control, disk.name, attached);
            }
        }
    }

    /// Tells that a device was attached, or why not.
    pub(super) fn tell_attached(
        &self,
        control: &mut Control,
        name: String,
        attached: Result<Attached, AttachError>,
    ) {
        match attached {
            Ok(Attached::Now) => {
                info!("{name}: attached");
                control.send(&WorkerEvent::Attached { name });
            }
            Ok(Attached::Later) => {}
            Err(error) => {
                let reason = error.to_string();
                control.send(&WorkerEvent::DeviceRefused { name, reason });
            }
        }
    }
}
