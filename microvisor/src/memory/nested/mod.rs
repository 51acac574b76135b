//! Nested page tables: root's, and the guests'.
//!
//! Both have four levels of 512 entries. [`entry`] alone knows what an entry looks like. Hardware
//! walks these tables while they change, so each entry is written by one 64-bit store, and a table
//! is complete before the entry that points to it.

pub mod entry;
pub mod guest;
pub mod root;

pub use guest::GuestMap;
pub use root::RootMap;

use super::{Frame, Hpa, PhysMap};
use core::sync::atomic::Ordering;
use entry::Entry;

/// Entries of a table.
const ENTRIES: u64 = 512;

/// Pages that an entry of a page directory spans.
pub const LARGE_PAGES: u64 = 512;

/// Guest pages there can be: 48 bits of guest physical address.
pub const GUEST_PAGES: u64 = 1 << 36;

/// Index into the table of `level` (0: page table, 3: root of the tree) for page `page`.
const fn index(page: u64, level: u32) -> u64 {
    (page >> (9 * level)) % ENTRIES
}

/// Reads entry `index` of a table; absent if the table is not in memory.
fn load(map: &PhysMap, table: Frame, index: u64) -> Entry {
    map.atomic(slot(table, index)).map_or(Entry::ABSENT, |e| {
        Entry::from_raw(e.load(Ordering::Acquire))
    })
}

/// Writes entry `index` of a table.
fn store(map: &PhysMap, table: Frame, index: u64, entry: Entry) {
    if let Some(word) = map.atomic(slot(table, index)) {
        word.store(entry.raw(), Ordering::Release);
    }
}

fn slot(table: Frame, index: u64) -> Hpa {
    Hpa::new(table.base().as_u64() + index % ENTRIES * 8)
}

/// Fills a page table with the pages that the large page `large` spans.
fn split_into(map: &PhysMap, table: Frame, large: Entry) {
    for n in 0..ENTRIES {
        let frame = Frame::new(large.frame().number() + n);
        store(map, table, n, Entry::page(frame, large.writable()));
    }
}
