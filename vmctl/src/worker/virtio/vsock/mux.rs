//! All connections of a VM, and the sockets in VM 0 that may become connections.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use vm_memory::VolatileSlice;

use super::connection::{Broken, Connection, Read, Stage};
use super::packet::{
    HOST_CID, Header, Ports, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, operation,
};
use crate::worker::event::{Event, wait_any};

/// Connections of a VM.
const MAX_CONNECTIONS: usize = 1024;
/// Clients that have not said which port they want. The oldest one makes room for a new one.
const MAX_GREETINGS: usize = 64;
/// Packets without data that wait for the guest, before it has to wait.
const MAX_REPLIES: usize = 256;
/// Connections that the daemon makes for the guest at once.
const MAX_REQUESTS: usize = 16;
/// The time in which a guest must close a socket whose other end is closed, as in Linux
/// (`VSOCK_CLOSE_TIMEOUT`).
const CLOSE_TIMEOUT: Duration = Duration::from_secs(8);
/// The first port of connections that programs in VM 0 ask for.
const FIRST_PORT: u32 = 1 << 30;
/// Bytes of the longest line that asks for a port.
const MAX_LINE: usize = 32;

/// The connections, between the threads of the queues and the device thread.
#[derive(Debug)]
pub struct Mux {
    cid: u64,
    listener: UnixListener,
    state: Mutex<State>,
    /// The thread of the receive queue has something to send or to wait for.
    changed: Event,
    /// The thread of the receive queue has sent something.
    sent: Event,
    /// Wakes the device thread.
    wake: Arc<Event>,
}

#[derive(Debug, Default)]
struct State {
    connections: BTreeMap<Ports, Connection>,
    greetings: VecDeque<Greeting>,
    /// Packets without data that go to the guest.
    replies: VecDeque<Header>,
    /// Connections that the daemon is to make: the request's number, and the port.
    requests: VecDeque<(u64, u32)>,
    /// Numbers of the requests that the daemon has.
    asked: Vec<u64>,
    last_request: u64,
    last_port: u32,
}

/// A client that has not said which port it wants.
#[derive(Debug)]
struct Greeting {
    stream: Arc<UnixStream>,
    line: Vec<u8>,
}

/// A descriptor that the thread of the receive queue waits for.
#[derive(Clone, Debug)]
pub(super) enum Source {
    /// The VM's socket.
    Listener,
    /// A client that has not said which port it wants.
    Greeting(Arc<UnixStream>),
    /// A connection.
    Connection(Ports, Arc<UnixStream>),
}

