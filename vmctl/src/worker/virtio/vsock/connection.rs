//! One connection: a socket in VM 0, how far it has come, and how many bytes each side may send.
//!
//! Each side tells the other how many bytes its buffer holds and how many it has passed on, so that
//! the sender knows how much there is room for (virtio 1.2 §5.10.6.3).

use std::collections::VecDeque;
use std::io::{self, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

use rustix::event::PollFlags;
use vm_memory::{ReadVolatile, VolatileMemoryError, VolatileSlice, WriteVolatile};

use super::packet::{Header, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};

/// Bytes of a guest that are kept while the program in VM 0 does not read.
pub(super) const BUFFER: u32 = 64 << 10;
/// The guest hears of room when there is that much more than it knows.
const UPDATE: u32 = BUFFER / 2;

/// The state of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The guest asked for it, and the daemon connects. The number tells one request from another.
    Connecting(u64),
    /// A program in VM 0 asked for it, and the guest has not answered.
    Asked,
    /// Data flows.
    Open,
    /// The program in VM 0 has closed its socket. The guest may take until then to do so, too.
    Closing(Instant),
}

/// A connection can't go on: its socket has failed, or the guest broke the rules of credit and shutdown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Broken;

/// The result of a read from the program in VM 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Read {
    /// So many bytes were read.
    Data(u32),
    /// There is nothing to read now.
    Nothing,
    /// The program has closed its direction.
    End,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    stage: Stage,
    /// The socket in VM 0, while there is one.
    stream: Option<Arc<UnixStream>>,
    /// Bytes of the guest for which the socket had no room.
    pending: VecDeque<u8>,
    /// Bytes that came from the guest, and those of them that the socket took.
    received: u32,
    forwarded: u32,
    /// The latter as the guest knows them.
    told: u32,
    /// Bytes that went to the guest, and what it last told of its buffer.
    sent: u32,
    peer_buffer: u32,
    peer_forwarded: u32,
    /// The guest was asked how much room it has.
    has_asked: bool,
    /// The directions that the guest has closed.
    guest_shutdown: u32,
    /// The program in VM 0 will send no more.
    is_at_end: bool,
    /// The program in VM 0 will receive no more.
    is_deaf: bool,
    /// The guest has heard of that.
    has_told_deaf: bool,
}

impl Connection {
    /// A connection that the guest asks for.
    pub(super) fn of_guest(request: u64, header: &Header) -> Self {
        let mut connection = Self::new(Stage::Connecting(request), None);
        connection.hear(header);
        connection
    }

    /// A connection that a program in VM 0 asks for.
    pub(super) fn of_host(stream: Arc<UnixStream>) -> Self {
        Self::new(Stage::Asked, Some(stream))
    }

    fn new(stage: Stage, stream: Option<Arc<UnixStream>>) -> Self {
        Self {
            stage,
            stream,
            pending: VecDeque::new(),
            received: 0,
            forwarded: 0,
            told: 0,
            sent: 0,
            peer_buffer: 0,
            peer_forwarded: 0,
            has_asked: false,
            guest_shutdown: 0,
            is_at_end: false,
            is_deaf: false,
            has_told_deaf: false,
        }
    }

    /// Returns how far it has come.
    pub(super) fn stage(&self) -> Stage {
        self.stage
    }

    /// Returns the socket in VM 0.
    pub(super) fn stream(&self) -> Option<&Arc<UnixStream>> {
        self.stream.as_ref()
    }

    /// The daemon has connected.
    pub(super) fn connected(&mut self, stream: UnixStream) {
        self.stream = Some(Arc::new(stream));
        self.stage = Stage::Open;
    }

    /// The guest accepts: tells the program in VM 0, as Firecracker does, by a line with the port that the guest
    /// sees.
    pub(super) fn accepted(&mut self, port: u32) -> Result<(), Broken> {
        self.stage = Stage::Open;
        let line = format!("OK {port}\n");
        match self
            .stream
            .as_deref()
            .map(|mut stream| stream.write(line.as_bytes()))
        {
            // A new socket has room for it.
            Some(Ok(written)) if written == line.len() => Ok(()),
            _ => Err(Broken),
        }
    }

