//! The worker's end of its control socket.
//!
//! One daemon at a time: a newer connection takes the place of an older one. A connection that is
//! lost is no event for the VM; the daemon may be restarting, and comes back.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use guest_proto::control::{Role, WorkerCommand, WorkerEvent};
use log::warn;
use rustix::event::{PollFd, PollFlags, poll};

use crate::wire::{Link, LinkError, timespec};

/// The listener, and the daemon if it is there.
#[derive(Debug)]
pub(super) struct Control {
    listener: UnixListener,
    link: Option<Link>,
}

impl Control {
    /// Serves `listener`.
    pub(super) fn new(listener: UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self {
            listener,
            link: None,
        })
    }

    /// Descriptors to wait for, and for what.
    pub(super) fn interests(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        std::iter::once((self.listener.as_fd(), PollFlags::IN))
            .chain(self.link.iter().map(|link| (link.as_fd(), link.interest())))
    }

    /// Accepts, reads and writes whatever is ready, and answers with the commands that came.
    pub(super) fn service(&mut self) -> Vec<WorkerCommand> {
        while let Ok((stream, _)) = self.listener.accept() {
            match Link::new(stream, Role::Worker, Role::Daemon) {
                Ok(link) => self.link = Some(link.taking_files()),
                Err(e) => warn!("control connection: {e}"),
            }
        }
        let mut commands = Vec::new();
        let Some(link) = &mut self.link else {
            return commands;
        };
        if let Err(e) = receive(link, &mut commands) {
            self.lose(&e);
        }
        commands
    }

    /// Tells the daemon, if it is there.
    pub(super) fn send(&mut self, event: &WorkerEvent) {
        if let Some(link) = &mut self.link
            && let Err(e) = link.send(event)
        {
            self.lose(&e);
        }
    }

    /// Returns whether the daemon is there.
    pub(super) fn has_daemon(&self) -> bool {
        self.link.is_some()
    }

    /// Takes the next `count` files that came along with commands, or `None` if there are fewer.
    pub(super) fn take_files(&mut self, count: u32) -> Option<Vec<OwnedFd>> {
        self.link.as_mut()?.take_files(count as usize)
    }

    fn lose(&mut self, error: &LinkError) {
        self.link = None;
        if !matches!(error, LinkError::Closed) {
            warn!("control connection: {error}");
        }
    }

    /// Waits for commands until `deadline`; empty if none came.
    pub(super) fn wait(&mut self, deadline: Instant) -> Vec<WorkerCommand> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Vec::new();
            }
            self.poll(left);
            let commands = self.service();
            if !commands.is_empty() {
                return commands;
            }
        }
    }

    /// Tells the daemon how the VM ended. If no daemon is connected, the next one that connects within `timeout` is
    /// told.
    pub(super) fn report_end(&mut self, event: &WorkerEvent, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        self.send(event);
        loop {
            match &self.link {
                Some(link) if !link.interest().contains(PollFlags::OUT) => return,
                _ => {}
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let had_daemon = self.link.is_some();
            self.poll(left);
            // Whatever it wants, there is only one answer left.
            self.service();
            if !had_daemon {
                self.send(event);
            }
        }
    }

    fn poll(&self, timeout: Duration) {
        let mut fds: Vec<_> = self
            .interests()
            .map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags))
            .collect();
        // An interrupted wait is a short one; the callers look at their clocks.
        let _ = poll(&mut fds, Some(&timespec(timeout)));
    }
}

fn receive(link: &mut Link, commands: &mut Vec<WorkerCommand>) -> Result<(), LinkError> {
    // A peer that is gone already may have said something before.
    link.fill()?;
    while let Some(command) = link.message()? {
        commands.push(command);
    }
    link.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    struct Daemon(Link);

    impl Daemon {
        fn connect(path: &std::path::Path) -> Self {
            let stream = UnixStream::connect(path).unwrap();
            Self(Link::new(stream, Role::Daemon, Role::Worker).unwrap())
        }

        fn hear(&mut self) -> Result<WorkerEvent, LinkError> {
            self.0
                .receive(Some(Instant::now() + Duration::from_secs(10)))
        }
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    fn ready(partition: u64) -> WorkerEvent {
        WorkerEvent::Ready {
            partition,
            devices: Vec::new(),
        }
    }

    #[test]
    fn the_newest_daemon_is_the_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control");
        let mut control = Control::new(UnixListener::bind(&path).unwrap()).unwrap();
        control.send(&ready(1));
        let mut old = Daemon::connect(&path);
        old.0.send(&WorkerCommand::Pause).unwrap();
        assert_eq!(control.wait(soon()), [WorkerCommand::Pause]);
        control.send(&ready(2));
        assert_eq!(old.hear().unwrap(), ready(2));
        let mut new = Daemon::connect(&path);
        new.0.send(&WorkerCommand::Report).unwrap();
        assert_eq!(control.wait(soon()), [WorkerCommand::Report]);
        control.send(&ready(3));
        assert_eq!(new.hear().unwrap(), ready(3));
        assert!(matches!(old.hear(), Err(LinkError::Closed)));
    }

    #[test]
    fn a_last_command_is_heard_though_its_sender_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control");
        let mut control = Control::new(UnixListener::bind(&path).unwrap()).unwrap();
        let mut daemon = Daemon::connect(&path);
        daemon.0.send(&WorkerCommand::PowerButton).unwrap();
        drop(daemon);
        assert_eq!(control.wait(soon()), [WorkerCommand::PowerButton]);
        assert!(control.link.is_none());
    }

    #[test]
    fn a_daemon_that_comes_late_hears_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control");
        let mut control = Control::new(UnixListener::bind(&path).unwrap()).unwrap();
        let daemon = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            Daemon::connect(&path).hear()
        });
        control.report_end(&ready(9), Duration::from_secs(10));
        assert_eq!(daemon.join().unwrap().unwrap(), ready(9));
    }
}
