//! The thread that destroys partitions: a large one takes seconds, and the event loop waits for
//! nobody.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::mpsc::{Sender, channel};
use std::thread;

use log::error;

use super::inbox::{Inbox, inbox};
use super::resources::Partitions;

/// Names of VMs go in, and come out again when nothing is left of their partitions.
#[derive(Debug)]
pub(super) struct Cleaner {
    jobs: Sender<String>,
    finished: Inbox<String>,
}

impl Cleaner {
    /// Starts the thread; it ends with the value.
    pub(super) fn start(partitions: Partitions) -> io::Result<Self> {
        let (jobs, todo) = channel::<String>();
        let (done, finished) = inbox()?;
        thread::Builder::new()
            .name("cleaner".to_owned())
            .spawn(move || {
                for name in todo {
                    if let Err(e) = partitions.destroy_named(&name) {
                        error!("{name}: its partition was not destroyed: {e}");
                    }
                    if !done.send(name) {
                        return;
                    }
                }
            })?;
        Ok(Self { jobs, finished })
    }

    /// Has the partition of the VM `name` destroyed. The thread lives as long as `self`.
    pub(super) fn begin(&self, name: &str) {
        let _ = self.jobs.send(name.to_owned());
    }

    /// Returns the VMs whose partitions are gone since the last call.
    pub(super) fn finished(&self) -> Vec<String> {
        self.finished.take()
    }
}

impl AsFd for Cleaner {
    /// Readable when [`Self::finished`] has something.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.finished.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, poll};

    #[test]
    fn tells_what_is_finished() {
        let cleaner = Cleaner::start(Partitions::new(None)).unwrap();
        assert!(cleaner.finished().is_empty());
        let mut names = vec![];
        cleaner.begin("a");
        cleaner.begin("b");
        while names.len() < 2 {
            let mut fds = [PollFd::new(&cleaner, PollFlags::IN)];
            poll(&mut fds, None).unwrap();
            names.extend(cleaner.finished());
        }
        assert_eq!(names, ["a", "b"]);
    }
}
