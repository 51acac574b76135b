//! A partition's doorbells: ranges of ports whose writes are posted rather than answered.
//!
//! They change under the partition's control lock; running virtual CPUs look them up without a lock. Each entry is one
//! word, so a reader sees an entry as it was or as it is.

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use guest_proto::limits::MAX_DOORBELLS;

const ENTRIES: usize = MAX_DOORBELLS as usize;
/// The most ports of one doorbell.
const MAX_LENGTH: u64 = 4096;
/// Bit of an entry that is in use.
const USED: u64 = 1 << 63;
const SIGNAL_ONLY: u64 = 1 << 48;

/// A range of ports, and where its writes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Doorbell {
    /// First port.
    pub port: u16,
    /// Count of ports.
    pub length: u16,
    /// Root's name for the range.
    pub tag: u16,
    /// A write is never put into the ring: each ends the turn with Notify.
    pub signal_only: bool,
}

/// Error: a doorbell was not added or removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DoorbellError {
    /// The range overlaps that of a doorbell, or a doorbell has this tag.
    Overlap,
    /// The partition has as many doorbells as it can have.
    Full,
    /// The range is empty, too long, or has ports that do not exist.
    OutOfRange,
    /// No doorbell has this tag.
    NoSuchTag,
}

impl Doorbell {
    /// Makes a doorbell.
    ///
    /// # Errors
    ///
    /// Fails with [`DoorbellError::OutOfRange`].
    pub fn new(port: u64, length: u64, tag: u16, signal_only: bool) -> Result<Self, DoorbellError> {
        const PORTS: u64 = 1 << 16;
        let end = port.saturating_add(length);
        if !(1..=MAX_LENGTH).contains(&length) || end > PORTS {
            return Err(DoorbellError::OutOfRange);
        }
        Ok(Self {
            port: port as u16,
            length: length as u16,
            tag,
            signal_only,
        })
    }

    fn end(&self) -> u32 {
        u32::from(self.port) + u32::from(self.length)
    }

    fn pack(&self) -> u64 {
        let signal_only = if self.signal_only { SIGNAL_ONLY } else { 0 };
        let [port, length, tag] = [self.port, self.length, self.tag].map(u64::from);
        USED | signal_only | port | length << 16 | tag << 32
    }

    fn unpack(entry: u64) -> Option<Self> {
        (entry & USED != 0).then_some(Self {
            port: entry as u16,
            length: (entry >> 16) as u16,
            tag: (entry >> 32) as u16,
            signal_only: entry & SIGNAL_ONLY != 0,
        })
    }
}

/// The doorbells of one partition.
#[derive(Debug)]
pub struct Doorbells {
    entries: [AtomicU64; ENTRIES],
    /// Entries at and after this index were never used.
    used: AtomicUsize,
}

impl Doorbells {
    /// Makes a table without any doorbell.
    pub const fn new() -> Self {
        Self {
            entries: [const { AtomicU64::new(0) }; ENTRIES],
            used: AtomicUsize::new(0),
        }
    }

    /// Adds a doorbell. The caller holds the partition's control lock.
    ///
    /// # Errors
    ///
    /// Fails with [`DoorbellError::Overlap`] or [`DoorbellError::Full`].
    pub fn add(&self, doorbell: Doorbell) -> Result<(), DoorbellError> {
        let clashes = |other: Doorbell| {
            let apart = other.end() <= doorbell.port.into() || doorbell.end() <= other.port.into();
            other.tag == doorbell.tag || !apart
        };
        if self.words().filter_map(Doorbell::unpack).any(clashes) {
            return Err(DoorbellError::Overlap);
        }
        let is_free = |entry: &AtomicU64| entry.load(Ordering::Relaxed) == 0;
        let mut entries = self.entries.iter().enumerate();
        let (index, entry) = entries
            .find(|(_, entry)| is_free(entry))
            .ok_or(DoorbellError::Full)?;
        entry.store(doorbell.pack(), Ordering::Release);
        self.used.fetch_max(index + 1, Ordering::Release);
        Ok(())
    }

    /// Removes the doorbell of a tag. The caller holds the partition's control lock.
    ///
    /// # Errors
    ///
    /// Fails with [`DoorbellError::NoSuchTag`].
    pub fn remove(&self, tag: u16) -> Result<(), DoorbellError> {
        let has_tag = |entry: &&AtomicU64| {
            let doorbell = Doorbell::unpack(entry.load(Ordering::Acquire));
            doorbell.is_some_and(|doorbell| doorbell.tag == tag)
        };
        let entry = self.entries.iter().find(has_tag);
        entry
            .ok_or(DoorbellError::NoSuchTag)?
            .store(0, Ordering::Release);
        Ok(())
    }

