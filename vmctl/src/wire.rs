//! One end of a control connection: greeting, frames, buffers.
//!
//! [`Link`] serves event loops (non-blocking: [`Link::fill`], [`Link::message`], [`Link::send`],
//! [`Link::flush`]) and plain callers ([`Link::receive`]). What the peer sends is hostile until
//! decoded; what it fails to read is bounded.

use std::fmt;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use guest_proto::control::{Hello, MAX_FRAME, Role, WireError, decode, encode};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize};

/// Bytes that may wait for a peer that doesn't read.
const MAX_BACKLOG: usize = 4 * MAX_FRAME;

/// Why a connection is of no more use.
#[derive(Debug)]
pub enum LinkError {
    /// The peer hung up.
    Closed,
    /// The peer did not answer in time.
    TimedOut,
    /// The peer doesn't read what it is sent.
    Backlog,
    /// The peer speaks something else.
    Wire(WireError),
    /// The socket failed.
    Io(io::Error),
}

impl fmt::Display for LinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => write!(f, "the connection was closed"),
            Self::TimedOut => write!(f, "no answer in time"),
            Self::Backlog => write!(f, "the peer does not read"),
            Self::Wire(e) => e.fmt(f),
            Self::Io(e) => e.fmt(f),
        }
    }
}

impl std::error::Error for LinkError {}

impl From<WireError> for LinkError {
    fn from(error: WireError) -> Self {
        Self::Wire(error)
    }
}

/// A control connection. The socket is always non-blocking.
#[derive(Debug)]
pub struct Link {
    stream: UnixStream,
    peer: Role,
    greeted: bool,
    open: bool,
    input: Vec<u8>,
    output: Vec<u8>,
}

