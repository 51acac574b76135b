//! The posted-write ring: one producer (the microvisor), one consumer (the worker).
//!
//! Free-running 32-bit indices, each in its writer's cache line. Each side trusts its own index
//! only, which it keeps in private memory; what it reads of the other's is checked. A consumer
//! that lies loses its own entries, or is told that the ring is full; nothing is ever accessed
//! out of bounds.
//!
//! Sleep and wakeup: the consumer sets `need_wakeup`, fences, looks at `head` again; the producer
//! stores `head`, fences, looks at `need_wakeup`. One of them sees the other.

use zerocopy::transmute;

use crate::shared::{ConsumerLine, Ordering, ProducerLine, SharedPage, Slot, fence};
use crate::vcpu_page::PostedWrite;

/// The three places of a ring, whoever looks at them. `N` is a power of two.
#[derive(Clone, Copy, Debug)]
pub struct Ring<'a, const N: usize> {
    /// The producer's line.
    pub producer: &'a ProducerLine,
    /// The consumer's line.
    pub consumer: &'a ConsumerLine,
    /// The entries.
    pub slots: &'a [Slot; N],
}

impl<'a> From<&'a SharedPage> for Ring<'a, { crate::limits::RING_ENTRIES as usize }> {
    fn from(page: &'a SharedPage) -> Self {
        Self {
            producer: &page.producer,
            consumer: &page.consumer,
            slots: &page.ring,
        }
    }
}

impl<const N: usize> Ring<'_, N> {
    const POWER_OF_TWO: () = assert!(N.is_power_of_two() && N <= 1 << 30);

    fn slot(&self, index: u32) -> &Slot {
        const { Self::POWER_OF_TWO };
        &self.slots[index as usize & (N - 1)]
    }
}

/// The result of pushing an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Push {
    /// It is in the ring, and the consumer is awake, or will look before it sleeps.
    Posted,
    /// It is in the ring, and the consumer sleeps: wake it.
    PostedWake,
    /// There was no room, or the consumer's index makes no sense. Nothing was written.
    Full,
}

/// The producer's private half.
#[derive(Debug, Default)]
pub struct Producer {
    head: u32,
}

impl Producer {
    /// For a ring that was never used.
    pub const fn new() -> Self {
        Self { head: 0 }
    }

    /// Appends an entry.
    #[inline]
    pub fn push<const N: usize>(&mut self, ring: Ring<'_, N>, entry: PostedWrite) -> Push {
        // Acquire: the consumer is done reading the slots before its tail.
        let tail = ring.consumer.tail.load(Ordering::Acquire);
        if self.head.wrapping_sub(tail) >= N as u32 {
            return Push::Full;
        }
        let words: [u64; 2] = transmute!(entry);
        let slot = ring.slot(self.head);
        slot.words[0].store(words[0], Ordering::Relaxed);
        slot.words[1].store(words[1], Ordering::Relaxed);
        self.head = self.head.wrapping_add(1);
        ring.producer.head.store(self.head, Ordering::Release);
        fence(Ordering::SeqCst);
        // The plain load keeps the locked exchange away from the polling case.
        if ring.consumer.need_wakeup.load(Ordering::Relaxed) != 0
            && ring.consumer.need_wakeup.swap(0, Ordering::AcqRel) != 0
        {
            Push::PostedWake
        } else {
            Push::Posted
        }
    }
}

/// The consumer's private half.
#[derive(Debug)]
pub struct Consumer {
    tail: u32,
}

impl Consumer {
    /// Takes over where the last consumer of this ring stopped (for a fresh page: at 0).
    pub fn attach<const N: usize>(ring: Ring<'_, N>) -> Self {
        Self {
            tail: ring.consumer.tail.load(Ordering::Acquire),
        }
    }

    /// Takes the oldest entry.
    #[inline]
    pub fn pop<const N: usize>(&mut self, ring: Ring<'_, N>) -> Option<PostedWrite> {
        let head = ring.producer.head.load(Ordering::Acquire);
        let used = head.wrapping_sub(self.tail);
        if used == 0 {
            return None;
        }
        if used > N as u32 {
            // A former consumer left a tail that never was; the producer has answered "full"
            // ever since, so there is nothing to lose in starting again from its index.
            self.tail = head;
            ring.consumer.tail.store(self.tail, Ordering::Release);
            return None;
        }
        let slot = ring.slot(self.tail);
        let words = [
            slot.words[0].load(Ordering::Relaxed),
            slot.words[1].load(Ordering::Relaxed),
        ];
        self.tail = self.tail.wrapping_add(1);
        ring.consumer.tail.store(self.tail, Ordering::Release);
        Some(transmute!(words))
    }

    /// Announces sleep. True: the ring is empty and the next entry brings a wakeup. False: there
    /// is something to take, and no wakeup was asked for.
    pub fn prepare_sleep<const N: usize>(&mut self, ring: Ring<'_, N>) -> bool {
        // An exchange for loom's sake, which does not order a plain store after the producer's.
        ring.consumer.need_wakeup.swap(1, Ordering::AcqRel);
        fence(Ordering::SeqCst);
        if ring.producer.head.load(Ordering::Acquire) == self.tail {
            return true;
        }
        self.cancel_sleep(ring);
        false
    }

    /// Takes the announcement back (it was woken by something else, and will poll now).
    pub fn cancel_sleep<const N: usize>(&self, ring: Ring<'_, N>) {
        ring.consumer.need_wakeup.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
