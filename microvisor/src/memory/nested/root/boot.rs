//! Builds root's nested map.

use core::sync::atomic::Ordering;

use super::{GIB_PAGES, RootLayout, RootMap};
use crate::memory::frame_table::{FrameTable, Owner};
use crate::memory::nested::entry::Entry;
use crate::memory::nested::{ENTRIES, LARGE_PAGES, index, store};
use crate::memory::{Frame, PhysMap};

impl RootLayout {
    /// Returns the count of frames that the tables take, in one run.
    pub fn table_frames(&self) -> u64 {
        1 + self.pointer_tables() + self.directories() + self.page_tables()
    }
}

impl RootMap {
    /// Builds the map in [`RootLayout::table_frames`] frames from `first_table` on. Root reaches all frames that are not
    /// `Reserved` by `frames`.
    pub fn new(map: &PhysMap, first_table: Frame, layout: RootLayout, frames: &FrameTable) -> Self {
        let root = Self {
            first_table,
            layout,
        };
        for n in 0..layout.table_frames() {
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
            root.build_large(map, large * LARGE_PAGES, frames);
        }
        root
    }

    fn build_large(&self, map: &PhysMap, first: u64, frames: &FrameTable) {
        let reserved = |page| frames.owner(Frame::new(page)) == Owner::Reserved;
        let span = first..first + LARGE_PAGES;
        let count = span.clone().filter(|page| reserved(*page)).count() as u64;
        let directory = self.directory(first / GIB_PAGES);
        let entry = if count == 0 {
            Entry::large(Frame::new(first), true)
        } else if count == LARGE_PAGES {
            Entry::ABSENT
        } else {
            let table = self.page_table(first);
            for page in span.filter(|page| !reserved(*page)) {
                let frame = Frame::new(page);
                store(map, table, index(page, 0), Entry::page(frame, true));
            }
            Entry::table(table)
        };
        store(map, directory, index(first, 1), entry);
        core::sync::atomic::fence(Ordering::Release);
    }
}
