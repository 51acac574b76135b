//! Threads that open what devices work with: a file system and the kernel's networks can take long, and the
//! event loop waits for nobody.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use guest_proto::control::{Failure, FailureKind};

use super::inbox::{Inbox, Outbox, inbox};
use super::vms::failure;
use crate::config::DeviceConfig;
use crate::disk::{Chain, DiskError, Problem};
use crate::net::NetError;
use crate::nic;

/// Devices that are being opened at once.
const MAX_THREADS: usize = 64;

/// What a device works with.
#[derive(Debug)]
pub(super) struct Files {
    /// The device, with all that the worker needs to know.
    pub(super) device: DeviceConfig,
    /// Its descriptors.
    pub(super) files: Vec<OwnedFd>,
}

/// A device that was opened, or why it was not.
#[derive(Debug)]
pub(super) struct Opened {
    /// Name of the VM.
    pub(super) vm: String,
    /// The device, as the VM's configuration has it from now on.
    pub(super) device: DeviceConfig,
    /// What it works with.
    pub(super) files: Result<Files, Failure>,
}

/// The threads.
#[derive(Debug)]
pub(super) struct Opener {
    outbox: Outbox<Opened>,
    inbox: Inbox<Opened>,
    threads: Arc<AtomicUsize>,
}

impl Opener {
    /// No threads yet.
    pub(super) fn new() -> io::Result<Self> {
        let (outbox, inbox) = inbox()?;
        Ok(Self {
            outbox,
            inbox,
            threads: Arc::default(),
        })
    }

    /// Opens what a device of the VM `vm` works with. A card has `pairs` pairs of queues unless its
    /// configuration says.
    ///
    /// # Errors
    ///
    /// There can't be one more thread.
    pub(super) fn begin(&self, vm: &str, device: DeviceConfig, pairs: u16) -> io::Result<()> {
        if self.threads.load(Ordering::Relaxed) >= MAX_THREADS {
            let what = "too many devices are being opened: their file systems do not answer";
            return Err(io::Error::other(what));
        }
        let (vm, outbox) = (vm.to_owned(), self.outbox.clone());
        let threads = Arc::clone(&self.threads);
        let work = move || {
            let opened = open(vm, device, pairs);
            threads.fetch_sub(1, Ordering::Relaxed);
            outbox.send(opened);
        };
        let thread = thread::Builder::new().name("opener".to_owned());
        self.threads.fetch_add(1, Ordering::Relaxed);
        let started = thread.spawn(work).map(drop);
        if started.is_err() {
            self.threads.fetch_sub(1, Ordering::Relaxed);
        }
        started
    }

    /// Takes the devices that were opened since the last call.
    pub(super) fn take(&self) -> Vec<Opened> {
        self.inbox.take()
    }
}

impl AsFd for Opener {
    /// Readable when [`Self::take`] has something.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inbox.as_fd()
    }
}

fn open(vm: String, mut device: DeviceConfig, pairs: u16) -> Opened {
    let files = match &mut device {
        DeviceConfig::Disk(disk) => {
            Chain::of_disk(disk)
                .map_err(|e| no_disk(&vm, &e))
                .map(|chain| {
                    // What the guest writes does not change the format.
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
