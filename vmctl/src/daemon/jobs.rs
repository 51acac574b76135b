//! Threads for work that can take long: looking at files that users name, and making what devices work with. Their file
//! systems and the kernel's networks may answer late or never, and the event loop waits for nobody.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use super::inbox::{Inbox, Outbox, inbox};
use super::opener::Opened;
use super::start::Checked;

/// Jobs of one VM at once. A VM whose file system does not answer takes no threads from others.
const MAX_PER_VM: usize = 16;

/// The result of a job.
#[derive(Debug)]
pub(super) enum Outcome {
    /// A device was opened, or was not.
    Opened(Box<Opened>),
    /// A VM can be started, or can't.
    Checked(Box<Checked>),
}

/// The threads.
#[derive(Debug)]
pub(super) struct Jobs {
    outbox: Outbox<Outcome>,
    inbox: Inbox<Outcome>,
    /// Count of jobs by VM.
    running: Arc<Mutex<BTreeMap<String, usize>>>,
}

impl Jobs {
    /// No threads yet.
    ///
    /// # Errors
    ///
    /// The process has no file descriptors left.
    pub(super) fn new() -> io::Result<Self> {
        let (outbox, inbox) = inbox()?;
        Ok(Self {
            outbox,
            inbox,
            running: Arc::default(),
        })
    }

    /// Does `work` for the VM `vm` in a thread.
    ///
    /// # Errors
    ///
    /// There can't be one more thread.
    pub(super) fn begin(
        &self,
        vm: &str,
        work: impl FnOnce() -> Outcome + Send + 'static,
    ) -> io::Result<()> {
        let taken = Taken::new(&self.running, vm)?;
        let outbox = self.outbox.clone();
        let work = move || {
            let outcome = work();
            drop(taken);
            outbox.send(outcome);
        };
        let thread = thread::Builder::new().name("job".to_owned());
        thread.spawn(work).map(drop)
    }

    /// Takes what was found since the last call.
    pub(super) fn take(&self) -> Vec<Outcome> {
        self.inbox.take()
    }
}

impl AsFd for Jobs {
    /// Readable when [`Self::take`] has something.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inbox.as_fd()
    }
}

/// One of the threads that a VM may have.
struct Taken {
    running: Arc<Mutex<BTreeMap<String, usize>>>,
    vm: String,
}

impl Taken {
    fn new(running: &Arc<Mutex<BTreeMap<String, usize>>>, vm: &str) -> io::Result<Self> {
        let mut counts = running.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(vm.to_owned()).or_default();
        if *count >= MAX_PER_VM {
            let what = "too many of its files are being opened: their file systems do not answer";
            return Err(io::Error::other(what));
        }
        *count += 1;
        Ok(Self {
            running: Arc::clone(running),
            vm: vm.to_owned(),
        })
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut counts = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.vm) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.vm);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn jobs_that_do_not_end_take_no_threads_from_other_vms() {
        let jobs = Jobs::new().unwrap();
        let checked = |name: &str| {
            let name = name.to_owned();
            Outcome::Checked(Box::new(Checked::failed(name)))
        };
        let (go, wait) = channel::<()>();
        let wait = Arc::new(Mutex::new(wait));
        for _ in 0..MAX_PER_VM {
            let wait = Arc::clone(&wait);
            let work = move || {
                let _ = wait.lock().unwrap().recv();
                checked("slow")
            };
            jobs.begin("slow", work).unwrap();
        }
        assert!(jobs.begin("slow", move || checked("slow")).is_err());
        jobs.begin("other", move || checked("other")).unwrap();
        let await_outcomes = |count| {
            let mut found = Vec::new();
            while found.len() < count {
                found.extend(jobs.take());
                thread::yield_now();
            }
            found
        };
        await_outcomes(1);
        drop(go);
        await_outcomes(MAX_PER_VM);
        jobs.begin("slow", move || checked("slow")).unwrap();
        await_outcomes(1);
    }
}
