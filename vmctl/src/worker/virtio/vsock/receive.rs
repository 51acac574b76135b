//! The queue by which the guest receives. Its thread waits for the sockets in VM 0, too.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use zerocopy::IntoBytes;

use super::mux::{Mux, Source};
use super::packet::{HEADER, Header, Ports};
use crate::wire::timespec;
use crate::worker::event::Event;
use crate::worker::memory::Memory;
use crate::worker::virtio::buffers::Buffers;
use crate::worker::virtio::{Malformed, Serve, Vring};

/// Packets of one connection that are sent before those of another one.
const BATCH: usize = 4;

pub(super) struct Receive {
    mux: Arc<Mux>,
    /// A chain that was taken from the ring, and lies empty.
    spare: Option<(u16, Buffers)>,
}

/// Sockets that can be read or written, or were closed, and which of these.
type Ready = Vec<(Source, PollFlags)>;

/// Whether the guest has buffers for all packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Done,
    NoBuffers,
}

impl Receive {
    pub(super) fn new(mux: Arc<Mux>) -> Self {
        Self { mux, spare: None }
    }
}

impl Serve for Receive {
    fn run(&mut self, memory: &Memory, vring: &Vring, stop: &Event) -> Result<(), Malformed> {
        let outcome = self.serve(memory, vring, stop);
        self.spare = None;
        self.mux.reset();
        outcome
    }
}

impl Receive {
    fn serve(&mut self, memory: &Memory, vring: &Vring, stop: &Event) -> Result<(), Malformed> {
        vring.disable_notification(memory)?;
        let mut ready = Vec::new();
        loop {
            let outcome = self.work(memory, vring, &ready)?;
            vring.notify(memory)?;
            ready.clear();
            let is_starved = outcome == Outcome::NoBuffers;
            if is_starved && vring.enable_notification(memory)? {
                vring.disable_notification(memory)?;
                if stop.is_signalled() {
                    return Ok(());
                }
                continue;
            }
            let Some(found) = self.wait(vring, stop, is_starved) else {
                return Ok(());
            };
            ready = found;
            if is_starved {
                vring.kick.clear();
                vring.disable_notification(memory)?;
            }
        }
    }

