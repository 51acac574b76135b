//! Root's nested map: each page at its own address, less the frames that are not root's.
//!
//! RAM is mapped by 2 MiB pages, and addresses above it by 1 GiB pages where the CPU has them. All tables
//! are reserved at boot, each at a place that follows from the address, including a page table for each
//! 2 MiB of RAM. So a large page can always be split to take a page out.

use super::entry::Entry;
use super::{ENTRIES, LARGE_PAGES, index, load, split_into, store};
use crate::memory::{Frame, PhysMap};

mod boot;

const GIB_PAGES: u64 = ENTRIES * LARGE_PAGES;
const TOP_PAGES: u64 = ENTRIES * GIB_PAGES;

/// The extent of root's map.
#[derive(Clone, Copy, Debug)]
pub struct RootLayout {
    /// Count of frames that the frame table covers, which is the end of RAM.
    pub frames: u64,
    /// End of the map in frames, which is the end of the CPU's physical addresses, rounded up to 1 GiB; at most
    /// 2^48 bytes.
    pub limit: u64,
    /// The CPU maps 1 GiB pages.
    pub gib_pages: bool,
}

impl RootLayout {
    fn gibs(&self) -> u64 {
        let limit = self.limit.min(ENTRIES * TOP_PAGES);
        limit.max(self.frames).div_ceil(GIB_PAGES)
    }

    fn pointer_tables(&self) -> u64 {
        self.gibs().div_ceil(ENTRIES)
    }

    fn directories(&self) -> u64 {
        if self.gib_pages {
            self.frames.div_ceil(GIB_PAGES)
        } else {
            self.gibs()
        }
    }

    fn page_tables(&self) -> u64 {
        self.frames.div_ceil(LARGE_PAGES)
    }
}

/// Root's nested map.
#[derive(Debug)]
pub struct RootMap {
    first_table: Frame,
    layout: RootLayout,
}

impl RootMap {
    /// Returns the top table.
    pub fn top(&self) -> Frame {
        self.first_table
    }

    /// Takes a frame of RAM out of the map. The caller begins an epoch afterwards.
    pub fn unmap(&mut self, map: &PhysMap, frame: Frame) {
        let page = frame.number();
        let Some((directory, table)) = self.tables(page) else {
            return;
        };
        let entry = load(map, directory, index(page, 1));
        if entry.is_present() && entry.is_large() {
            // A stale walk may still read this table from an earlier split: the same identity
            // stands in it, or is put there now.
            split_into(map, table, entry);
            store(map, directory, index(page, 1), Entry::table(table));
        }
        store(map, table, index(page, 0), Entry::ABSENT);
    }

    /// Puts a frame of RAM into the map again, and makes a large page of its 2 MiB if all of them are mapped.
    pub fn restore(&mut self, map: &PhysMap, frame: Frame) {
        let page = frame.number();
        let Some((directory, table)) = self.tables(page) else {
            return;
        };
        let entry = load(map, directory, index(page, 1));
        if entry.is_present() && entry.is_large() {
            return;
        }
        store(map, table, index(page, 0), Entry::page(frame, true));
        if !entry.is_present() {
            store(map, directory, index(page, 1), Entry::table(table));
        }
        if (0..ENTRIES).all(|n| load(map, table, n).is_present()) {
            let first = Frame::new(page - page % LARGE_PAGES);
            store(map, directory, index(page, 1), Entry::large(first, true));
        }
    }

    /// Returns the count of large pages of RAM of which every page is mapped.
    pub fn large_pages(&self, map: &PhysMap) -> u64 {
        (0..self.layout.page_tables())
            .filter(|large| load(map, self.directory(large / ENTRIES), large % ENTRIES).is_large())
            .count() as u64
    }

    fn pointer_table(&self, n: u64) -> Frame {
        self.first_table.offset(1 + n)
    }

    fn directory(&self, gib: u64) -> Frame {
        let first = self.first_table.number() + 1 + self.layout.pointer_tables();
        Frame::new(first + gib)
    }

    /// Returns the directory and the page table for a page, if it is RAM.
    fn tables(&self, page: u64) -> Option<(Frame, Frame)> {
        (page < self.layout.frames)
            .then(|| (self.directory(page / GIB_PAGES), self.page_table(page)))
    }

    fn page_table(&self, page: u64) -> Frame {
        let directories = self.layout.pointer_tables() + self.layout.directories();
        let first = self.first_table.number() + 1 + directories;
        Frame::new(first + page / LARGE_PAGES)
    }
}