    /// Takes what each packet of the guest tells of its buffer. Returns whether there is room now, and was none
    /// before.
    pub(super) fn hear(&mut self, header: &Header) -> bool {
        let before = self.credit();
        self.peer_buffer = header.buf_alloc.get();
        self.peer_forwarded = header.fwd_cnt.get();
        let has_room = self.credit() > 0;
        self.has_asked &= !has_room;
        before == 0 && has_room
    }

    /// Returns how many bytes the guest has room for.
    fn credit(&self) -> u32 {
        let in_flight = self.sent.wrapping_sub(self.peer_forwarded);
        self.peer_buffer.saturating_sub(in_flight)
    }

    /// Fills in what a packet to the guest tells of this side's buffer.
    pub(super) fn tell(&mut self, header: &mut Header) {
        self.told = self.forwarded;
        header.buf_alloc = BUFFER.into();
        header.fwd_cnt = self.forwarded.into();
    }

    /// Returns whether the guest should hear that there is room.
    pub(super) fn owes_update(&self) -> bool {
        self.stage == Stage::Open && self.forwarded.wrapping_sub(self.told) >= UPDATE
    }

    /// Returns whether the guest is to be asked how much room it has, once.
    pub(super) fn asks_for_credit(&mut self) -> bool {
        let asks = self.reads() && self.credit() == 0 && !self.has_asked;
        self.has_asked |= asks;
        asks
    }

    /// Returns whether the guest is to hear that the program in VM 0 will receive no more, once.
    pub(super) fn tells_deaf(&mut self) -> bool {
        self.is_deaf && !std::mem::replace(&mut self.has_told_deaf, true)
    }