    /// Waits until something happens to a socket. While the guest has no buffers, waits for buffers instead of data.
    /// Returns `None` when the queue is to stop.
    fn wait(&self, vring: &Vring, stop: &Event, is_starved: bool) -> Option<Ready> {
        loop {
            let (interests, deadline) = self.mux.interests();
            let waits = |&(ref source, flags): &(Source, PollFlags)| {
                let flags = match source {
                    Source::Connection(..) if is_starved => flags & PollFlags::OUT,
                    _ => flags,
                };
                // Without buffers nothing can be told to the guest.
                let is_of_use = !is_starved || !flags.is_empty();
                is_of_use.then(|| (source.clone(), flags))
            };
            let interests: Vec<_> = interests.iter().filter_map(waits).collect();
            let own = [stop.as_fd(), self.mux.changed().as_fd(), vring.kick.as_fd()];
            let own = &own[..if is_starved { 3 } else { 2 }];
            let fds = own.iter().map(|&fd| (fd, PollFlags::IN));
            let fds = fds.chain(
                interests
                    .iter()
                    .map(|(source, flags)| (self.fd(source), *flags)),
            );
            let fds = fds.map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags));
            let mut fds: Vec<_> = fds.collect();
            let left = deadline.map(|at| timespec(at.saturating_duration_since(Instant::now())));
            match poll(&mut fds, left.as_ref()) {
                Err(Errno::INTR) => continue,
                Err(_) => return None,
                Ok(_) => {}
            }
            if stop.is_signalled() {
                return None;
            }
            self.mux.changed().clear();
            self.mux.expire();
            let found = fds[own.len()..].iter().map(PollFd::revents);
            let found = interests
                .iter()
                .zip(found)
                .filter(|(_, flags)| !flags.is_empty());
            return Some(
                found
                    .map(|((source, _), flags)| (source.clone(), flags))
                    .collect(),
            );
        }
    }

    fn fd<'a>(&'a self, source: &'a Source) -> BorrowedFd<'a> {
        match source {
            Source::Listener => self.mux.listener().as_fd(),
            Source::Greeting(stream) | Source::Connection(_, stream) => stream.as_fd(),
        }
    }

    /// Does what is to be done with sockets, and sends packets to the guest.
    fn work(
        &mut self,
        memory: &Memory,
        vring: &Vring,
        ready: &Ready,
    ) -> Result<Outcome, Malformed> {
        for (source, flags) in ready {
            match source {
                Source::Listener => self.mux.accept(),
                Source::Greeting(stream) => self.mux.greet(stream),
                Source::Connection(ports, _) if flags.contains(PollFlags::OUT) => {
                    self.mux.flush(*ports);
                }
                Source::Connection(..) => {}
            }
        }
        // An answer to the guest goes before the data that belongs to it.
        if self.send_replies(memory, vring)? == Outcome::NoBuffers {
            return Ok(Outcome::NoBuffers);
        }
        for (source, flags) in ready {
            let Source::Connection(ports, stream) = source else {
                continue;
            };
            match self.send_data(memory, vring, *ports)? {
                None => return Ok(Outcome::NoBuffers),
                Some(is_empty) if is_empty && flags.contains(PollFlags::HUP) => {
                    self.mux.hung_up(*ports, stream);
                }
                Some(_) => {}
            }
        }
        self.send_replies(memory, vring)
    }

    fn send_replies(&mut self, memory: &Memory, vring: &Vring) -> Result<Outcome, Malformed> {
        while self.mux.has_replies() {
            let Some((head, buffers)) = self.take_chain(memory, vring)? else {
                return Ok(Outcome::NoBuffers);
            };
            match self.mux.take_reply() {
                Some(header) => push(memory, vring, head, &buffers, &header)?,
                None => self.spare = Some((head, buffers)),
            }
        }
        Ok(Outcome::Done)
    }

    /// Sends some data of a connection. Returns whether there was less than could be sent, or `None` if the guest
    /// has no buffers.
    fn send_data(
        &mut self,
        memory: &Memory,
        vring: &Vring,
        ports: Ports,
    ) -> Result<Option<bool>, Malformed> {
        for _ in 0..BATCH {
            let Some((head, mut buffers)) = self.take_chain(memory, vring)? else {
                return Ok(None);
            };
            let room = buffers.split_off(HEADER).unwrap_or_default();
            match self.mux.read(ports, &room.slices(memory)) {
                Some(header) => push(memory, vring, head, &buffers, &header)?,
                None => {
                    buffers.append(room);
                    self.spare = Some((head, buffers));
                    return Ok(Some(true));
                }
            }
        }
        Ok(Some(false))
    }

    /// Takes a chain that a packet has room in.
    fn take_chain(
        &mut self,
        memory: &Memory,
        vring: &Vring,
    ) -> Result<Option<(u16, Buffers)>, Malformed> {
        if let Some(spare) = self.spare.take() {
            return Ok(Some(spare));
        }
        let Some(chain) = vring.pop(memory)? else {
            return Ok(None);
        };
        let head = chain.head_index();
        let (readable, writable) = Buffers::of(memory, chain)?;
        if readable.len() > 0 || writable.len() <= HEADER {
            return Err(Malformed(
                "a buffer to receive into is too small or readable",
            ));
        }
        Ok(Some((head, writable)))
    }
}

/// Returns a chain with a packet to the driver. Its data is there already.
fn push(
    memory: &Memory,
    vring: &Vring,
    head: u16,
    buffers: &Buffers,
    header: &Header,
) -> Result<(), Malformed> {
    buffers.write(memory, header.as_bytes());
    vring.push(memory, head, HEADER as u32 + header.len.get())
}