impl Link {
    /// Takes over a connected socket and greets the peer.
    ///
    /// # Errors
    ///
    /// The socket can't be made non-blocking.
    pub fn new(stream: UnixStream, me: Role, peer: Role) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let mut link = Self {
            stream,
            peer,
            greeted: false,
            open: true,
            input: Vec::new(),
            output: Hello::new(me).to_bytes().to_vec(),
        };
        // A peer that is gone already shows at the first read.
        let _ = link.flush();
        Ok(link)
    }

    /// Reads what is there, up to a bound.
    ///
    /// # Errors
    ///
    /// The socket failed. That the peer hung up is told by [`Self::message`], after its last message.
    pub fn fill(&mut self) -> Result<(), LinkError> {
        let mut chunk = [0; 8192];
        while self.open && self.input.len() <= MAX_FRAME {
            match (&self.stream).read(&mut chunk) {
                Ok(0) => self.open = false,
                Ok(n) => self.input.extend_from_slice(&chunk[..n]),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset => self.open = false,
                Err(e) => return Err(LinkError::Io(e)),
            }
        }
        Ok(())
    }

    /// The next whole message that was read, if any.
    ///
    /// # Errors
    ///
    /// The peer speaks something else, or hung up and nothing is left.
    pub fn message<T: for<'a> Deserialize<'a>>(&mut self) -> Result<Option<T>, LinkError> {
        if !self.greeted
            && let Some(hello) = self.input.first_chunk::<{ Hello::SIZE }>()
        {
            Hello::check(hello, self.peer)?;
            self.input.drain(..Hello::SIZE);
            self.greeted = true;
        }
        if self.greeted
            && let Some(message) = decode(&mut self.input)?
        {
            return Ok(Some(message));
        }
        if self.open {
            Ok(None)
        } else {
            Err(LinkError::Closed)
        }
    }

    /// Whether the peer hung up; messages that were read before may be left.
    pub fn is_closed(&self) -> bool {
        !self.open
    }

    /// Queues a message and sends what the socket takes.
    ///
    /// # Errors
    ///
    /// The message is too long, the socket failed, or the peer has stopped reading.
    pub fn send<T: Serialize>(&mut self, message: &T) -> Result<(), LinkError> {
        self.queue(message)?;
        self.flush()
    }

    /// Queues a message, for the next [`Self::flush`] to send with others.
    ///
    /// # Errors
    ///
    /// The message is too long.
    pub fn queue<T: Serialize>(&mut self, message: &T) -> Result<(), LinkError> {
        Ok(encode(message, &mut self.output)?)
    }

    /// Sends what the socket takes.
    ///
    /// # Errors
    ///
    /// As [`Self::send`].
    pub fn flush(&mut self) -> Result<(), LinkError> {
        while !self.output.is_empty() {
            match (&self.stream).write(&self.output) {
                Ok(n) => drop(self.output.drain(..n)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::BrokenPipe => return Err(LinkError::Closed),
                Err(e) => return Err(LinkError::Io(e)),
            }
        }
        if self.output.len() > MAX_BACKLOG {
            return Err(LinkError::Backlog);
        }
        Ok(())
    }

    /// What an event loop waits for.
    pub fn interest(&self) -> PollFlags {
        let mut flags = PollFlags::IN;
        if !self.output.is_empty() {
            flags |= PollFlags::OUT;
        }
        flags
    }

    /// Waits for the next message.
    ///
    /// # Errors
    ///
    /// As [`Self::message`], or `deadline` has passed.
    pub fn receive<T: for<'a> Deserialize<'a>>(
        &mut self,
        deadline: Option<Instant>,
    ) -> Result<T, LinkError> {
        loop {
            self.flush()?;
            self.fill()?;
            if let Some(message) = self.message()? {
                return Ok(message);
            }
            let timeout = match deadline {
                None => None,
                Some(at) => {
                    let left = at.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(LinkError::TimedOut);
                    }
                    Some(timespec(left))
                }
            };
            let interest = self.interest();
            let mut fds = [PollFd::new(&self.stream, interest)];
            match poll(&mut fds, timeout.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(LinkError::Io(e.into())),
            }
        }
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// A `poll` timeout; durations beyond what it can say become its longest.
pub(crate) fn timespec(duration: std::time::Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use guest_proto::control::{Request, Response};
    use std::time::Duration;

    fn soon() -> Option<Instant> {
        Some(Instant::now() + Duration::from_secs(10))
    }

    #[test]
    fn messages_cross_and_the_end_comes_last() {
        let (a, b) = UnixStream::pair().unwrap();
        let mut cli = Link::new(a, Role::Cli, Role::Daemon).unwrap();
        let mut daemon = Link::new(b, Role::Daemon, Role::Cli).unwrap();
        cli.send(&Request::List).unwrap();
        cli.send(&Request::Ping).unwrap();
        assert_eq!(daemon.receive::<Request>(soon()).unwrap(), Request::List);
        daemon.send(&Response::Done).unwrap();
        assert_eq!(cli.receive::<Response>(soon()).unwrap(), Response::Done);
        drop(cli);
        assert_eq!(daemon.receive::<Request>(soon()).unwrap(), Request::Ping);
        assert!(matches!(
            daemon.receive::<Request>(soon()),
            Err(LinkError::Closed)
        ));
    }

    #[test]
    fn a_wrong_peer_is_refused_and_a_silent_one_times_out() {
        let (a, b) = UnixStream::pair().unwrap();
        let mut daemon = Link::new(a, Role::Daemon, Role::Cli).unwrap();
        let now = Some(Instant::now());
        assert!(matches!(
            daemon.receive::<Request>(now),
            Err(LinkError::TimedOut)
        ));
        (&b).write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        assert!(matches!(
            daemon.receive::<Request>(soon()),
            Err(LinkError::Wire(WireError::NotControl))
        ));
    }

    #[test]
    fn a_peer_that_never_reads_is_cut_off() {
        let (a, _b) = UnixStream::pair().unwrap();
        let mut daemon = Link::new(a, Role::Daemon, Role::Worker).unwrap();
        let config = "x".repeat(MAX_FRAME / 2);
        let big = Request::Define { config };
        let result = (0..20).try_for_each(|_| daemon.send(&big));
        assert!(matches!(result, Err(LinkError::Backlog)));
    }
}
