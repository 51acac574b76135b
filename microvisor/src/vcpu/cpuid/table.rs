//! The table of a virtual CPU's answers, and the search in it.

use guest_proto::limits;
use heapless::Vec;

use super::Leaf;

/// The answers of a virtual CPU.
#[derive(Debug)]
pub struct Table {
    /// In ascending order of leaf and subleaf.
    entries: Vec<Entry, { limits::MAX_CPUID_ENTRIES as usize }>,
    /// The index of the first entry of each [`bucket`], or [`NO_ENTRY`]. A search by halves would be a third of an exit.
    first: [u8; BUCKETS],
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) leaf: u32,
    pub(super) subleaf: u32,
    /// The entry answers for this subleaf alone.
    pub(super) has_subleaf: bool,
    pub(super) answer: Leaf,
}

const BUCKETS: usize = 256;
const NO_ENTRY: u8 = u8::MAX;

/// Returns the bucket of a leaf: each leaf that guests ask for has its own.
fn bucket(leaf: u32) -> usize {
    (leaf & 0x3f | leaf >> 30 << 6) as usize
}

impl Table {
    /// Makes a table without entries.
    pub const fn new() -> Self {
        Self {
            entries: Vec::new(),
            first: [NO_ENTRY; BUCKETS],
        }
    }

    /// Returns the count of entries.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Appends an entry. Returns false if the table is full, or the entry is not the next in order.
    pub(super) fn push(&mut self, entry: Entry) -> bool {
        let key = |entry: &Entry| (entry.leaf, entry.subleaf);
        let is_next = self
            .entries
            .last()
            .is_none_or(|last| key(last) < key(&entry));
        let index = self.entries.len() as u8;
        if !is_next || self.entries.push(entry).is_err() {
            return false;
        }
        if let Some(first) = self.first.get_mut(bucket(entry.leaf))
            && *first == NO_ENTRY
        {
            *first = index;
        }
        true
    }

    /// Returns the answer for a leaf: that of the last entry up to the subleaf, if the entry is for this one or for all.
    #[inline]
    pub(super) fn find(&self, leaf: u32, subleaf: u32) -> Option<Leaf> {
        let first = *self.first.get(bucket(leaf))?;
        let mut found = None;
        for entry in self.entries.get(usize::from(first)..)? {
            if entry.leaf == leaf && entry.subleaf <= subleaf {
                found = Some(entry);
            } else if entry.leaf >= leaf {
                break;
            }
        }
        let found = found?;
        (!found.has_subleaf || found.subleaf == subleaf).then_some(found.answer)
    }
}
