//! The worker's end of a console.
//!
//! Non-blocking and without a thread of its own: the worker's event loop waits for
//! [`Hub::interests`], then calls [`Hub::service`], which gives what users typed. A client that
//! doesn't read loses output, never the guest's time.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use rustix::event::PollFlags;

use super::log::ConsoleLog;

/// Output that a new client is shown, so that it sees the prompt, or why there is none.
const REPLAY: usize = 16 << 10;
/// Output that may wait for one client.
const BACKLOG: usize = 256 << 10;
/// Clients at once; more are turned away with [`FULL`].
pub const MAX_CLIENTS: usize = 16;
/// The text that a refused client reads before its connection ends.
pub const FULL: &str = "[16 users are attached to this console, and no more can be]\r\n";

/// Console of one VM.
#[derive(Debug)]
pub struct Hub {
    listener: UnixListener,
    log: Option<ConsoleLog>,
    clients: Vec<Client>,
    recent: VecDeque<u8>,
}

#[derive(Debug)]
struct Client {
    stream: UnixStream,
    pending: VecDeque<u8>,
    /// The client takes no more output. Bytes that it has typed are still delivered.
    last_words: Option<VecDeque<u8>>,
}

impl Hub {
    /// Serves `listener` and writes to `log`.
    ///
    /// # Errors
    ///
    /// The listener can't be made non-blocking.
    pub fn new(listener: UnixListener, log: Option<ConsoleLog>) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self {
            listener,
            log,
            clients: Vec::new(),
            recent: VecDeque::new(),
        })
    }

    /// Sends the guest's output to every client and the log.
    pub fn output(&mut self, bytes: &[u8]) {
        if let Some(log) = &mut self.log {
            log.append(bytes);
        }
        keep_last(&mut self.recent, bytes, REPLAY);
        for client in &mut self.clients {
            client.output(bytes);
        }
    }

    /// Descriptors to wait for, and for what.
    pub fn interests(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        let connected = self.clients.iter().filter(|c| c.last_words.is_none());
        let clients = connected.map(|c| {
            let out = if c.pending.is_empty() {
                PollFlags::empty()
            } else {
                PollFlags::OUT
            };
            (c.stream.as_fd(), PollFlags::IN | out)
        });
        std::iter::once((self.listener.as_fd(), PollFlags::IN)).chain(clients)
    }

    /// Accepts, reads and writes whatever is ready. At most `room` typed bytes are appended to
    /// `typed`; the rest stays with the clients.
    pub fn service(&mut self, typed: &mut Vec<u8>, room: usize) {
        while let Ok((mut stream, _)) = self.listener.accept() {
            if stream.set_nonblocking(true).is_err() {
                continue;
            }
            if self.clients.len() >= MAX_CLIENTS {
                // The line fits into the buffer of a new socket.
                let _ = stream.write_all(FULL.as_bytes());
            } else {
                let pending = without_queries(self.recent.iter().copied());
                self.clients.push(Client {
                    stream,
                    pending,
                    last_words: None,
                });
            }
        }
        let limit = typed.len() + room;
        self.clients.retain_mut(|client| {
            let stays = client.read(typed, limit);
            client.flush();
            stays
        });
    }

    /// Something typed waits here for room, and not in a descriptor of [`Self::interests`].
    pub fn has_last_words(&self) -> bool {
        self.clients.iter().any(|c| c.last_words.is_some())
    }

    /// Returns why the log can't be written, if it can't.
    pub fn log_problem(&self) -> Option<&str> {
        self.log.as_ref()?.problem()
    }

    /// Clients now.
    pub fn clients(&self) -> usize {
        self.clients.len()
    }
}

impl Client {
    fn output(&mut self, bytes: &[u8]) {
        if self.last_words.is_none() {
            keep_last(&mut self.pending, bytes, BACKLOG);
            self.flush();
        }
    }

    /// Reads until `typed` holds `limit` bytes; false if there is nothing more to come.
    fn read(&mut self, typed: &mut Vec<u8>, limit: usize) -> bool {
        if let Some(words) = &mut self.last_words {
            let count = words.len().min(limit.saturating_sub(typed.len()));
            typed.extend(words.drain(..count));
            return !words.is_empty();
        }
        let mut chunk = [0; 512];
        while typed.len() < limit {
            let want = chunk.len().min(limit - typed.len());
            match self.stream.read(&mut chunk[..want]) {
                Ok(0) => return false,
                Ok(n) => typed.extend_from_slice(&chunk[..n]),
                Err(e) => return retry(&e),
            }
        }
        true
    }

    fn flush(&mut self) {
        while !self.pending.is_empty() {
            match self.stream.write(self.pending.as_slices().0) {
                Ok(n) => drop(self.pending.drain(..n)),
                Err(e) if retry(&e) => return,
                Err(_) => self.hang_up(),
            }
        }
    }

