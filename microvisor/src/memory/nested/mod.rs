//! Nested page tables: root's, the guests', and the small one of CPUs that wait for root.
//!
//! All have four levels of 512 entries. [`entry`] alone knows the form of an entry. Hardware
//! walks these tables while they change, so each entry is written by one 64-bit store, and a table
//! is complete before the entry that points to it.
//!
//! The functions that walk tables take the number of a page. In a guest's map it is that of a `GuestPage`. In root's
//! it is the number of the frame itself.

pub mod boot;
pub mod entry;
pub mod guest;
pub mod root;
pub mod verify;

pub use guest::GuestMap;
pub use root::RootMap;

use super::{Frame, Hpa, PhysMap};
use core::sync::atomic::Ordering;
use entry::Entry;

/// Entries of a table.
const ENTRIES: u64 = 512;

/// Levels of tables. The pointer to the top table counts as an entry of this level.
const LEVELS: u32 = 4;

/// Pages that an entry of a page directory spans.
pub const LARGE_PAGES: u64 = 512;

/// Returns the index of page `page` in a table of `level` (0: page table, 3: top table).
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

/// Returns the frame that `page` is mapped to by the tables below `top`, and whether it may be written.
#[cfg(test)]
pub(crate) fn lookup(map: &PhysMap, top: Frame, page: u64) -> Option<(Frame, bool)> {
    mapped(walk(map, top, page, |_| true), page)
}

/// Returns the frame that `page` is mapped to, and whether it may be written. The way to the page ends at `entry`,
/// which is absent or maps a page.
fn mapped((entry, level): (Entry, u32), page: u64) -> Option<(Frame, bool)> {
    let frame = entry.frame().offset(page % span(level));
    entry.is_present().then_some((frame, entry.writable()))
}

/// Returns the entry at which the way to `page` ends, and its level. The entry is absent, or maps a page, or points
/// to a table that `enter` refuses. An entry of level [`LEVELS`] points to the top table.
fn walk(map: &PhysMap, top: Frame, page: u64, enter: impl Fn(Frame) -> bool) -> (Entry, u32) {
    let mut entry = Entry::table(top);
    let mut level = LEVELS;
    while level > 0 && entry.is_present() && !maps_page(entry, level) && enter(entry.frame()) {
        level -= 1;
        entry = load(map, entry.frame(), index(page, level));
    }
    (entry, level)
}

/// Returns whether a present entry of this level maps a page, rather than pointing to a table.
fn maps_page(entry: Entry, level: u32) -> bool {
    level == 0 || (level < 3 && entry.is_large())
}

/// Returns the count of pages that an entry of `level` spans.
const fn span(level: u32) -> u64 {
    1 << (9 * level)
}

/// Fills a page table with the pages that the large page `large` spans.
fn split_into(map: &PhysMap, table: Frame, large: Entry) {
    for n in 0..ENTRIES {
        let frame = large.frame().offset(n);
        store(map, table, n, Entry::page(frame, large.writable()));
    }
}
