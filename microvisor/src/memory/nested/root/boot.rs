//! Builds root's nested map.

use super::{GIB_PAGES, RootLayout, RootMap};
use crate::memory::nested::entry::Entry;
use crate::memory::nested::{ENTRIES, LARGE_PAGES, store};
use crate::memory::{Frame, PhysMap};

impl RootLayout {
    /// Returns the count of frames that the tables take, in one run.
    pub fn table_frames(&self) -> u64 {
        1 + self.pointer_tables() + self.directories() + self.page_tables()
    }
}

impl RootMap {
    /// Builds the map in [`RootLayout::table_frames`] frames from `first_table` on. Root reaches all frames: the caller
    /// then takes those out that are not root's.
    pub fn new(map: &PhysMap, first_table: Frame, layout: RootLayout) -> Self {
        let root = Self {
            first_table,
            layout,
        };
        // A page table is written when its large page is split, and is not read before.
        for n in 0..layout.table_frames() - layout.page_tables() {
            map.zero(first_table.offset(n));
        }
        for n in 0..layout.pointer_tables() {
            store(map, first_table, n, Entry::table(root.pointer_table(n)));
        }
        for gib in 0..layout.gibs() {
            let entry = if gib < layout.directories() {
                Entry::table(root.directory(gib))
            } else {
                Entry::large(Frame::new(gib * GIB_PAGES), true)
            };
            let table = root.pointer_table(gib / ENTRIES);
            store(map, table, gib % ENTRIES, entry);
        }
        for large in 0..layout.directories() * ENTRIES {
            let entry = Entry::large(Frame::new(large * LARGE_PAGES), true);
            store(map, root.directory(large / ENTRIES), large % ENTRIES, entry);
        }
        root
    }
}
