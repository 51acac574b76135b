//! The queue by which the guest sends.

use std::ops::ControlFlow;
use std::sync::Arc;

use zerocopy::IntoBytes;

use super::QUEUE_SIZE;
use super::mux::Mux;
use super::packet::{HEADER, Header};
use crate::worker::event::Event;
use crate::worker::memory::Memory;
use crate::worker::virtio::buffers::Buffers;
use crate::worker::virtio::thread::serve_kicks;
use crate::worker::virtio::{Malformed, Serve, Vring};

pub(super) struct Transmit(Arc<Mux>);

impl Transmit {
    pub(super) fn new(mux: Arc<Mux>) -> Self {
        Self(mux)
    }

    /// Hands a packet of the guest on.
    fn send(&self, memory: &Memory, mut packet: Buffers) -> Result<(), Malformed> {
        const SHORT: Malformed = Malformed("a packet is shorter than its header says");
        let mut data = packet.split_off(HEADER).ok_or(SHORT)?;
        let mut header = Header::default();
        packet.read(memory, header.as_mut_bytes());
        let len = header.len.get() as usize;
        data.split_off(len).ok_or(SHORT)?;
        self.0.hear(&header, &data.slices(memory));
        Ok(())
    }
}

impl Serve for Transmit {
    fn run(&mut self, memory: &Memory, vring: &Vring, stop: &Event) -> Result<(), Malformed> {
        serve_kicks(memory, vring, stop, || {
            for _ in 0..QUEUE_SIZE {
                if !self.0.await_room(stop) {
                    return Ok(ControlFlow::Break(()));
                }
                let Some(chain) = vring.pop(memory)? else {
                    break;
                };
                let head = chain.head_index();
                let (packet, writable) = Buffers::of(memory, chain)?;
                if writable.len() > 0 {
                    return Err(Malformed("a packet to send lies in a writable buffer"));
                }
                self.send(memory, packet)?;
                vring.push(memory, head, 0)?;
            }
            vring.notify(memory)?;
            Ok(ControlFlow::Continue(None))
        })
    }
}