    /// The client reads no more. What it typed before counts, and is no more than a socket holds.
    fn hang_up(&mut self) {
        self.pending.clear();
        let mut words = Vec::new();
        self.read(&mut words, BACKLOG);
        self.last_words = Some(words.into());
    }
}

fn retry(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

fn keep_last(buffer: &mut VecDeque<u8>, bytes: &[u8], limit: usize) {
    buffer.extend(bytes);
    let excess = buffer.len().saturating_sub(limit);
    buffer.drain(..excess);
}

/// Leaves out terminal queries (`ESC [ … n`, `ESC [ … c`): the terminal would answer an old
/// question, and the guest would take it for typing.
fn without_queries(bytes: impl Iterator<Item = u8>) -> VecDeque<u8> {
    let mut out = VecDeque::new();
    let mut sequence: Vec<u8> = Vec::new();
    for byte in bytes {
        match (sequence.as_slice(), byte) {
            ([], 0x1b) | ([0x1b], b'[') => sequence.push(byte),
            ([0x1b, b'[', ..], b'0'..=b'9' | b';' | b'?' | b'>') => sequence.push(byte),
            ([0x1b, b'[', ..], b'n' | b'c') => sequence.clear(),
            _ => {
                out.extend(sequence.drain(..));
                out.push_back(byte);
            }
        }
    }
    out.extend(sequence);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(dir: &std::path::Path) -> (Hub, std::path::PathBuf) {
        let path = dir.join("console.sock");
        let hub = Hub::new(UnixListener::bind(&path).unwrap(), None).unwrap();
        (hub, path)
    }

    fn read(stream: &mut UnixStream, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn what_was_typed_before_hanging_up_is_not_lost() {
        let dir = tempfile::tempdir().unwrap();
        let (mut hub, path) = hub(dir.path());
        let mut client = UnixStream::connect(&path).unwrap();
        let mut typed = Vec::new();
        hub.service(&mut typed, 0);
        client.write_all(b"a line that is long").unwrap();
        hub.service(&mut typed, 6);
        drop(client);
        hub.output(b"echo");
        assert_eq!(hub.interests().count(), 1, "the listener alone");
        while hub.has_last_words() {
            hub.service(&mut typed, 6);
        }
        assert_eq!(typed, b"a line that is long");
        assert_eq!(hub.clients(), 0);
    }

    #[test]
    fn all_clients_see_output_and_may_type() {
        let dir = tempfile::tempdir().unwrap();
        let (mut hub, path) = hub(dir.path());
        hub.output(b"before ");
        let mut a = UnixStream::connect(&path).unwrap();
        let mut b = UnixStream::connect(&path).unwrap();
        let mut typed = Vec::new();
        hub.service(&mut typed, 100);
        hub.output(b"after");
        assert_eq!(read(&mut a, 12), b"before after");
        assert_eq!(read(&mut b, 12), b"before after");
        a.write_all(b"ls\n").unwrap();
        b.write_all(b"pwd\n").unwrap();
        hub.service(&mut typed, 5);
        assert_eq!(typed, b"ls\npw");
        hub.service(&mut typed, 100);
        assert_eq!(typed, b"ls\npwd\n");
        drop(a);
        hub.service(&mut typed, 100);
        assert_eq!(hub.clients(), 1);
    }

    #[test]
    fn one_client_too_many_is_told_so() {
        assert!(FULL.contains(&MAX_CLIENTS.to_string()));
        let dir = tempfile::tempdir().unwrap();
        let (mut hub, path) = hub(dir.path());
        let _clients: Vec<_> = (0..MAX_CLIENTS)
            .map(|_| UnixStream::connect(&path).unwrap())
            .collect();
        hub.service(&mut Vec::new(), 1);
        hub.output(b"hello");
        let mut late = UnixStream::connect(&path).unwrap();
        hub.service(&mut Vec::new(), 1);
        let mut text = String::new();
        late.read_to_string(&mut text).unwrap();
        assert_eq!((&*text, hub.clients()), (FULL, MAX_CLIENTS));
    }

    #[test]
    fn a_client_that_does_not_read_loses_only_its_own_output() {
        let dir = tempfile::tempdir().unwrap();
        let (mut hub, path) = hub(dir.path());
        let _idle = UnixStream::connect(&path).unwrap();
        hub.service(&mut Vec::new(), 1);
        for _ in 0..1000 {
            hub.output(&[b'x'; 4096]);
        }
        assert_eq!(hub.clients(), 1);
        assert!(hub.clients[0].pending.len() <= BACKLOG);
    }

    #[test]
    fn old_queries_are_not_replayed() {
        let text = b"\x1b[31mred\x1b[6n$ \x1b[?1;2c\x1b[";
        let clean: Vec<u8> = without_queries(text.iter().copied()).into();
        assert_eq!(clean, b"\x1b[31mred$ \x1b[");
    }
}
