//! The last exits on each physical CPU, for the report of a panic.

use core::sync::atomic::{AtomicU64, Ordering};

use guest_proto::limits::MAX_CPUS;

use crate::arch::exit::RawExit;

/// Exits that are kept per CPU.
const KEPT: usize = 8;

/// An exit of a virtual CPU. If the partition is root, the virtual CPU is a physical one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Number of the partition, 0 for root.
    pub partition: u8,
    /// Index of the CPU in it.
    pub vcpu: u8,
    /// The exit in the hardware's numbers.
    pub raw: RawExit,
}

/// A slot has four words: partition, virtual CPU and exit code; the two words that come with it; instruction pointer.
#[derive(Debug)]
#[repr(align(64))]
struct Ring {
    slots: [[AtomicU64; 4]; KEPT],
    next: AtomicU64,
}

static CPUS: [Ring; MAX_CPUS as usize] = [const {
    Ring {
        slots: [const { [const { AtomicU64::new(0) }; 4] }; KEPT],
        next: AtomicU64::new(0),
    }
}; MAX_CPUS as usize];

/// Notes the exits of one virtual CPU while it runs on one physical CPU.
#[derive(Debug)]
pub struct Trace {
    ring: &'static Ring,
    /// Partition and virtual CPU, as in a slot's first word.
    who: u64,
}

impl Trace {
    /// Begins the notes of virtual CPU `vcpu` on physical CPU `cpu`.
    pub fn new(cpu: usize, partition: u8, vcpu: u8) -> Self {
        Self {
            ring: &CPUS[cpu % CPUS.len()],
            who: u64::from(partition) << 40 | u64::from(vcpu) << 32,
        }
    }

    /// Notes an exit. Only the physical CPU itself calls this: there is one writer, and no locked instruction.
    #[inline]
    pub fn exit(&self, raw: RawExit) {
        let next = self.ring.next.load(Ordering::Relaxed);
        let first = self.who | u64::from(raw.code);
        let words = [first, raw.info.0, raw.info.1, raw.rip];
        for (slot, word) in self.ring.slots[next as usize % KEPT].iter().zip(words) {
            slot.store(word, Ordering::Relaxed);
        }
        self.ring.next.store(next + 1, Ordering::Relaxed);
    }
}

/// Returns the last exits on `cpu`, the latest first.
pub fn last(cpu: usize) -> impl Iterator<Item = Exit> {
    let ring = CPUS.get(cpu);
    let count = ring.map_or(0, |ring| ring.next.load(Ordering::Relaxed));
    let oldest = count.saturating_sub(KEPT as u64);
    (oldest..count).rev().filter_map(move |n| {
        let slot = &ring?.slots[n as usize % KEPT];
        let [who, info1, info2, rip] = slot.each_ref().map(|word| word.load(Ordering::Relaxed));
        Some(Exit {
            partition: (who >> 40) as u8,
            vcpu: (who >> 32) as u8,
            raw: RawExit {
                code: who as u32,
                info: (info1, info2),
                rip,
            },
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_exits_come_latest_first() {
        let made = |n: u64| Exit {
            partition: 255,
            vcpu: 63,
            raw: RawExit {
                code: u32::MAX,
                info: (n, u64::MAX - n),
                rip: 3 * n,
            },
        };
        assert_eq!(last(5).count(), 0);
        for n in 0..KEPT as u64 + 3 {
            let Exit {
                partition,
                vcpu,
                raw,
            } = made(n);
            Trace::new(5, partition, vcpu).exit(raw);
        }
        let kept: std::vec::Vec<_> = last(5).collect();
        let expected: std::vec::Vec<_> = (3..KEPT as u64 + 3).rev().map(made).collect();
        assert_eq!(kept, expected);
        assert_eq!(last(4).count(), 0);
        assert_eq!(last(usize::MAX).count(), 0);
    }
}
