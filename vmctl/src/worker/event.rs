//! Eventfds, by which threads, the driver and the kernel wake each other.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

use crate::wire::timespec;

/// An eventfd, which stays signalled until it is cleared.
#[derive(Debug)]
pub struct Event(OwnedFd);

impl Event {
    /// Makes an event that is not signalled.
    ///
    /// # Errors
    ///
    /// The process has no file descriptor left.
    pub fn new() -> io::Result<Self> {
        Ok(Self(eventfd(
            0,
            EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK,
        )?))
    }

    /// Signals the event.
    pub fn signal(&self) {
        // The write fails only if the counter is full, and then the event is signalled already.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Clears the event.
    pub fn clear(&self) {
        // The read fails only if the event is not signalled.
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }

    /// Returns whether the event is signalled.
    pub fn is_signalled(&self) -> bool {
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        matches!(poll(&mut fds, Some(&Timespec::default())), Ok(1))
    }
}

impl AsFd for Event {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Waits until one of `fds` can be read, or until `deadline`. Returns false if the kernel refuses to
/// wait.
pub fn wait_any(fds: &[BorrowedFd<'_>], deadline: Option<Instant>) -> bool {
    let poll_fds = fds
        .iter()
        .map(|&fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
    let mut fds: Vec<_> = poll_fds.collect();
    loop {
        let left = deadline.map(|at| timespec(at.saturating_duration_since(Instant::now())));
        match poll(&mut fds, left.as_ref()) {
            Err(Errno::INTR) => {}
            result => return result.is_ok(),
        }
    }
}
