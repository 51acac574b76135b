//! The disks and network cards of a VM: those that it starts with, and those that come and go while it runs.
//!
//! To open an image and to close one can take long, so each happens on a thread of its own. What the
//! threads have done waits here for the device thread.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};

use guest_proto::control::{DiskStatus, NicStatus};
use log::warn;

use super::event::Event;
use super::virtio::block::Monitor;
use super::virtio::net;
use super::virtio::transport::Transport;
use crate::config::DiskConfig;
use crate::disk::{Chain, DiskError, Image};

/// The result of a thread's work.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The thread has opened an image, or failed.
    Opened(Box<DiskConfig>, Result<Image, OpenError>),
    /// The thread has closed the device with this name.
    Closed(String),
}

/// Error: an image can't be opened.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    #[error("the daemon has not told its format")]
    NoFormat,
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// The disks, and the threads that open and close them.
#[derive(Debug)]
pub(super) struct Plugs {
    disks: Mutex<Vec<Monitor>>,
    nics: Mutex<Vec<net::Monitor>>,
    /// Names of disks whose images are being opened.
    opening: Mutex<Vec<String>>,
    outcomes: Mutex<Vec<Outcome>>,
    /// Threads that close devices, and work on guest memory until they end.
    closing: Mutex<Vec<JoinHandle<()>>>,
    /// Wakes the device thread.
    wake: Arc<Event>,
}

impl Plugs {
    /// No disks yet. `wake` wakes the device thread.
    pub(super) fn new(wake: Arc<Event>) -> Self {
        Self {
            disks: Mutex::default(),
            nics: Mutex::default(),
            opening: Mutex::default(),
            outcomes: Mutex::default(),
            closing: Mutex::default(),
            wake,
        }
    }

    /// Adds a disk.
    pub(super) fn add(&self, disk: Monitor) {
        lock(&self.disks).push(disk);
    }

    /// Adds a network card.
    pub(super) fn add_nic(&self, nic: net::Monitor) {
        lock(&self.nics).push(nic);
    }

    /// Plugs the cable of a network card in or out. Returns false if there is no such card.
    pub(super) fn set_link(&self, name: &str, is_up: bool) -> bool {
        let nics = lock(&self.nics);
        let nic = nics.iter().find(|nic| nic.name() == name);
        nic.inspect(|nic| nic.set_link(is_up)).is_some()
    }

    /// Returns whether there are network cards.
    pub(super) fn has_nics(&self) -> bool {
        !lock(&self.nics).is_empty()
    }

    /// Returns what the network cards are, and what they have done.
    pub(super) fn nic_statuses(&self) -> Vec<NicStatus> {
        lock(&self.nics).iter().map(net::Monitor::status).collect()
    }

    /// Returns what the disks are, and what they have done.
    pub(super) fn statuses(&self) -> Vec<DiskStatus> {
        lock(&self.disks).iter().map(Monitor::status).collect()
    }

    /// Returns the number of disks, with those whose images are being opened.
    pub(super) fn count_disks(&self) -> usize {
        lock(&self.disks).len() + lock(&self.opening).len()
    }

    /// Returns the names of the devices, and of disks whose images are being opened.
    pub(super) fn names(&self) -> Vec<String> {
        let disks = lock(&self.disks);
        let names = disks.iter().map(|disk| disk.name().to_owned());
        let nics = lock(&self.nics);
        let names = names.chain(nics.iter().map(|nic| nic.name().to_owned()));
        names.chain(lock(&self.opening).iter().cloned()).collect()
    }

    /// Opens the image of a disk, whose files are open and locked.
    ///
    /// # Errors
    ///
    /// The process can have no more threads.
    pub(super) fn open(self: &Arc<Self>, disk: DiskConfig, files: Vec<OwnedFd>) -> io::Result<()> {
        let (plugs, name) = (Arc::clone(self), disk.name.clone());
        lock(&self.opening).push(name.clone());
        let work = move || {
            let image = open(&disk, files);
            plugs.report(Outcome::Opened(Box::new(disk), image));
        };
        let started = Builder::new().name("open".to_owned()).spawn(work);
        if started.is_err() {
            self.opened(&name);
        }
        started.map(drop)
    }

    /// Notes that the image of a disk is no longer being opened.
    pub(super) fn opened(&self, name: &str) {
        lock(&self.opening).retain(|opening| opening != name);
    }

    /// Closes a device that was taken off the bus.
    pub(super) fn close(self: &Arc<Self>, device: Transport) {
        let name = device.name().to_owned();
        let plugs = Arc::clone(self);
        let work = move || plugs.close_now(device);
        let mut closing = lock(&self.closing);
        closing.retain(|thread| !thread.is_finished());
        match Builder::new().name("close".to_owned()).spawn(work) {
            Ok(thread) => closing.push(thread),
            // The device went with the thread's work, and its image was not flushed: what the guest
            // has flushed is durable.
            Err(e) => {
                warn!("{name}: no thread to close it: {e}");
                self.forget(&name);
            }
        }
    }

    fn close_now(&self, mut device: Transport) {
        let name = device.name().to_owned();
        device.close();
        drop(device);
        self.forget(&name);
    }

    /// The device is gone. Its locks go with the monitor.
    fn forget(&self, name: &str) {
        lock(&self.disks).retain(|disk| disk.name() != name);
        lock(&self.nics).retain(|nic| nic.name() != name);
        self.report(Outcome::Closed(name.to_owned()));
    }

    fn report(&self, outcome: Outcome) {
        lock(&self.outcomes).push(outcome);
        self.wake.signal();
    }

    /// Takes what the threads have done since the last call.
    pub(super) fn take_outcomes(&self) -> Vec<Outcome> {
        std::mem::take(&mut lock(&self.outcomes))
    }

    /// Waits until all devices that are being closed are closed, for the end of the VM.
    pub(super) fn finish(&self) {
        let closing = std::mem::take(&mut *lock(&self.closing));
        for thread in closing {
            // Panics abort the process, so there is no other outcome.
            let _ = thread.join();
        }
    }
}

fn open(disk: &DiskConfig, files: Vec<OwnedFd>) -> Result<Image, OpenError> {
    let format = disk.format.ok_or(OpenError::NoFormat)?;
    let chain = Chain::of_files(&disk.path, format, disk.access(), files)?;
    Ok(Image::new(chain, disk.cache)?)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
