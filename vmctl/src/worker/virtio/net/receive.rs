//! The queue by which the guest receives.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
use vm_memory::VolatileSlice;

use super::{Card, GUEST_SEGMENTS, QUEUE_SIZE, count, largest_frame};
use crate::net::tap;
use crate::worker::event::{Event, wait_any};
use crate::worker::memory::Memory;
use crate::worker::virtio::buffers::Buffers;
use crate::worker::virtio::{Malformed, Serve, Vring};

/// Offset in a frame's header of the number of chains that the frame lies in (virtio 1.2 §5.1.6).
const NUM_BUFFERS: usize = 10;

pub(super) struct Receive {
    card: Arc<Card>,
    pair: usize,
    /// A frame may lie in several chains.
    merges: bool,
    /// Bytes of the largest frame.
    largest: usize,
}

/// Chains that were taken from the ring, and lie empty.
#[derive(Default)]
struct Stock {
    chains: VecDeque<(u16, Buffers)>,
    len: usize,
}

/// The reason for which the thread has nothing to do.
enum Idle {
    /// No frame has come.
    NoFrame,
    /// The driver has no buffers for frames.
    NoBuffers,
    /// The tap is gone.
    Gone,
    /// It has.
    Busy,
}

impl Receive {
    pub(super) fn new(card: Arc<Card>, pair: usize, features: u64) -> Self {
        let is_segmented = features & GUEST_SEGMENTS != 0;
        Self {
            largest: largest_frame(card.tap.mtu(), is_segmented),
            merges: features & 1 << VIRTIO_NET_F_MRG_RXBUF != 0,
            card,
            pair,
        }
    }
}

impl Serve for Receive {
    fn run(&mut self, memory: &Memory, vring: &Vring, stop: &Event) -> Result<(), Malformed> {
        let card = Arc::clone(&self.card);
        let Some(queue) = card.tap.queue(self.pair) else {
            return Ok(());
        };
        let mut stock = Stock::default();
        vring.disable_notification(memory)?;
        loop {
            let idle = self.receive(memory, vring, &mut stock)?;
            vring.notify(memory)?;
            let stop_fd = stop.as_fd();
            let waited = match idle {
                Idle::Busy => true,
                Idle::NoFrame => wait_any(&[stop_fd, queue], None),
                Idle::Gone => wait_any(&[stop_fd], None),
                Idle::NoBuffers if vring.enable_notification(memory)? => true,
                Idle::NoBuffers => wait_any(&[stop_fd, vring.kick.as_fd()], None),
            };
            if !waited || stop.is_signalled() {
                return Ok(());
            }
            if matches!(idle, Idle::NoBuffers) {
                vring.kick.clear();
                vring.disable_notification(memory)?;
            }
        }
    }
}

impl Receive {
    /// Hands some frames to the guest.
    fn receive(
        &self,
        memory: &Memory,
        vring: &Vring,
        stock: &mut Stock,
    ) -> Result<Idle, Malformed> {
        let Some(queue) = self.card.tap.queue(self.pair) else {
            return Ok(Idle::Gone);
        };
        for _ in 0..QUEUE_SIZE {
            stock.fill(memory, vring, self.largest)?;
            let slices = stock.slices(memory, self.merges);
            if slices.is_empty() {
                return Ok(Idle::NoBuffers);
            }
            let len = match tap::read_frame(queue, &slices) {
                Ok(len) => len,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(Idle::NoFrame),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => {
                    self.card.check("receive", Err(e));
                    return Ok(Idle::Gone);
                }
            };
            let room: usize = slices.iter().map(VolatileSlice::len).sum();
            // The rest of the frame is lost, so all of it is.
            if len < tap::HEADER || len > room {
                count(&self.card.counters.lost);
                continue;
            }
            self.hand_over(memory, vring, stock, len)?;
        }
        Ok(Idle::Busy)
    }

    /// Returns the chains that a frame lies in to the driver.
    fn hand_over(
        &self,
        memory: &Memory,
        vring: &Vring,
        stock: &mut Stock,
        len: usize,
    ) -> Result<(), Malformed> {
        let mut used = Vec::new();
        let mut left = len;
        let mut header = None;
        while left > 0 {
            let Some((head, buffers)) = stock.take() else {
                break;
            };
            let here = left.min(buffers.len());
            left -= here;
            used.push((head, here as u32));
            header.get_or_insert(buffers);
        }
        // The header may lie in several buffers of the first chain; no room for it is the driver's mistake.
        let mut header = header.unwrap_or_default();
        let count = header.split_off(NUM_BUFFERS).unwrap_or_default();
        count.write(memory, &(used.len() as u16).to_le_bytes());
        vring.push_all(memory, &used)
    }
}

impl Stock {
    /// Takes chains from the ring until a frame of `largest` bytes has room, as far as there are any.
    fn fill(&mut self, memory: &Memory, vring: &Vring, largest: usize) -> Result<(), Malformed> {
        while self.len < largest {
            let Some(chain) = vring.pop(memory)? else {
                return Ok(());
            };
            let head = chain.head_index();
            let (readable, writable) = Buffers::of(memory, chain)?;
            if readable.len() > 0 || writable.len() == 0 {
                return Err(Malformed("a buffer to receive into is empty or readable"));
            }
            self.len += writable.len();
            self.chains.push_back((head, writable));
        }
        Ok(())
    }

    /// Returns the memory that the next frame may lie in.
    fn slices<'a>(&self, memory: &'a Memory, merges: bool) -> Vec<VolatileSlice<'a>> {
        let chains = match merges {
            true => self.chains.len(),
            false => 1,
        };
        let chains = self.chains.iter().take(chains);
        chains
            .flat_map(|(_, buffers)| buffers.slices(memory))
            .collect()
    }

    fn take(&mut self) -> Option<(u16, Buffers)> {
        let taken = self.chains.pop_front()?;
        self.len -= taken.1.len();
        Some(taken)
    }
}
