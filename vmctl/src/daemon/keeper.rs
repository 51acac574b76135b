//! The thread that writes the state directory: a disk can take seconds to write a file for good, and the event loop waits
//! for nobody. Work is done in the order in which it was given; of several states of a VM that wait, the last is written.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

use super::inbox::{Inbox, inbox};
use super::store::{Saved, Store};
use super::vms::Ticket;

/// A task for a VM.
#[derive(Debug)]
pub(super) enum Work {
    /// Write its state.
    Save(Box<Saved>),
    /// Make it exist, with this definition.
    Define(String),
    /// Give it this definition, the change of this number.
    Redefine(String, Ticket),
    /// Give it another name.
    Rename {
        /// The name.
        to: String,
        /// The definition with the new name.
        toml: String,
    },
    /// End its existence.
    Remove,
}

/// The result of a task.
#[derive(Debug)]
pub(super) struct Done {
    /// Name of the VM.
    pub(super) name: String,
    /// The task.
    pub(super) work: Work,
    /// Whether it could be done.
    pub(super) result: io::Result<()>,
}

/// The thread.
#[derive(Debug)]
pub(super) struct Keeper {
    queue: Arc<Queue>,
    done: Inbox<Done>,
}

#[derive(Debug, Default)]
struct Queue {
    work: Mutex<VecDeque<(String, Work)>>,
    is_more: Condvar,
}

impl Keeper {
    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// There can't be one.
    pub(super) fn start(store: Store) -> io::Result<Self> {
        let (outbox, done) = inbox()?;
        let queue = Arc::new(Queue::default());
        let todo = Arc::clone(&queue);
        thread::Builder::new()
            .name("keeper".to_owned())
            .spawn(move || {
                loop {
                    let (name, work) = todo.take();
                    let result = match &work {
                        Work::Save(saved) => store.save(&name, saved),
                        Work::Define(toml) => store.define(&name, toml),
                        Work::Redefine(toml, _) => store.redefine(&name, toml),
                        Work::Rename { to, toml } => store.rename(&name, to, toml),
                        Work::Remove => store.remove(&name),
                    };
                    if !outbox.send(Done { name, work, result }) {
                        return;
                    }
                }
            })?;
        Ok(Self { queue, done })
    }

    /// Has something done for the VM `name`.
    pub(super) fn begin(&self, name: &str, work: Work) {
        let mut queue = self.queue.lock();
        if let Work::Save(_) = work {
            let is_older =
                |(other, work): &(String, Work)| other == name && matches!(work, Work::Save(_));
            queue.retain(|waiting| !is_older(waiting));
        }
        queue.push_back((name.to_owned(), work));
        self.queue.is_more.notify_one();
    }

    /// Takes what was done since the last call.
    pub(super) fn take(&self) -> Vec<Done> {
        self.done.take()
    }
}

impl Queue {
    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<(String, Work)>> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> (String, Work) {
        let mut work = self.lock();
        loop {
            if let Some(next) = work.pop_front() {
                return next;
            }
            let woken = self.is_more.wait(work);
            work = woken.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl AsFd for Keeper {
    /// Readable when [`Self::take`] has something.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.done.as_fd()
    }
}
