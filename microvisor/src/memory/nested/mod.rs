//! Nested page tables: root's, the guests', and the small one of CPUs that wait for root.
//!
//! All have four levels of 512 entries. [`entry`] alone knows what an entry looks like. Hardware
//! walks these tables while they change, so each entry is written by one 64-bit store, and a table
//! is complete before the entry that points to it.

pub mod entry;
pub mod guest;
pub mod root;
pub mod waiting;

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

/// Whether the map of the table `top` reaches `frame` at its own address, by the tables as they stand.
fn is_identity(map: &PhysMap, top: Frame, frame: Frame) -> bool {
    let mut table = top;
    for level in (0..4).rev() {
        let entry = load(map, table, index(frame.number(), level));
        if !entry.is_present() {
            return false;
        }
        if level == 0 {
            return entry.frame() == frame;
        }
        if level < 3 && entry.is_large() {
            let mask = (1 << (9 * level)) - 1;
            return entry.frame().number() + (frame.number() & mask) == frame.number();
        }
        table = entry.frame();
    }
    false
}

/// Fills a page table with the pages that the large page `large` spans.
fn split_into(map: &PhysMap, table: Frame, large: Entry) {
    for n in 0..ENTRIES {
        let frame = Frame::new(large.frame().number() + n);
        store(map, table, n, Entry::page(frame, large.writable()));
    }
}
