//! The memory map of VM 0: that of the machine, less the microvisor's memory.

use core::ops;

use heapless::Vec;

use super::Error;
use crate::memory::Hpa;

/// Count of entries that the Linux boot protocol passes (E820_MAX_ENTRIES_ZEROPAGE).
pub(super) const MAX: usize = 128;

/// E820 type of usable memory.
pub(super) const USABLE: u32 = 1;
/// E820 type of reserved memory.
const RESERVED: u32 = 2;
const PAGE: u64 = 4096;

/// A range of physical addresses, `end` not included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) start: Hpa,
    pub(super) end: Hpa,
    /// E820 type.
    pub(super) kind: u32,
}

impl Range {
    /// Makes the range of an entry of the loader's memory map.
    ///
    /// # Errors
    ///
    /// Fails with `BadInfo` if no physical address can lie at its end.
    pub(super) fn new(base: u64, len: u64, kind: u32) -> Result<Self, Error> {
        let end = base.checked_add(len).ok_or(Error::BadInfo)?;
        if Hpa::new(end).as_u64() != end {
            return Err(Error::BadInfo);
        }
        let [start, end] = [base, end].map(Hpa::new);
        Ok(Self { start, end, kind })
    }

    /// Returns the count of bytes.
    pub(super) fn len(&self) -> u64 {
        self.end.as_u64() - self.start.as_u64()
    }
}

/// Ranges that do not overlap.
#[derive(Clone, Debug)]
pub(super) struct Map {
    ranges: Vec<Range, MAX>,
}

impl Map {
    pub(super) const fn new() -> Self {
        Self { ranges: Vec::new() }
    }

    pub(super) fn add(&mut self, range: Range) -> Result<(), Error> {
        if range.start >= range.end {
            return Ok(());
        }
        self.ranges.push(range).map_err(|_| Error::TooManyRanges)
    }

    pub(super) fn len(&self) -> usize {
        self.ranges.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Range> + Clone {
        self.ranges.iter()
    }

    pub(super) fn usable_bytes(&self) -> u64 {
        self.usable().map(Range::len).sum()
    }

    pub(super) fn usable(&self) -> impl Iterator<Item = &Range> + Clone {
        self.iter().filter(|range| range.kind == USABLE)
    }

    /// Makes `place` reserved where it was usable.
    pub(super) fn reserve(&mut self, place: ops::Range<Hpa>) -> Result<(), Error> {
        let ops::Range { start, end } = place;
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
    pub(super) fn is_usable(&self, start: Hpa, size: u64) -> bool {
        self.usable().any(|range| {
            let room = range.end.as_u64().saturating_sub(start.as_u64());
            range.start <= start && start < range.end && size <= room
        })
    }

    /// Returns the highest page-aligned place of `size` usable bytes below `limit`.
    pub(super) fn highest_room(&self, size: u64, limit: u64) -> Option<Hpa> {
        self.usable()
            .filter_map(|range| {
                let end = range.end.as_u64().min(limit);
                let place = Hpa::new(end.checked_sub(size)? & !(PAGE - 1));
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
            map.add(Range::new(start, end - start, kind).unwrap())
                .unwrap();
        }
        map
    }

    #[test]
    fn reserving_splits_usable_ranges_only() {
        let mut map = map(&[(0, 0x9000, USABLE), (0x9000, 0xa000, 3)]);
        map.reserve(Hpa::new(0x2000)..Hpa::new(0x9800)).unwrap();
        let got: std::vec::Vec<_> = map
            .iter()
            .map(|r| (r.start.as_u64(), r.end.as_u64(), r.kind))
            .collect();
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
        let byte = |n| Range::new(n, 1, USABLE).unwrap();
        for n in 0..MAX as u64 {
            map.add(byte(n)).unwrap();
        }
        assert_eq!(map.reserve(Hpa::new(0)..Hpa::new(1)), Ok(()));
        assert_eq!(map.add(byte(200)), Err(Error::TooManyRanges));
    }

    #[test]
    fn a_range_ends_where_an_address_can() {
        for (base, len) in [
            (u64::MAX, 2),
            (1 << 52, 1),
            ((1 << 52) - 1, 2),
            (1 << 60, 0),
        ] {
            assert_eq!(Range::new(base, len, USABLE), Err(Error::BadInfo));
        }
        assert_eq!(
            Range::new(0x1000, 0x1000, 3).map(|range| range.len()),
            Ok(0x1000)
        );
    }

    #[test]
    fn room_is_highest_below_the_limit() {
        let map = map(&[(0x1000, 0x10_0000, USABLE), (0x20_0000, 0x40_0000, USABLE)]);
        assert_eq!(
            map.highest_room(0x1800, u64::MAX),
            Some(Hpa::new(0x3f_e000))
        );
        assert_eq!(
            map.highest_room(0x1800, 0x30_0000),
            Some(Hpa::new(0x2f_e000))
        );
        assert_eq!(
            map.highest_room(0x1800, 0x20_0000),
            Some(Hpa::new(0xf_e000))
        );
        assert_eq!(map.highest_room(0x20_0001, u64::MAX), None);
    }
}
