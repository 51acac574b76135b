//! The queue by which the guest sends.

use std::sync::Arc;

use super::{Card, ETHERNET_HEADER, count, largest_frame};
use crate::net::tap;
use crate::worker::event::Event;
use crate::worker::memory::Memory;
use crate::worker::virtio::buffers::Buffers;
use crate::worker::virtio::thread::serve_chains;
use crate::worker::virtio::{Malformed, Serve, Vring};

/// Bytes of an Ethernet header without tags.
const SHORTEST: usize = ETHERNET_HEADER - 8;

pub(super) struct Transmit {
    card: Arc<Card>,
    pair: usize,
}

impl Transmit {
    pub(super) fn new(card: Arc<Card>, pair: usize) -> Self {
        Self { card, pair }
    }

    /// Sends a frame, or drops it. Root's kernel checks the header: offsets that lie in the frame, sizes of
    /// segments that are not 0.
    fn send(&self, memory: &Memory, frame: &Buffers) {
        let lengths = tap::HEADER + SHORTEST..=largest_frame(0, true);
        let is_sent = lengths.contains(&frame.len())
            && self
                .card
                .tap
                .queue(self.pair)
                .is_some_and(|queue| tap::write_frame(queue, &frame.slices(memory)).is_ok());
        if !is_sent {
            count(&self.card.counters.refused);
        }
    }
}

impl Serve for Transmit {
    fn run(&mut self, memory: &Memory, vring: &Vring, stop: &Event) -> Result<(), Malformed> {
        serve_chains(memory, vring, stop, |frame, writable| {
            if writable.len() > 0 {
                return Err(Malformed("a frame to send lies in a writable buffer"));
            }
            self.send(memory, &frame);
            Ok(0)
        })
    }
}
