//! The 16550: vm-superio's, with its output and its interrupt kept for the bus.

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};

use vm_superio::serial::NoEvents;
use vm_superio::{Serial, Trigger};

/// An edge that the bus has not seen yet. Atomic only for `Trigger`'s shared reference: the device
/// is used under the VM's lock.
#[derive(Debug, Default)]
struct Edge(AtomicBool);

impl Trigger for Edge {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.store(true, Ordering::Relaxed);
        Ok(())
    }
}

/// COM1.
#[derive(Debug)]
pub(super) struct Uart(Serial<Edge, NoEvents, Vec<u8>>);

impl Uart {
    pub(super) fn new() -> Self {
        Self(Serial::new(Edge::default(), Vec::new()))
    }

    pub(super) fn read(&mut self, register: u8) -> u8 {
        self.0.read(register)
    }

    pub(super) fn write(&mut self, register: u8, value: u8) {
        // Neither writing to memory nor the edge can fail.
        let _ = self.0.write(register, value);
    }

    /// Bytes that [`Self::receive`] takes.
    pub(super) fn room(&self) -> usize {
        self.0.fifo_capacity()
    }

    pub(super) fn receive(&mut self, bytes: &[u8]) {
        // A full FIFO loses bytes, as the real one does; callers ask for the room.
        let _ = self.0.enqueue_raw_bytes(bytes);
    }

    pub(super) fn output(&mut self) -> &mut Vec<u8> {
        self.0.writer_mut()
    }

    pub(super) fn take_interrupt(&mut self) -> bool {
        self.0.interrupt_evt().0.swap(false, Ordering::Relaxed)
    }
}
