//! A partition's doorbells: ranges whose writes are posted rather than answered.
//!
//! Changed under the partition's control lock; looked up by running virtual CPUs without one. Each
//! entry is two words. `meta` is zero while the entry is free, is written last and cleared first,
//! and is read on both sides of `base`: a reader sees an entry as it was or as it is, or none, and
//! none is always safe (the write becomes an intercept).

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use guest_proto::hypercall::DoorbellSpace;
use guest_proto::limits::MAX_DOORBELLS;

const ENTRIES: usize = MAX_DOORBELLS as usize;
/// Largest range in bytes.
pub const MAX_LENGTH: u64 = 4096;
/// Guest physical addresses end here.
const MEMORY_END: u64 = 1 << 48;
const PORT_END: u64 = 1 << 16;

/// A range and what its writes become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Doorbell {
    /// Where it lies.
    pub space: DoorbellSpace,
    /// First port or address.
    pub base: u64,
    /// Bytes.
    pub length: u16,
    /// What root calls it.
    pub tag: u16,
    /// Never in the ring: each write ends the turn with Notify.
    pub signal_only: bool,
}

/// Why a doorbell was not added or removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DoorbellError {
    /// It overlaps one that exists, or has the tag of one.
    Overlap,
    /// There are as many as there can be.
    Full,
    /// The range is empty, too long, or leaves its space.
    OutOfRange,
    /// No doorbell has this tag.
    NoSuchTag,
}

impl Doorbell {
    fn end(&self) -> u64 {
        self.base.saturating_add(u64::from(self.length))
    }

    fn check(&self) -> Result<(), DoorbellError> {
        let end = match self.space {
            DoorbellSpace::Port => PORT_END,
            DoorbellSpace::Memory => MEMORY_END,
        };
        let length = u64::from(self.length);
        if length == 0 || length > MAX_LENGTH || self.base >= end || self.end() > end {
            return Err(DoorbellError::OutOfRange);
        }
        Ok(())
    }

    fn meta(&self) -> u64 {
        u64::from(self.space.raw())
            | u64::from(self.signal_only) << 8
            | u64::from(self.tag) << 16
            | u64::from(self.length) << 32
    }

    fn unpack(meta: u64, base: u64) -> Option<Self> {
        Some(Self {
            space: DoorbellSpace::from_raw(meta as u8)?,
            base,
            length: (meta >> 32) as u16,
            tag: (meta >> 16) as u16,
            signal_only: meta & 1 << 8 != 0,
        })
    }
}

#[derive(Debug)]
struct Entry {
    meta: AtomicU64,
    base: AtomicU64,
}

impl Entry {
    fn load(&self) -> Option<Doorbell> {
        let meta = self.meta.load(Ordering::Acquire);
        if meta == 0 {
            return None;
        }
        let base = self.base.load(Ordering::Acquire);
        if self.meta.load(Ordering::Relaxed) != meta {
            return None;
        }
        Doorbell::unpack(meta, base)
    }
}

/// The doorbells of one partition.
#[derive(Debug)]
pub struct Doorbells {
    entries: [Entry; ENTRIES],
    /// Entries at and after this index were never used.
    used: AtomicUsize,
}

impl Doorbells {
    /// None.
    pub const fn new() -> Self {
        Self {
            entries: [const {
                Entry {
                    meta: AtomicU64::new(0),
                    base: AtomicU64::new(0),
                }
            }; ENTRIES],
            used: AtomicUsize::new(0),
        }
    }

    /// Registers one. The caller holds the partition's control lock.
    pub fn add(&self, doorbell: Doorbell) -> Result<(), DoorbellError> {
        doorbell.check()?;
        let clashes = |other: &Doorbell| {
            other.tag == doorbell.tag
                || (other.space == doorbell.space
                    && other.base < doorbell.end()
                    && doorbell.base < other.end())
        };
        if self
            .entries
            .iter()
            .filter_map(Entry::load)
            .any(|other| clashes(&other))
        {
            return Err(DoorbellError::Overlap);
        }
        let free = |entry: &Entry| entry.meta.load(Ordering::Relaxed) == 0;
        let index = self
            .entries
            .iter()
            .position(free)
            .ok_or(DoorbellError::Full)?;
        let entry = self.entries.get(index).ok_or(DoorbellError::Full)?;
        entry.base.store(doorbell.base, Ordering::Release);
        entry.meta.store(doorbell.meta(), Ordering::Release);
        self.used.fetch_max(index + 1, Ordering::Release);
        Ok(())
    }

