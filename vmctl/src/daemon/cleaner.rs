//! The thread that destroys partitions: a large one takes seconds, and the event loop waits for
//! nobody.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use rustix::event::{EventfdFlags, eventfd};

use super::resources::Partitions;

/// Names of VMs go in, and come out again when nothing is left of their partitions.
#[derive(Debug)]
pub(super) struct Cleaner {
    jobs: Sender<String>,
    finished: Receiver<String>,
    wake: Arc<OwnedFd>,
}

impl Cleaner {
    /// Starts the thread; it ends with the value.
    pub(super) fn start(partitions: Partitions) -> io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let wake = Arc::new(eventfd(0, flags)?);
        let (jobs, todo) = channel::<String>();
        let (done, finished) = channel();
        let signal = Arc::clone(&wake);
        thread::Builder::new()
            .name("cleaner".to_owned())
            .spawn(move || {
                for name in todo {
                    if let Err(e) = partitions.destroy_named(&name) {
                        eprintln!("vmctl daemon: {name}: its partition was not destroyed: {e}");
                    }
                    // An eventfd refuses only at its largest count, which wakes as well.
                    if done.send(name).is_err() || wake_up(&signal).is_err() {
                        return;
                    }
                }
            })?;
        Ok(Self {
            jobs,
            finished,
            wake,
        })
    }

    /// Has the partition of the VM `name` destroyed. The thread lives as long as `self`.
    pub(super) fn begin(&self, name: &str) {
        let _ = self.jobs.send(name.to_owned());
    }

    /// Whose partitions are gone since the last call.
    pub(super) fn finished(&self) -> Vec<String> {
        let mut count = [0; 8];
        let _ = rustix::io::read(&*self.wake, &mut count);
        self.finished.try_iter().collect()
    }
}

impl AsFd for Cleaner {
    /// Readable when [`Self::finished`] has something.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

fn wake_up(eventfd: &OwnedFd) -> rustix::io::Result<()> {
    match rustix::io::write(eventfd, &1_u64.to_ne_bytes()) {
        Ok(_) | Err(rustix::io::Errno::AGAIN) => Ok(()),
        Err(e) => Err(e),
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
