//! Threads that open disk images: a file system can take long, and the event loop waits for nobody.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::inbox::{Inbox, Outbox, inbox};
use crate::config::DiskConfig;
use crate::disk::{Chain, DiskError};

/// Images that are being opened at once.
const MAX_THREADS: usize = 64;

/// An image that was opened and locked, or why it was not.
#[derive(Debug)]
pub(super) struct Opened {
    /// Name of the VM.
    pub(super) vm: String,
    /// The disk.
    pub(super) disk: DiskConfig,
    /// Its files.
    pub(super) chain: Result<Chain, DiskError>,
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

    /// Opens the image of a disk of the VM `vm`.
    ///
    /// # Errors
    ///
    /// There can't be one more thread.
    pub(super) fn begin(&self, vm: &str, disk: DiskConfig) -> io::Result<()> {
        if self.threads.load(Ordering::Relaxed) >= MAX_THREADS {
            let what = "too many images are being opened: their file systems do not answer";
            return Err(io::Error::other(what));
        }
        let (vm, outbox) = (vm.to_owned(), self.outbox.clone());
        let threads = Arc::clone(&self.threads);
        let work = move || {
            let chain = Chain::of_disk(&disk);
            threads.fetch_sub(1, Ordering::Relaxed);
            outbox.send(Opened { vm, disk, chain });
        };
        let thread = thread::Builder::new().name("opener".to_owned());
        self.threads.fetch_add(1, Ordering::Relaxed);
        let started = thread.spawn(work).map(drop);
        if started.is_err() {
            self.threads.fetch_sub(1, Ordering::Relaxed);
        }
        started
    }

    /// Takes the images that were opened since the last call.
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