impl Mux {
    /// Makes the connections of a guest with the address `cid`. Programs in VM 0 connect to `listener`; `wake`
    /// wakes the device thread, which asks the daemon for connections.
    ///
    /// # Errors
    ///
    /// The process has no file descriptors left.
    pub fn new(cid: u64, listener: UnixListener, wake: Arc<Event>) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self {
            cid,
            listener,
            state: Mutex::default(),
            changed: Event::new()?,
            sent: Event::new()?,
            wake,
        })
    }

    /// Returns the guest's address.
    pub(super) fn cid(&self) -> u64 {
        self.cid
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets all connections, for another driver.
    pub(super) fn reset(&self) {
        let mut state = self.state();
        // Ports and requests of the time before stay different from later ones.
        *state = State {
            last_request: state.last_request,
            last_port: state.last_port,
            ..State::default()
        };
    }

    /// Takes requests for connections: the number of each, and the port of VM 0.
    pub fn take_requests(&self) -> Vec<(u64, u32)> {
        let mut state = self.state();
        let state = &mut *state;
        let room = MAX_REQUESTS.saturating_sub(state.asked.len());
        let count = room.min(state.requests.len());
        let requests: Vec<_> = state.requests.drain(..count).collect();
        state
            .asked
            .extend(requests.iter().map(|(request, _)| request));
        requests
    }

    /// The daemon has made a connection, or has not.
    pub fn answer(&self, request: u64, stream: Option<OwnedFd>) {
        let mut state = self.state();
        state.asked.retain(|&asked| asked != request);
        state.answer(self.cid, request, stream.map(UnixStream::from));
        drop(state);
        self.changed.signal();
    }

    /// The daemon is gone: it makes no connection that it was asked for.
    pub fn daemon_lost(&self) {
        let mut state = self.state();
        let asked = std::mem::take(&mut state.asked);
        for &request in &asked {
            state.answer(self.cid, request, None);
        }
        drop(state);
        if !asked.is_empty() {
            self.changed.signal();
        }
    }

    /// Takes a packet of the guest, with its data.
    pub(super) fn hear(&self, header: &Header, data: &[VolatileSlice<'_>]) {
        let mut state = self.state();
        let (replies, requests) = (state.replies.len(), state.requests.len());
        let needs_wait = state.hear(self.cid, header, data);
        let has_replies = state.replies.len() > replies;
        let has_requests = state.requests.len() > requests;
        drop(state);
        if has_replies || needs_wait {
            self.changed.signal();
        }
        if has_requests {
            self.wake.signal();
        }
    }

    /// Waits while too many packets without data wait for the guest. Returns false if `stop` is signalled.
    pub(super) fn await_room(&self, stop: &Event) -> bool {
        loop {
            // Before the look, or the signal could be lost.
            self.sent.clear();
            if self.state().replies.len() < MAX_REPLIES {
                return true;
            }
            let waited = wait_any(&[stop.as_fd(), self.sent.as_fd()], None);
            if !waited || stop.is_signalled() {
                return false;
            }
        }
    }

    /// Returns the event of [`Self::hear`] and others.
    pub(super) fn changed(&self) -> &Event {
        &self.changed
    }

    /// Returns the socket that programs in VM 0 connect to.
    pub(super) fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// Returns what to wait for, and until when.
    pub(super) fn interests(&self) -> (Vec<(Source, PollFlags)>, Option<Instant>) {
        let state = self.state();
        let mut interests = vec![(Source::Listener, PollFlags::IN)];
        let greetings = state.greetings.iter();
        interests.extend(greetings.map(|greeting| {
            let stream = Arc::clone(&greeting.stream);
            (Source::Greeting(stream), PollFlags::IN)
        }));
        let mut deadline: Option<Instant> = None;
        for (&ports, connection) in &state.connections {
            if let Some((stream, flags)) = connection.interest() {
                interests.push((Source::Connection(ports, stream), flags));
            }
            if let Stage::Closing(at) = connection.stage() {
                deadline = Some(deadline.map_or(at, |other| other.min(at)));
            }
        }
        (interests, deadline)
    }

    /// Resets connections that the guest has not closed in time.
    pub(super) fn expire(&self) {
        let mut state = self.state();
        let now = Instant::now();
        let is_late =
            |connection: &Connection| matches!(connection.stage(), Stage::Closing(at) if at <= now);
        let late = state.connections.iter().filter(|(_, it)| is_late(it));
        let late: Vec<_> = late.map(|(&ports, _)| ports).collect();
        for ports in late {
            state.break_off(self.cid, ports);
        }
    }

    /// Accepts clients.
    pub(super) fn accept(&self) {
        while let Ok((stream, _)) = self.listener.accept() {
            if stream.set_nonblocking(true).is_err() {
                continue;
            }
            let mut state = self.state();
            if state.greetings.len() >= MAX_GREETINGS {
                state.greetings.pop_front();
            }
            state.greetings.push_back(Greeting {
                stream: Arc::new(stream),
                line: Vec::new(),
            });
        }
    }

    /// Reads what a client says that has not said which port it wants.
    pub(super) fn greet(&self, stream: &Arc<UnixStream>) {
        let mut state = self.state();
        let found = state.greetings.iter();
        let index = found
            .enumerate()
            .find(|(_, it)| Arc::ptr_eq(&it.stream, stream));
        let Some((index, _)) = index else { return };
        let Some(mut greeting) = state.greetings.remove(index) else {
            return;
        };
        match greeting.read() {
            Ok(Some(port)) => state.ask(self.cid, port, greeting.stream),
            Ok(None) => state.greetings.insert(index, greeting),
            // The connection is removed.
            Err(Broken) => {}
        }
    }

    /// Passes on data of the guest that had to wait.
    pub(super) fn flush(&self, ports: Ports) {
        let flush = |connection: &mut Connection| {
            connection.flush();
            Ok(())
        };
        self.state().step(self.cid, ports, flush);
    }

    /// Reads data for the guest into `room`. Returns the header of the packet, or `None` if there is no data.
    pub(super) fn read(&self, ports: Ports, room: &[VolatileSlice<'_>]) -> Option<Header> {
        let mut state = self.state();
        let mut header = Header::new(self.cid, ports, operation::DATA);
        let mut outcome = Read::Nothing;
        state.step(self.cid, ports, |connection| {
            outcome = connection.read(room)?;
            connection.tell(&mut header);
            Ok(())
        });
        match outcome {
            Read::Data(len) => {
                header.len = len.into();
                return Some(header);
            }
            Read::Nothing => {}
            Read::End => state.say(self.cid, ports, operation::SHUTDOWN, SHUTDOWN_SEND),
        }
        None
    }

    /// The program in VM 0 has closed a connection's socket. The guest may yet have to receive something.
    pub(super) fn hung_up(&self, ports: Ports, stream: &Arc<UnixStream>) {
        let mut state = self.state();
        let connection = state.connections.get_mut(&ports);
        let is_it = |it: &&mut Connection| it.stream().is_some_and(|own| Arc::ptr_eq(own, stream));
        let Some(connection) = connection.filter(is_it) else {
            return;
        };
        if connection.stage() != Stage::Open {
            return state.break_off(self.cid, ports);
        }
        if connection.reads() {
            return;
        }
        connection.close(Instant::now() + CLOSE_TIMEOUT);
        state.say(self.cid, ports, operation::SHUTDOWN, SHUTDOWN_BOTH);
    }

    /// Takes the next packet without data for the guest.
    pub(super) fn take_reply(&self) -> Option<Header> {
        let reply = self.state().replies.pop_front();
        if reply.is_some() {
            self.sent.signal();
        }
        reply
    }

    /// Returns whether a packet without data waits for the guest.
    pub(super) fn has_replies(&self) -> bool {
        !self.state().replies.is_empty()
    }
}

impl State {
    /// Queues a packet without data of a connection.
    fn say(&mut self, cid: u64, ports: Ports, operation: u16, flags: u32) {
        let mut header = Header::new(cid, ports, operation);
        header.flags = flags.into();
        if let Some(connection) = self.connections.get_mut(&ports) {
            connection.tell(&mut header);
        }
        self.replies.push_back(header);
    }

    /// Ends a connection at once.
    fn break_off(&mut self, cid: u64, ports: Ports) {
        self.forget(ports);
        self.say(cid, ports, operation::RESET, 0);
    }

    /// Removes a connection. The daemon is no longer to make it.
    fn forget(&mut self, ports: Ports) {
        let stage = self.connections.remove(&ports).map(|it| it.stage());
        if let Some(Stage::Connecting(request)) = stage {
            self.requests.retain(|(queued, _)| *queued != request);
        }
    }

    /// Goes on with a connection, and ends it if it is broken or over.
    fn step(
        &mut self,
        cid: u64,
        ports: Ports,
        step: impl FnOnce(&mut Connection) -> Result<(), Broken>,
    ) {
        let Some(connection) = self.connections.get_mut(&ports) else {
            return;
        };
        if step(connection).is_err() || connection.is_over() {
            self.break_off(cid, ports);
        } else if connection.tells_deaf() {
            self.say(cid, ports, operation::SHUTDOWN, SHUTDOWN_RECEIVE);
        } else if connection.owes_update() {
            self.say(cid, ports, operation::CREDIT_UPDATE, 0);
        } else if connection.asks_for_credit() {
            self.say(cid, ports, operation::CREDIT_REQUEST, 0);
        }
    }

    /// Asks the guest for a connection that a program in VM 0 wants.
    fn ask(&mut self, cid: u64, port: u32, stream: Arc<UnixStream>) {
        if self.connections.len() >= MAX_CONNECTIONS {
            return;
        }
        let ports = loop {
            // Ports with the highest bit mean "any" in some programs.
            self.last_port = self.last_port.wrapping_add(1) % FIRST_PORT;
            let host = FIRST_PORT + self.last_port;
            let ports = Ports { host, guest: port };
            if !self.connections.contains_key(&ports) {
                break ports;
            }
        };
        self.connections.insert(ports, Connection::of_host(stream));
        self.say(cid, ports, operation::REQUEST, 0);
    }

    /// Goes on with a connection that the daemon was to make.
    fn answer(&mut self, cid: u64, request: u64, stream: Option<UnixStream>) {
        let is_wanted = |connection: &Connection| connection.stage() == Stage::Connecting(request);
        let wanted = self.connections.iter_mut().find(|(_, it)| is_wanted(it));
        // The guest may have given up in the meantime.
        let Some((&ports, connection)) = wanted else {
            return;
        };
        let stream = stream.filter(|stream| stream.set_nonblocking(true).is_ok());
        let Some(stream) = stream else {
            return self.break_off(cid, ports);
        };
        connection.connected(stream);
        self.say(cid, ports, operation::RESPONSE, 0);
    }

    /// Takes a packet of the guest. Returns whether there is something new to wait for.
    fn hear(&mut self, cid: u64, header: &Header, data: &[VolatileSlice<'_>]) -> bool {
        // A guest that speaks for another address is not answered, as by Linux's vhost-vsock.
        if header.src_cid.get() != cid {
            return false;
        }
        let ports = header.ports();
        let operation = header.operation.get();
        let is_known = header.is_stream() && header.dst_cid.get() == HOST_CID;
        let connection = self.connections.get_mut(&ports).filter(|_| is_known);
        let Some(connection) = connection else {
            if operation == operation::REQUEST && is_known {
                self.open(header);
            } else if operation != operation::RESET {
                self.replies.push_back(header.refusal());
            }
            return false;
        };
        let mut needs_wait = connection.hear(header);
        let outcome = match (operation, connection.stage()) {
            (operation::RESET, _) => {
                self.forget(ports);
                return true;
            }
            (operation::RESPONSE, Stage::Asked) => {
                needs_wait = true;
                connection.accepted(ports.host)
            }
            (operation::DATA, Stage::Open | Stage::Closing(_)) => {
                connection.forward(data).map(|waits| needs_wait |= waits)
            }
            (operation::SHUTDOWN, Stage::Open | Stage::Closing(_)) => {
                connection.shut_down(header.flags.get());
                Ok(())
            }
            (operation::CREDIT_REQUEST, Stage::Open | Stage::Closing(_)) => {
                self.say(cid, ports, operation::CREDIT_UPDATE, 0);
                Ok(())
            }
            (operation::CREDIT_UPDATE, _) => Ok(()),
            _ => Err(Broken),
        };
        self.step(cid, ports, |_| outcome);
        needs_wait
    }

    /// The guest asks for a connection.
    fn open(&mut self, header: &Header) {
        if self.connections.len() >= MAX_CONNECTIONS {
            self.replies.push_back(header.refusal());
            return;
        }
        let ports = header.ports();
        self.last_request += 1;
        let connection = Connection::of_guest(self.last_request, header);
        self.connections.insert(ports, connection);
        self.requests.push_back((self.last_request, ports.host));
    }
}

impl Greeting {
    /// Reads what has come of `CONNECT PORT`, one byte after the other: what is behind the line is for the
    /// guest. Returns the port, if the line is complete.
    fn read(&mut self) -> Result<Option<u32>, Broken> {
        let mut byte = [0];
        loop {
            match (&*self.stream).read(&mut byte) {
                Ok(1) if byte == *b"\n" => return self.port().map(Some).ok_or(Broken),
                Ok(1) if self.line.len() < MAX_LINE => self.line.push(byte[0]),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                _ => return Err(Broken),
            }
        }
    }

    fn port(&self) -> Option<u32> {
        let line = str::from_utf8(&self.line).ok()?;
        let (word, port) = line.trim_end().split_once(' ')?;
        let is_connect = word.eq_ignore_ascii_case("connect");
        port.parse().ok().filter(|_| is_connect)
    }
}
