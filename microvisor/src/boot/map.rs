//! The memory map of VM 0: that of the machine, less the microvisor's memory.

use super::Error;

/// Count of entries that the Linux boot protocol passes (E820_MAX_ENTRIES_ZEROPAGE).
pub(super) const MAX: usize = 128;

/// E820 type of usable memory.
pub(super) const USABLE: u32 = 1;
/// E820 type of reserved memory.
const RESERVED: u32 = 2;
const PAGE: u64 = 4096;

/// A range of physical addresses, `end` not included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) start: u64,
    pub(super) end: u64,
    /// E820 type.
    pub(super) kind: u32,
}

/// Ranges that do not overlap.
#[derive(Clone, Debug)]
pub(super) struct Map {
    ranges: [Range; MAX],
    len: usize,
}

impl Map {
    pub(super) const fn new() -> Self {
        let none = Range {
            start: 0,
            end: 0,
            kind: 0,
        };
        Self {
            ranges: [none; MAX],
            len: 0,
        }
    }

    pub(super) fn add(&mut self, range: Range) -> Result<(), Error> {
        if range.start >= range.end {
            return Ok(());
        }
        *self.ranges.get_mut(self.len).ok_or(Error::TooManyRanges)? = range;
        self.len += 1;
        Ok(())
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Range> + Clone {
        self.ranges.iter().take(self.len)
    }

    pub(super) fn usable_bytes(&self) -> u64 {
        self.usable().map(|range| range.end - range.start).sum()
    }

    pub(super) fn usable(&self) -> impl Iterator<Item = &Range> + Clone {
        self.iter().filter(|range| range.kind == USABLE)
    }

    /// Makes `[start, end)` reserved where it was usable.
    pub(super) fn reserve(&mut self, start: u64, end: u64) -> Result<(), Error> {
        let mut carved = Self::new();
        for &range in self.iter() {
            if range.kind != USABLE || range.end <= start || end <= range.start {
                carved.add(range)?;
                continue;
            }
            let (from, to) = (range.start.max(start), range.end.min(end));
            carved.add(Range { end: from, ..range })?;
            carved.add(Range {
                start: from,
                end: to,
                kind: RESERVED,
            })?;
            carved.add(Range { start: to, ..range })?;
        }
        *self = carved;
        Ok(())
    }

    /// Returns whether `size` bytes from `start` on are usable.
    pub(super) fn is_usable(&self, start: u64, size: u64) -> bool {
        self.usable()
            .any(|range| range.start <= start && start < range.end && size <= range.end - start)
    }

    /// Returns the highest page-aligned place of `size` usable bytes below `limit`.
    pub(super) fn highest_room(&self, size: u64, limit: u64) -> Option<u64> {
        self.usable()
            .filter_map(|range| {
                let place = range.end.min(limit).checked_sub(size)? & !(PAGE - 1);
                (place >= range.start).then_some(place)
            })
            .max()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(ranges: &[(u64, u64, u32)]) -> Map {
        let mut map = Map::new();
        for &(start, end, kind) in ranges {
            map.add(Range { start, end, kind }).unwrap();
        }
        map
    }

    #[test]
    fn reserving_splits_usable_ranges_only() {
        let mut map = map(&[(0, 0x9000, USABLE), (0x9000, 0xa000, 3)]);
        map.reserve(0x2000, 0x9800).unwrap();
        let got: std::vec::Vec<_> = map.iter().map(|r| (r.start, r.end, r.kind)).collect();
        assert_eq!(
            got,
            [
                (0, 0x2000, USABLE),
                (0x2000, 0x9000, RESERVED),
                (0x9000, 0xa000, 3)
            ]
        );
    }

    #[test]
    fn a_full_map_is_an_error() {
        let mut map = Map::new();
        for n in 0..MAX as u64 {
            map.add(Range {
                start: n,
                end: n + 1,
                kind: USABLE,
            })
            .unwrap();
        }
        assert_eq!(map.reserve(0, 1), Ok(()));
        let more = Range {
            start: 200,
            end: 201,
            kind: USABLE,
        };
        assert_eq!(map.add(more), Err(Error::TooManyRanges));
    }

    #[test]
    fn room_is_highest_below_the_limit() {
        let map = map(&[(0x1000, 0x10_0000, USABLE), (0x20_0000, 0x40_0000, USABLE)]);
        assert_eq!(map.highest_room(0x1800, u64::MAX), Some(0x3f_e000));
        assert_eq!(map.highest_room(0x1800, 0x30_0000), Some(0x2f_e000));
        assert_eq!(map.highest_room(0x1800, 0x20_0000), Some(0xf_e000));
        assert_eq!(map.highest_room(0x20_0001, u64::MAX), None);
    }
}
