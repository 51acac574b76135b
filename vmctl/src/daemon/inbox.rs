//! The messages of threads to the event loop, which never waits for a thread.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use rustix::event::{EventfdFlags, eventfd};

/// The event loop's end.
#[derive(Debug)]
pub(super) struct Inbox<T> {
    messages: Receiver<T>,
    wake: Arc<OwnedFd>,
}

/// A thread's end.
#[derive(Debug)]
pub(super) struct Outbox<T> {
    messages: Sender<T>,
    wake: Arc<OwnedFd>,
}

impl<T> Clone for Outbox<T> {
    fn clone(&self) -> Self {
        Self {
            messages: self.messages.clone(),
            wake: Arc::clone(&self.wake),
        }
    }
}

/// Returns both ends.
///
/// # Errors
///
/// The process has no file descriptors left.
pub(super) fn inbox<T>() -> io::Result<(Outbox<T>, Inbox<T>)> {
    let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    let wake = Arc::new(wake);
    let (sender, messages) = channel();
    let outbox = Outbox {
        messages: sender,
        wake: Arc::clone(&wake),
    };
    Ok((outbox, Inbox { messages, wake }))
}

impl<T> Outbox<T> {
    /// Sends a message. Returns false if the event loop is gone.
    pub(super) fn send(&self, message: T) -> bool {
        // An eventfd refuses only at its largest count, which wakes as well.
        self.messages.send(message).is_ok()
            && matches!(
                rustix::io::write(&*self.wake, &1_u64.to_ne_bytes()),
                Ok(_) | Err(rustix::io::Errno::AGAIN)
            )
    }
}

impl<T> Inbox<T> {
    /// Takes the messages that came since the last call.
    pub(super) fn take(&self) -> Vec<T> {
        let mut count = [0; 8];
        let _ = rustix::io::read(&*self.wake, &mut count);
        self.messages.try_iter().collect()
    }
}

impl<T> AsFd for Inbox<T> {
    /// Readable when [`Self::take`] has something.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}