    /// Passes data of the guest on. Returns whether some of it has to wait.
    pub(super) fn forward(&mut self, data: &[VolatileSlice<'_>]) -> Result<bool, Broken> {
        let len: usize = data.iter().map(VolatileSlice::len).sum();
        let kept = self.received.wrapping_sub(self.forwarded);
        if self.guest_shutdown & SHUTDOWN_SEND != 0 || len > BUFFER.saturating_sub(kept) as usize {
            return Err(Broken);
        }
        self.received = self.received.wrapping_add(len as u32);
        let stream = self.stream.clone();
        for piece in data {
            let mut done = 0;
            while self.pending.is_empty() && done < piece.len() {
                let rest = piece.offset(done).map_err(|_| Broken)?;
                let written = stream.as_deref().map(|mut to| to.write_volatile(&rest));
                match self.passed_on(written.map_or(Err(Broken), outcome)) {
                    Some(written) => done += written,
                    None => break,
                }
            }
            if done < piece.len() && !self.is_deaf {
                let mut rest = vec![0; piece.len() - done];
                piece
                    .offset(done)
                    .map_err(|_| Broken)?
                    .copy_to(&mut rest[..]);
                self.pending.extend(rest);
            }
        }
        Ok(!self.pending.is_empty())
    }

    /// Passes on what had to wait.
    pub(super) fn flush(&mut self) {
        let stream = self.stream.clone();
        while !self.pending.is_empty() {
            let written = stream
                .as_deref()
                .map(|mut to| to.write(self.pending.as_slices().0));
            let written = written.map(|it| it.map_err(VolatileMemoryError::IOError));
            match self.passed_on(written.map_or(Err(Broken), outcome)) {
                Some(written) => drop(self.pending.drain(..written)),
                None => break,
            }
        }
        self.pass_shutdown_on();
    }

    /// Notes that the socket took some bytes, or takes none now, or never again.
    fn passed_on(&mut self, written: Result<Option<usize>, Broken>) -> Option<usize> {
        let Ok(written) = written else {
            // The program may have sent something before it stopped to receive.
            self.is_deaf = true;
            self.pending.clear();
            self.forwarded = self.received;
            return None;
        };
        self.forwarded = self.forwarded.wrapping_add(written.unwrap_or(0) as u32);
        written
    }

    /// The guest will do no more what `flags` say.
    pub(super) fn shut_down(&mut self, flags: u32) {
        self.guest_shutdown |= flags & SHUTDOWN_BOTH;
        self.pass_shutdown_on();
    }

    /// Has the program in VM 0 know what the guest will do no more, once it has all data.
    fn pass_shutdown_on(&self) {
        let Some(stream) = &self.stream else { return };
        // This call fails only if the program has closed its socket.
        if self.guest_shutdown & SHUTDOWN_SEND != 0 && self.pending.is_empty() {
            let _ = stream.shutdown(Shutdown::Write);
        }
        if self.guest_shutdown & SHUTDOWN_RECEIVE != 0 {
            let _ = stream.shutdown(Shutdown::Read);
        }
    }

    /// Returns whether the guest has closed its socket, and all its data was passed on.
    pub(super) fn is_over(&self) -> bool {
        self.guest_shutdown == SHUTDOWN_BOTH && self.pending.is_empty()
    }

    /// Returns whether the program in VM 0 may yet have sent something of use.
    pub(super) fn reads(&self) -> bool {
        self.stage == Stage::Open && !self.is_at_end && self.guest_shutdown & SHUTDOWN_RECEIVE == 0
    }

    /// Reads what the program in VM 0 sends, as far as the guest has room.
    pub(super) fn read(&mut self, room: &[VolatileSlice<'_>]) -> Result<Read, Broken> {
        let Some(stream) = self.stream.as_deref().filter(|_| self.reads()) else {
            return Ok(Read::Nothing);
        };
        let mut stream = stream;
        let mut left = self.credit() as usize;
        let mut count = 0;
        for piece in room {
            let here = left.min(piece.len());
            if here == 0 {
                continue;
            }
            let mut piece = piece.subslice(0, here).map_err(|_| Broken)?;
            match outcome(stream.read_volatile(&mut piece))? {
                Some(0) if count == 0 => {
                    self.is_at_end = true;
                    return Ok(Read::End);
                }
                Some(read) => {
                    count += read;
                    left -= read;
                    if read < here {
                        break;
                    }
                }
                None => break,
            }
        }
        self.sent = self.sent.wrapping_add(count as u32);
        match count {
            0 => Ok(Read::Nothing),
            _ => Ok(Read::Data(count as u32)),
        }
    }

    /// The program in VM 0 has closed its socket: the guest has until `deadline` to close its own.
    pub(super) fn close(&mut self, deadline: Instant) {
        self.stage = Stage::Closing(deadline);
        self.stream = None;
        self.pending.clear();
    }

    /// Returns what to wait for at the socket, if anything. That the program closes it is told in any case.
    pub(super) fn interest(&self) -> Option<(Arc<UnixStream>, PollFlags)> {
        let stream = self.stream.as_ref()?;
        let mut flags = PollFlags::empty();
        if self.reads() && self.credit() > 0 {
            flags |= PollFlags::IN;
        }
        if !self.pending.is_empty() {
            flags |= PollFlags::OUT;
        }
        // A socket that was closed with data in it is told for ever.
        let waits_for_room = self.reads() && self.credit() == 0 && flags.is_empty();
        (!waits_for_room).then(|| (Arc::clone(stream), flags))
    }
}

/// Returns the number of bytes that a socket took or gave, or `None` if it can't now.
fn outcome(result: Result<usize, VolatileMemoryError>) -> Result<Option<usize>, Broken> {
    match result {
        Ok(count) => Ok(Some(count)),
        Err(VolatileMemoryError::IOError(e)) => match e.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
            _ => Err(Broken),
        },
        Err(_) => Err(Broken),
    }
}