    /// Removes all doorbells.
    pub fn clear(&self) {
        for entry in &self.entries {
            entry.store(0, Ordering::Release);
        }
        self.used.store(0, Ordering::Release);
    }

    /// Returns the entries that were used, as they are now.
    fn words(&self) -> impl Iterator<Item = u64> {
        let used = self.used.load(Ordering::Acquire).min(ENTRIES);
        let entries = self.entries.iter().take(used);
        entries.map(|entry| entry.load(Ordering::Acquire))
    }

    /// Returns the doorbell that a write to `size` ports from `port` on lies in whole.
    pub fn find(&self, port: u16, size: u8) -> Option<Doorbell> {
        let contains = |entry: &u64| {
            // No range goes past the last port, so the distance to a port below it is longer than the range.
            let offset = port.wrapping_sub(*entry as u16);
            let length = (*entry >> 16) as u16;
            u32::from(offset) + u32::from(size) <= u32::from(length)
        };
        self.words().find(contains).and_then(Doorbell::unpack)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(doorbells: &Doorbells, port: u64, length: u64, tag: u16) -> Result<(), DoorbellError> {
        doorbells.add(Doorbell::new(port, length, tag, false)?)
    }

    #[test]
    fn a_write_must_lie_in_the_range_whole() {
        let doorbells = Doorbells::new();
        assert_eq!(add(&doorbells, 0x3f8, 8, 1), Ok(()));
        let tag = |port, size| doorbells.find(port, size).map(|doorbell| doorbell.tag);
        assert_eq!(tag(0x3f8, 1), Some(1));
        assert_eq!(tag(0x3ff, 1), Some(1));
        assert_eq!(tag(0x3ff, 2), None);
        assert_eq!(tag(0x3f7, 1), None);
        assert_eq!(tag(0x3f7, 2), None);
        assert_eq!(add(&doorbells, 0xfff0, 16, 2), Ok(()));
        assert_eq!(tag(0xffff, 1), Some(2));
        assert_eq!((tag(0, 1), tag(0xffff, 2)), (None, None));
    }

    #[test]
    fn ranges_and_tags_are_unique() {
        let doorbells = Doorbells::new();
        assert_eq!(add(&doorbells, 0x10, 8, 1), Ok(()));
        assert_eq!(add(&doorbells, 0x17, 1, 2), Err(DoorbellError::Overlap));
        assert_eq!(add(&doorbells, 0xf, 2, 2), Err(DoorbellError::Overlap));
        assert_eq!(add(&doorbells, 0x20, 1, 1), Err(DoorbellError::Overlap));
        assert_eq!(add(&doorbells, 0x18, 8, 2), Ok(()));
        assert_eq!(doorbells.remove(3), Err(DoorbellError::NoSuchTag));
        assert_eq!(doorbells.remove(1), Ok(()));
        assert_eq!(doorbells.find(0x10, 1), None);
        assert_eq!(
            doorbells.find(0x18, 1).map(|doorbell| doorbell.tag),
            Some(2)
        );
    }

    #[test]
    fn an_entry_keeps_every_field() {
        let doorbells = Doorbells::new();
        let all = Doorbell::new(0xf001, 0xfff, 0xfffe, true).unwrap();
        doorbells.add(all).unwrap();
        assert_eq!(doorbells.find(0xffff, 1), Some(all));
        let first = Doorbell::new(0, 1, 0, false).unwrap();
        doorbells.add(first).unwrap();
        assert_eq!(doorbells.find(0, 1), Some(first));
    }

    #[test]
    fn ranges_end_at_the_last_port() {
        let doorbells = Doorbells::new();
        let out = Err(DoorbellError::OutOfRange);
        for (port, length) in [(0, 0), (0, 4097), (0xffff, 2), (0x1_0000, 1), (u64::MAX, 2)] {
            assert_eq!(add(&doorbells, port, length, 1), out);
        }
        assert_eq!(add(&doorbells, 0xffff, 1, 1), Ok(()));
        for tag in 2..=MAX_DOORBELLS as u16 {
            assert_eq!(add(&doorbells, u64::from(tag), 1, tag), Ok(()));
        }
        assert_eq!(add(&doorbells, 0x8000, 1, 900), Err(DoorbellError::Full));
    }
}