    /// Removes one. The caller holds the partition's control lock.
    pub fn remove(&self, tag: u16) -> Result<(), DoorbellError> {
        let has_tag = |entry: &&Entry| entry.load().is_some_and(|doorbell| doorbell.tag == tag);
        let entry = self
            .entries
            .iter()
            .find(has_tag)
            .ok_or(DoorbellError::NoSuchTag)?;
        entry.meta.store(0, Ordering::Release);
        Ok(())
    }

    /// Removes all.
    pub fn clear(&self) {
        for entry in &self.entries {
            entry.meta.store(0, Ordering::Release);
        }
        self.used.store(0, Ordering::Release);
    }

    /// The doorbell that a write of `size` bytes at `address` lies in whole.
    pub fn find(&self, space: DoorbellSpace, address: u64, size: u8) -> Option<Doorbell> {
        let used = self.used.load(Ordering::Acquire).min(ENTRIES);
        let hit = |doorbell: &Doorbell| {
            doorbell.space == space
                && address >= doorbell.base
                && address.saturating_add(u64::from(size)) <= doorbell.end()
        };
        self.entries
            .iter()
            .take(used)
            .filter_map(Entry::load)
            .find(hit)
    }
}

impl Default for Doorbells {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(base: u64, length: u16, tag: u16) -> Doorbell {
        Doorbell {
            space: DoorbellSpace::Port,
            base,
            length,
            tag,
            signal_only: false,
        }
    }

    #[test]
    fn a_write_must_lie_in_the_range_whole() {
        let doorbells = Doorbells::new();
        assert_eq!(doorbells.add(port(0x3f8, 8, 1)), Ok(()));
        assert_eq!(
            doorbells.find(DoorbellSpace::Port, 0x3f8, 1).map(|d| d.tag),
            Some(1)
        );
        assert_eq!(
            doorbells.find(DoorbellSpace::Port, 0x3ff, 1).map(|d| d.tag),
            Some(1)
        );
        assert_eq!(doorbells.find(DoorbellSpace::Port, 0x3ff, 2), None);
        assert_eq!(doorbells.find(DoorbellSpace::Port, 0x3f7, 1), None);
        assert_eq!(doorbells.find(DoorbellSpace::Memory, 0x3f8, 1), None);
    }

    #[test]
    fn ranges_and_tags_are_unique() {
        let doorbells = Doorbells::new();
        assert_eq!(doorbells.add(port(0x10, 8, 1)), Ok(()));
        assert_eq!(doorbells.add(port(0x17, 1, 2)), Err(DoorbellError::Overlap));
        assert_eq!(doorbells.add(port(0x20, 1, 1)), Err(DoorbellError::Overlap));
        let memory = Doorbell {
            space: DoorbellSpace::Memory,
            ..port(0x10, 8, 2)
        };
        assert_eq!(doorbells.add(memory), Ok(()));
        assert_eq!(doorbells.find(DoorbellSpace::Memory, 0x10, 8), Some(memory));
        assert_eq!(doorbells.remove(3), Err(DoorbellError::NoSuchTag));
        assert_eq!(doorbells.remove(1), Ok(()));
        assert_eq!(doorbells.find(DoorbellSpace::Port, 0x10, 1), None);
    }

    #[test]
    fn ranges_end_inside_their_space() {
        let doorbells = Doorbells::new();
        let out = Err(DoorbellError::OutOfRange);
        assert_eq!(doorbells.add(port(0, 0, 1)), out);
        assert_eq!(doorbells.add(port(0, 4097, 1)), out);
        assert_eq!(doorbells.add(port(0xffff, 2, 1)), out);
        assert_eq!(doorbells.add(port(u64::MAX, 2, 1)), out);
        assert_eq!(doorbells.add(port(0xffff, 1, 1)), Ok(()));
        for tag in 2..=MAX_DOORBELLS as u16 {
            assert_eq!(doorbells.add(port(u64::from(tag), 1, tag)), Ok(()));
        }
        assert_eq!(
            doorbells.add(port(0x8000, 1, 900)),
            Err(DoorbellError::Full)
        );
    }
}
