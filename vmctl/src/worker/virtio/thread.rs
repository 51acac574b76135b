//! The thread of one queue. The transport starts it when the driver enables the queue, and stops
//! it when the driver resets the queue or the device.

use std::io;
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::Instant;

use super::buffers::Buffers;
use super::{Malformed, Notifier, Serve, Vring};
use crate::worker::event::{Event, wait_any};
use crate::worker::memory::Memory;

/// A thread that serves a queue until it is told to stop.
#[derive(Debug)]
pub(super) struct QueueThread {
    stop: Arc<Event>,
    /// `None` once the thread was joined.
    handle: Option<JoinHandle<()>>,
}

/// The objects that a queue's thread works with.
#[derive(Debug)]
pub(super) struct Work {
    /// The device's name.
    pub(super) device: String,
    /// Guest memory.
    pub(super) memory: Memory,
    /// The queue.
    pub(super) vring: Vring,
    /// The way to the device's registers.
    pub(super) notifier: Arc<Notifier>,
}

impl QueueThread {
    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// The process can have no more threads or file descriptors.
    pub(super) fn start(work: Work, mut server: Box<dyn Serve>) -> io::Result<Self> {
        let stop = Arc::new(Event::new()?);
        let stopped = Arc::clone(&stop);
        // The kernel shows 15 bytes of the name.
        let name = format!("{}.{}", work.device, work.vring.index);
        let handle = Builder::new().name(name).spawn(move || {
            if let Err(reason) = server.run(&work.memory, &work.vring, &stopped) {
                let index = work.vring.index;
                let reason = format_args!("queue {index}: {reason}");
                work.notifier.break_device(&work.device, reason);
            }
        })?;
        Ok(Self {
            stop,
            handle: Some(handle),
        })
    }

    /// Tells the thread to stop.
    pub(super) fn stop(&self) {
        self.stop.signal();
    }

    /// Returns whether the thread has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.handle.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for QueueThread {
    fn drop(&mut self) {
        self.stop();
        if let Some(handle) = self.handle.take() {
            let ended = handle.join();
            // In a test a panic does not abort the process.
            debug_assert!(ended.is_ok(), "the thread of a queue has panicked");
        }
    }
}

/// Calls `handle` whenever the driver has made buffers available, until `stop` is signalled or
/// `handle` returns [`ControlFlow::Break`]. `handle` need not take all of them: it is called again. It
/// is also called at the time that it returns.
///
/// # Errors
///
/// The driver's part of the queue is malformed.
pub(super) fn serve_kicks(
    memory: &Memory,
    vring: &Vring,
    stop: &Event,
    mut handle: impl FnMut() -> Result<ControlFlow<(), Option<Instant>>, Malformed>,
) -> Result<(), Malformed> {
    loop {
        vring.disable_notification(memory)?;
        let deadline = loop {
            let ControlFlow::Continue(deadline) = handle()? else {
                return Ok(());
            };
            if !vring.enable_notification(memory)? {
                break deadline;
            }
            // A driver that never pauses can't keep the thread.
            if stop.is_signalled() {
                return Ok(());
            }
        };
        if !wait_any(&[stop.as_fd(), vring.kick.as_fd()], deadline) || stop.is_signalled() {
            return Ok(());
        }
        vring.kick.clear();
    }
}

/// Calls `handle` with the readable and the writable part of each chain, and returns the chain with as many
/// bytes written as `handle` says, until `stop` is signalled.
///
/// # Errors
///
/// The driver's part of the queue is malformed.
pub(super) fn serve_chains(
    memory: &Memory,
    vring: &Vring,
    stop: &Event,
    mut handle: impl FnMut(Buffers, Buffers) -> Result<u32, Malformed>,
) -> Result<(), Malformed> {
    let size = vring.layout().size;
    serve_kicks(memory, vring, stop, || {
        for _ in 0..size {
            let Some(chain) = vring.pop(memory)? else {
                break;
            };
            let head = chain.head_index();
            let (readable, writable) = Buffers::of(memory, chain)?;
            let written = handle(readable, writable)?;
            vring.push(memory, head, written)?;
        }
        vring.notify(memory)?;
        Ok(ControlFlow::Continue(None))
    })
}
