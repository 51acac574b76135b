//! A console (virtio 1.2 §5.3): one port, with the size of the user's terminal.
//!
//! A queue's thread moves bytes between guest memory and a [`Port`], from which the device thread
//! serves the users. The guest waits while more output is kept than should be, and users wait while the
//! guest does not read.

use std::collections::VecDeque;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::buffers::Buffers;
use super::thread::serve_kicks;
use super::{Device, Kind, Malformed, Serve, Vring, read_bytes};
use crate::worker::event::{Event, wait_any};
use crate::worker::memory::Memory;

/// The device's name.
pub const NAME: &str = "console";
/// Feature: the configuration has the terminal's size (§5.3.3).
const VIRTIO_CONSOLE_F_SIZE: u32 = 0;
/// Largest size of a queue.
const QUEUE_SIZE: u16 = 64;
/// The queue by which the guest reads. It writes by the other one.
const RECEIVE: u16 = 0;
/// Bytes of output that are kept before the guest has to wait.
const MAX_OUTPUT: usize = 256 << 10;
/// Bytes that are copied from guest memory at once.
const PIECE: usize = 16 << 10;
/// Typed bytes that are kept for the guest.
const MAX_TYPED: usize = 4096;

/// Input and output of a console, between the threads of its queues and the device thread.
#[derive(Debug)]
pub struct Port {
    state: Mutex<State>,
    /// Something was typed.
    typed: Event,
    /// Output was taken.
    taken: Event,
    /// Wakes the device thread.
    wake: Arc<Event>,
}

#[derive(Debug, Default)]
struct State {
    output: Vec<u8>,
    /// The device thread sleeps until it is woken.
    is_asleep: bool,
    typed: VecDeque<u8>,
    /// Users have typed more than there was room for.
    typing_waits: bool,
    columns: u16,
    rows: u16,
}

