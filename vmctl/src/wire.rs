//! One end of a control connection: greeting, frames, buffers.
//!
//! [`Link`] serves event loops (non-blocking: [`Link::fill`], [`Link::message`], [`Link::send`],
//! [`Link::flush`]) and plain callers ([`Link::receive`]). What the peer sends is hostile until
//! decoded; what it fails to read is bounded. Open files can go along with a message
//! ([`Link::send_with_files`]) to a peer that takes files.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use guest_proto::control::{Hello, MAX_FRAME, Role, WireError, decode, encode};
use rustix::cmsg_space;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};

/// Bytes that may wait for a peer that doesn't read.
const MAX_BACKLOG: usize = 4 * MAX_FRAME;
/// Files that go along with one message at most.
const MAX_FILES: usize = 32;
/// Messages with files that may wait for a peer that doesn't read.
const MAX_OUTGOING: usize = 64;
/// Files that were received and not yet taken, at most.
const MAX_RECEIVED: usize = 4 * MAX_FILES;

/// Error: a connection can't be used any more.
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
    /// Files to send, and how many bytes of the output come before their message.
    outgoing: VecDeque<(usize, Vec<OwnedFd>)>,
    /// Files that came; `None` if the peer is to send none.
    received: Option<VecDeque<OwnedFd>>,
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
            outgoing: VecDeque::new(),
            received: None,
        };
        // A peer that is gone already shows at the first read.
        let _ = link.flush();
        Ok(link)
    }

    /// From now on, takes the files that the peer sends along with messages. Without this call the
    /// kernel closes them.
    #[must_use]
    pub fn taking_files(mut self) -> Self {
        self.received = Some(VecDeque::new());
        self
    }

    /// Takes the next `count` files that came, or `None` if there are fewer.
    pub fn take_files(&mut self, count: usize) -> Option<Vec<OwnedFd>> {
        let received = self.received.as_mut()?;
        (count <= received.len()).then(|| received.drain(..count).collect())
    }

    /// Reads what is there, up to a bound.
    ///
    /// # Errors
    ///
    /// The socket failed. That the peer hung up is told by [`Self::message`], after its last message.
    pub fn fill(&mut self) -> Result<(), LinkError> {
        let mut chunk = [0; 8192];
        while self.open && self.input.len() <= MAX_FRAME {
            match self.read(&mut chunk) {
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

    fn read(&mut self, chunk: &mut [u8]) -> io::Result<usize> {
        let Some(received) = &mut self.received else {
            return (&self.stream).read(chunk);
        };
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_FILES))];
        let mut files = RecvAncillaryBuffer::new(&mut space);
        let mut chunk = [IoSliceMut::new(chunk)];
        let got = recvmsg(
            &self.stream,
            &mut chunk,
            &mut files,
            RecvFlags::CMSG_CLOEXEC,
        )?;
        for message in files.drain() {
            if let RecvAncillaryMessage::ScmRights(files) = message {
                received.extend(files);
            }
        }
        if received.len() > MAX_RECEIVED {
            return Err(io::Error::other("the peer sends too many files"));
        }
        Ok(got.bytes)
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

    /// Sends a message with files. The peer has the files when it has the message.
    ///
    /// # Errors
    ///
    /// The errors of [`Self::send`].
    pub fn send_with_files<T: Serialize>(
        &mut self,
        message: &T,
        files: Vec<OwnedFd>,
    ) -> Result<(), LinkError> {
        if files.len() > MAX_FILES {
            return Err(LinkError::Io(io::Error::other("too many files")));
        }
        let before = self.output.len();
        self.queue(message)?;
        if !files.is_empty() {
            self.outgoing.push_back((before, files));
        }
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
            match self.write() {
                Ok(n) => drop(self.output.drain(..n)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::BrokenPipe => return Err(LinkError::Closed),
                Err(e) => return Err(LinkError::Io(e)),
            }
        }
        if self.output.len() > MAX_BACKLOG || self.outgoing.len() > MAX_OUTGOING {
            return Err(LinkError::Backlog);
        }
        Ok(())
    }

    /// Sends a part of the output: what comes before the next files, or the files with their
    /// message.
    fn write(&mut self) -> io::Result<usize> {
        let sent = match self.outgoing.front() {
            None => (&self.stream).write(&self.output)?,
            Some((before @ 1.., _)) => (&self.stream).write(&self.output[..*before])?,
            Some((0, files)) => {
                let files: Vec<_> = files.iter().map(AsFd::as_fd).collect();
                let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_FILES))];
                let mut rights = SendAncillaryBuffer::new(&mut space);
                rights.push(SendAncillaryMessage::ScmRights(&files));
                // Up to the next files.
                let next = self
                    .outgoing
                    .get(1)
                    .map_or(self.output.len(), |next| next.0);
                let bytes = [IoSlice::new(&self.output[..next])];
                let sent = sendmsg(&self.stream, &bytes, &mut rights, SendFlags::NOSIGNAL)?;
                self.outgoing.pop_front();
                sent
            }
        };
        for (before, _) in &mut self.outgoing {
            *before -= sent;
        }
        Ok(sent)
    }

    /// Returns the events that an event loop waits for.
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
    fn files_come_with_their_message() {
        let (a, b) = UnixStream::pair().unwrap();
        let mut daemon = Link::new(a, Role::Daemon, Role::Worker).unwrap();
        let worker = Link::new(b, Role::Worker, Role::Daemon).unwrap();
        let mut worker = worker.taking_files();
        let file = |text: &str| {
            let (reader, mut writer) = io::pipe().unwrap();
            writer.write_all(text.as_bytes()).unwrap();
            OwnedFd::from(reader)
        };
        // More than the socket takes at once, so that files wait for their turn.
        let padding = Request::Define {
            config: "x".repeat(MAX_FRAME - 8),
        };
        daemon.send(&padding).unwrap();
        daemon
            .send_with_files(&Request::List, vec![file("a"), file("b")])
            .unwrap();
        daemon.send(&padding).unwrap();
        daemon
            .send_with_files(&Request::Ping, vec![file("c")])
            .unwrap();
        let mut got = Vec::new();
        while got.len() < 4 {
            daemon.flush().unwrap();
            worker.fill().unwrap();
            while let Some(message) = worker.message::<Request>().unwrap() {
                let count = match message {
                    Request::List => 2,
                    Request::Ping => 1,
                    _ => 0,
                };
                let files = worker.take_files(count).unwrap();
                let read = |file| io::read_to_string(std::fs::File::from(file)).unwrap();
                got.push(files.into_iter().map(read).collect::<String>());
            }
        }
        assert_eq!(got, ["", "ab", "", "c"]);
        assert!(worker.take_files(1).is_none());
    }

    #[test]
    fn files_are_bounded_and_not_taken_unasked() {
        let (a, b) = UnixStream::pair().unwrap();
        let mut daemon = Link::new(a, Role::Daemon, Role::Worker).unwrap();
        let mut worker = Link::new(b, Role::Worker, Role::Daemon).unwrap();
        let files = |count| -> Vec<OwnedFd> {
            let file = || std::fs::File::open("/dev/null").unwrap().into();
            (0..count).map(|_| file()).collect()
        };
        daemon.send_with_files(&Request::List, files(1)).unwrap();
        assert_eq!(worker.receive::<Request>(soon()).unwrap(), Request::List);
        assert!(worker.take_files(1).is_none());
        let mut worker = worker.taking_files();
        let too_many = daemon.send_with_files(&Request::List, files(MAX_FILES + 1));
        assert!(too_many.is_err());
        for _ in 0..=MAX_RECEIVED / MAX_FILES {
            daemon
                .send_with_files(&Request::List, files(MAX_FILES))
                .unwrap();
        }
        assert!(matches!(worker.fill(), Err(LinkError::Io(_))));
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
        // Open files are fewer than bytes.
        let (a, _b) = UnixStream::pair().unwrap();
        let mut daemon = Link::new(a, Role::Daemon, Role::Worker).unwrap();
        let sent = (0..2000).take_while(|_| {
            let file = std::fs::File::open("/dev/null").unwrap();
            let sent = daemon.send_with_files(&Request::Ping, vec![file.into()]);
            assert!(matches!(sent, Ok(()) | Err(LinkError::Backlog)));
            sent.is_ok()
        });
        assert!(sent.count() < 2000);
        assert!(daemon.outgoing.len() <= MAX_OUTGOING + 1);
    }
}