impl Port {
    /// A port whose output wakes the device thread by `wake`.
    ///
    /// # Errors
    ///
    /// The process has no file descriptors left.
    pub fn new(wake: Arc<Event>) -> io::Result<Self> {
        Ok(Self {
            state: Mutex::default(),
            typed: Event::new()?,
            taken: Event::new()?,
            wake,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the device thread woken by the next output. False if there is some already.
    #[must_use]
    pub fn prepare_sleep(&self) -> bool {
        let mut state = self.state();
        state.is_asleep = state.output.is_empty();
        state.is_asleep
    }

    /// Takes that back.
    pub fn cancel_sleep(&self) {
        self.state().is_asleep = false;
    }

    /// Takes what the guest wrote since the last call.
    pub fn take_output(&self) -> Vec<u8> {
        let output = std::mem::take(&mut self.state().output);
        if !output.is_empty() {
            self.taken.signal();
        }
        output
    }

    /// Returns how many typed bytes there is room for. If there is none, the device thread is woken
    /// when there is some again.
    pub fn room(&self) -> usize {
        let mut state = self.state();
        let room = MAX_TYPED.saturating_sub(state.typed.len());
        state.typing_waits = room == 0;
        room
    }

    /// Types; `bytes` are at most as many as there is room for.
    pub fn type_in(&self, bytes: &[u8]) {
        self.state().typed.extend(bytes);
        self.typed.signal();
    }

    /// Changes the size of the terminal. Returns false if that is its size already.
    pub fn resize(&self, columns: u16, rows: u16) -> bool {
        let mut state = self.state();
        let is_other = (state.columns, state.rows) != (columns, rows);
        (state.columns, state.rows) = (columns, rows);
        is_other
    }

    /// Keeps what the guest wrote, if there is room.
    fn put(&self, bytes: &[u8]) -> bool {
        let mut state = self.state();
        if state.output.len() >= MAX_OUTPUT {
            return false;
        }
        state.output.extend_from_slice(bytes);
        if std::mem::take(&mut state.is_asleep) {
            self.wake.signal();
        }
        true
    }

    /// Does the same as [`Self::put`], and waits for room. Returns false if `stop` was signalled before there was some.
    fn put_when_taken(&self, bytes: &[u8], stop: &Event) -> bool {
        loop {
            // Before the look for room, or the signal for it could be lost.
            self.taken.clear();
            if self.put(bytes) {
                return true;
            }
            let waited = wait_any(&[stop.as_fd(), self.taken.as_fd()], None);
            if !waited || stop.is_signalled() {
                return false;
            }
        }
    }

    /// Takes at most `limit` typed bytes.
    fn take_typed(&self, limit: usize) -> Vec<u8> {
        let mut state = self.state();
        let count = limit.min(state.typed.len());
        let bytes = state.typed.drain(..count).collect();
        if count > 0 && std::mem::take(&mut state.typing_waits) {
            self.wake.signal();
        }
        bytes
    }

    fn has_typed(&self) -> bool {
        !self.state().typed.is_empty()
    }
}

/// The device.
#[derive(Debug)]
pub struct Console(Arc<Port>);

impl Console {
    /// A console with this port.
    pub fn new(port: Arc<Port>) -> Self {
        Self(port)
    }
}

impl Device for Console {
    fn kind(&self) -> Kind {
        Kind::Console
    }

    fn name(&self) -> &str {
        NAME
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_CONSOLE_F_SIZE
    }

    fn queues(&self) -> &[u16] {
        &[QUEUE_SIZE, QUEUE_SIZE]
    }

    /// `struct virtio_console_config` (§5.3.4).
    fn read_config(&self, at: usize, bytes: &mut [u8]) {
        let state = self.0.state();
        let (columns, rows) = (state.columns.to_le_bytes(), state.rows.to_le_bytes());
        let config = [columns[0], columns[1], rows[0], rows[1]];
        read_bytes(&config, at, bytes);
    }

    fn server(&mut self, index: u16, _features: u64) -> Box<dyn Serve> {
        let port = Arc::clone(&self.0);
        match index {
            RECEIVE => Box::new(Receive(port)),
            _ => Box::new(Transmit(port)),
        }
    }
}

/// The queue by which the guest writes.
struct Transmit(Arc<Port>);

impl Serve for Transmit {
    fn run(&mut self, memory: &Memory, vring: &Vring, stop: &Event) -> Result<(), Malformed> {
        serve_kicks(memory, vring, stop, || self.transmit(memory, vring, stop))?;
        // The last words of a guest that is over by now.
        self.transmit(memory, vring, stop).map(drop)
    }
}

impl Transmit {
    fn transmit(
        &self,
        memory: &Memory,
        vring: &Vring,
        stop: &Event,
    ) -> Result<ControlFlow<(), Option<Instant>>, Malformed> {
        for _ in 0..QUEUE_SIZE {
            let Some(chain) = vring.pop(memory)? else {
                break;
            };
            let head = chain.head_index();
            let (mut readable, _) = Buffers::of(memory, chain)?;
            while readable.len() > 0 {
                let rest = readable.split_off(readable.len().min(PIECE));
                let mut bytes = vec![0; readable.len()];
                readable.read(memory, &mut bytes);
                if !self.0.put_when_taken(&bytes, stop) {
                    return Ok(ControlFlow::Break(()));
                }
                readable = rest.unwrap_or_default();
            }
            vring.push(memory, head, 0)?;
        }
        vring.notify(memory)?;
        Ok(ControlFlow::Continue(None))
    }
}

/// The queue by which the guest reads.
struct Receive(Arc<Port>);

impl Serve for Receive {
    fn run(&mut self, memory: &Memory, vring: &Vring, stop: &Event) -> Result<(), Malformed> {
        vring.disable_notification(memory)?;
        loop {
            let needs_buffers = self.receive(memory, vring, stop)?;
            // Buffers that come while nothing was typed can wait.
            if needs_buffers && vring.enable_notification(memory)? {
                vring.disable_notification(memory)?;
                if stop.is_signalled() {
                    return Ok(());
                }
                continue;
            }
            let port = &self.0;
            let events = [stop.as_fd(), vring.kick.as_fd(), port.typed.as_fd()];
            if !wait_any(&events, None) || stop.is_signalled() {
                return Ok(());
            }
            vring.kick.clear();
            port.typed.clear();
            if needs_buffers {
                vring.disable_notification(memory)?;
            }
        }
    }
}

impl Receive {
    /// Hands on what was typed. Returns true if the guest has no buffers for the rest of it.
    fn receive(&self, memory: &Memory, vring: &Vring, stop: &Event) -> Result<bool, Malformed> {
        let mut needs_buffers = false;
        while self.0.has_typed() {
            let Some(chain) = vring.pop(memory)? else {
                needs_buffers = true;
                break;
            };
            let head = chain.head_index();
            let (_, writable) = Buffers::of(memory, chain)?;
            let bytes = self.0.take_typed(writable.len());
            let written = writable.write(memory, &bytes);
            vring.push(memory, head, written as u32)?;
            // Empty buffers take nothing.
            if stop.is_signalled() {
                break;
            }
        }
        vring.notify(memory)?;
        Ok(needs_buffers)
    }
}
