//! A guest's nested map: the RAM that root donated to it.
//!
//! Its tables are frames of the partition's pool. The tables that a request needs are counted before
//! anything changes. Pages of 2 MiB are used where guest page, frame and length allow.
//!
//! A page leaves the map in this order. Its entry is cleared. `flush` makes each CPU forget the
//! partition's translations before it enters the partition again. Only then do frames change hands, and
//! the epoch begins after which the pool gives the tables out again. A CPU that enters the partition in
//! between has either flushed, or has yet to pass that epoch.

use super::entry::Entry;
use super::{ENTRIES, LARGE_PAGES, index, load, span, split_into, store};
use crate::memory::frame_table::{FrameError, OwnedFrame, PartitionId};
use crate::memory::pool::{Pool, Shortage};
use crate::memory::{Frame, GuestPage, Memory, PhysMap};

/// A run of guest pages and the frames to map there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// First guest page.
    pub page: GuestPage,
    /// First frame.
    pub frame: Frame,
    /// Count of pages, which all exist: see [`GuestPage::first_of`].
    pub pages: u64,
    /// The guest may write.
    pub writable: bool,
}

/// Error: a page was not mapped or unmapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// A frame is mapped at the page.
    Overlap,
    /// No frame is mapped at the page.
    NotMapped,
    /// The frame is not root's to give.
    Frame(FrameError),
    /// The pool lacks a frame for a table.
    Shortage(Shortage),
}

impl From<FrameError> for MapError {
    fn from(error: FrameError) -> Self {
        Self::Frame(error)
    }
}

impl From<Shortage> for MapError {
    fn from(error: Shortage) -> Self {
        Self::Shortage(error)
    }
}

/// The nested map of one partition.
#[derive(Debug)]
pub struct GuestMap {
    id: PartitionId,
    top: Option<Frame>,
}

impl GuestMap {
    /// Makes a map without a single table.
    pub const fn new(id: PartitionId) -> Self {
        Self { id, top: None }
    }

    /// Returns the top table, once there is one.
    pub fn top(&self) -> Option<Frame> {
        self.top
    }

    /// Makes the top table if there is none.
    pub fn ensure_top(&mut self, memory: &Memory, pool: &mut Pool) -> Result<Frame, Shortage> {
        if let Some(top) = self.top {
            return Ok(top);
        }
        pool.check(memory, 1)?;
        let table = pool.take(memory).ok_or(Shortage::Deposit(1))?.frame();
        self.top = Some(table);
        Ok(table)
    }

    /// Returns how many tables it takes to map `run`. The count is exact if all of it can be mapped.
    pub fn tables_needed(&self, map: &PhysMap, run: &Run) -> u64 {
        let below = (1..=3).map(|level| self.tables_below(map, run, level));
        u64::from(self.top.is_none()) + below.sum::<u64>()
    }

    /// Returns how many tables entries of `level` lack for `run`.
    fn tables_below(&self, map: &PhysMap, run: &Run, level: u32) -> u64 {
        let span = span(level);
        let page = run.page.number();
        let first = page / span;
        let last = (page + run.pages - 1) / span;
        let lacks_table = |n: &u64| {
            let start = n * span;
            let is_large = level == 1 && run.covers_large(start);
            !is_large && !self.entry(map, start, level).is_present()
        };
        (first..=last).filter(lacks_table).count() as u64
    }

    /// Maps a run up to its first page that can't be mapped, or nothing if the pool lacks tables for it. Returns how
    /// many pages it mapped, and the error that stopped it.
    pub fn map(
        &mut self,
        memory: &Memory,
        pool: &mut Pool,
        run: Run,
        flush: impl Fn(),
    ) -> (u64, Result<(), MapError>) {
        let needed = self.tables_needed(&memory.map, &run);
        if let Err(shortage) = pool.check(memory, needed) {
            return (0, Err(shortage.into()));
        }
        let mut done = 0;
        while done < run.pages {
            let rest = run.after(done);
            match self.map_one(memory, pool, rest) {
                Ok(pages) => done += pages,
                Err(error) => {
                    if self.prune(memory, pool, rest.page.number()) {
                        flush();
                    }
                    pool.seal(&memory.epochs);
                    return (done, Err(error));
                }
            }
        }
        (done, Ok(()))
    }

    /// Maps the first page of `rest`, or its first 512 pages as a large one.
    fn map_one(&mut self, memory: &Memory, pool: &mut Pool, rest: Run) -> Result<u64, MapError> {
        let map = &memory.map;
        let page = rest.page.number();
        let mut table = self.ensure_top(memory, pool)?;
        for level in [3, 2] {
            table = self.ensure_table(memory, pool, table, index(page, level))?;
        }
        let slot = index(page, 1);
        let entry = load(map, table, slot);
        if entry.is_present() && entry.is_large() {
            return Err(MapError::Overlap);
        }
        if rest.covers_large(page) && !entry.is_present() {
            self.share(memory, rest, LARGE_PAGES)?;
            store(map, table, slot, Entry::large(rest.frame, rest.writable));
            return Ok(LARGE_PAGES);
        }
        // Ask for the frame before a table is made for it.
        if load_page(map, entry, page).is_present() {
            return Err(MapError::Overlap);
        }
        self.share(memory, rest, 1)?;
        match self.ensure_table(memory, pool, table, slot) {
            Ok(table) => {
                let entry = Entry::page(rest.frame, rest.writable);
                store(map, table, index(page, 0), entry);
                Ok(1)
            }
            Err(error) => {
                memory.frames.guest_unshare(rest.frame, self.id)?;
                Err(error.into())
            }
        }
    }

    /// Unmaps up to `pages` pages from `page` on and gives their frames to root. Returns how many pages it unmapped,
    /// and the error that stopped it.
    pub fn unmap(
        &mut self,
        memory: &Memory,
        pool: &mut Pool,
        page: GuestPage,
        pages: u64,
        flush: impl Fn(),
    ) -> (u64, Result<(), MapError>) {
        let page = page.number();
        let mut done = 0;
        let mut result = Ok(());
        while done < pages && result.is_ok() {
            match self.clear(memory, pool, page + done, pages - done) {
                Ok(count) => done += count,
                Err(error) => result = Err(error),
            }
        }
        if done > 0 {
            flush();
        }
        if self.release(memory, pool, page, done) {
            flush();
        }
        pool.seal(&memory.epochs);
        (done, result)
    }

    /// Gives the frames of `pages` cleared pages from `page` on to root, and the tables that have become empty to
    /// the pool. Returns whether there were such tables.
    fn release(&mut self, memory: &Memory, pool: &mut Pool, page: u64, pages: u64) -> bool {
        let map = &memory.map;
        let mut is_pruned = false;
        let mut done = 0;
        while done < pages {
            let at = page + done;
            let Some(directory) = self.table(map, at, 1) else {
                break;
            };
            let entry = load(map, directory, index(at, 1));
            done += if entry.is_present() {
                let leaf = load_page(map, entry, at);
                store(map, entry.frame(), index(at, 0), Entry::ABSENT);
                self.unshare(memory, leaf.frame(), 1);
                1
            } else {
                store(map, directory, index(at, 1), Entry::ABSENT);
                self.unshare(memory, entry.frame(), LARGE_PAGES);
                LARGE_PAGES
            };
            let next = page + done;
            if next.is_multiple_of(LARGE_PAGES) || done == pages {
                // A table is looked at once per visit, when the visit is over.
                is_pruned |= self.prune(memory, pool, next - 1);
            }
        }
        is_pruned
    }

    /// Clears the entry of `page`, or of the first 512 of `pages` pages. Returns how many pages it cleared.
    fn clear(
        &mut self,
        memory: &Memory,
        pool: &mut Pool,
        page: u64,
        pages: u64,
    ) -> Result<u64, MapError> {
        let map = &memory.map;
        let directory = self.table(map, page, 1).ok_or(MapError::NotMapped)?;
        let slot = index(page, 1);
        let mut entry = load(map, directory, slot);
        if !entry.is_present() {
            return Err(MapError::NotMapped);
        }
        if entry.is_large() {
            if page.is_multiple_of(LARGE_PAGES) && pages >= LARGE_PAGES {
                store(map, directory, slot, entry.cleared());
                return Ok(LARGE_PAGES);
            }
            pool.check(memory, 1)?;
            let table = pool.take(memory).ok_or(Shortage::Deposit(1))?.frame();
            split_into(map, table, entry);
            entry = Entry::table(table);
            store(map, directory, slot, entry);
        }
        let leaf = load_page(map, entry, page);
        if !leaf.is_present() {
            return Err(MapError::NotMapped);
        }
        store(map, entry.frame(), index(page, 0), leaf.cleared());
        Ok(1)
    }

    /// Gives up to `budget` frames back to root, and the tables to the pool. No virtual CPU runs any more. Returns how
    /// many frames went to root.
    pub fn tear_down(&mut self, memory: &Memory, pool: &mut Pool, budget: u64) -> u64 {
        let Some(top) = self.top else {
            return 0;
        };
        let mut left = budget;
        if self.tear_table(memory, pool, top, 3, &mut left) {
            self.top = None;
            self.free_table(memory, pool, top);
        }
        pool.seal(&memory.epochs);
        budget - left
    }

    /// Returns the frame that `page` is mapped to, and whether it may be written.
    #[cfg(test)]
    pub(crate) fn lookup(&self, map: &PhysMap, page: GuestPage) -> Option<(Frame, bool)> {
        super::lookup(map, self.top?, page.number())
    }

    /// Tears down a table. Returns true when all of its entries are gone.
    fn tear_table(
        &self,
        memory: &Memory,
        pool: &mut Pool,
        table: Frame,
        level: u32,
        left: &mut u64,
    ) -> bool {
        for slot in 0..ENTRIES {
            let entry = load(&memory.map, table, slot);
            if !entry.is_present() {
                continue;
            }
            if *left == 0 {
                return false;
            }
            if level == 0 || (level == 1 && entry.is_large()) {
                let pages = span(level);
                store(&memory.map, table, slot, Entry::ABSENT);
                self.unshare(memory, entry.frame(), pages);
                *left = left.saturating_sub(pages);
            } else if self.tear_table(memory, pool, entry.frame(), level - 1, left) {
                store(&memory.map, table, slot, Entry::ABSENT);
                self.free_table(memory, pool, entry.frame());
            } else {
                return false;
            }
        }
        true
    }

    /// Frees the tables on the way to `page` that have become empty. Returns whether there were any.
    fn prune(&mut self, memory: &Memory, pool: &mut Pool, page: u64) -> bool {
        let mut is_pruned = false;
        for level in 0..3 {
            let Some(table) = self.table(&memory.map, page, level) else {
                continue;
            };
            if (0..ENTRIES).any(|n| load(&memory.map, table, n).is_present()) {
                break;
            }
            if let Some(parent) = self.table(&memory.map, page, level + 1) {
                store(&memory.map, parent, index(page, level + 1), Entry::ABSENT);
                self.free_table(memory, pool, table);
                is_pruned = true;
            }
        }
        is_pruned
    }

    fn free_table(&self, memory: &Memory, pool: &mut Pool, table: Frame) {
        pool.put(memory, OwnedFrame::from_table(table, self.id));
    }

    fn ensure_table(
        &self,
        memory: &Memory,
        pool: &mut Pool,
        table: Frame,
        slot: u64,
    ) -> Result<Frame, Shortage> {
        let entry = load(&memory.map, table, slot);
        if entry.is_present() {
            return Ok(entry.frame());
        }
        pool.check(memory, 1)?;
        let below = pool.take(memory).ok_or(Shortage::Deposit(1))?.frame();
        store(&memory.map, table, slot, Entry::table(below));
        Ok(below)
    }

    /// Returns the table of `level` on the way to `page`.
    fn table(&self, map: &PhysMap, page: u64, level: u32) -> Option<Frame> {
        let mut table = self.top?;
        for above in (level + 1..=3).rev() {
            let entry = load(map, table, index(page, above));
            if !entry.is_present() || (above == 1 && entry.is_large()) {
                return None;
            }
            table = entry.frame();
        }
        Some(table)
    }

    /// Returns the entry of `level` for `page`; it is absent if there is no table for it.
    fn entry(&self, map: &PhysMap, page: u64, level: u32) -> Entry {
        self.table(map, page, level)
            .map_or(Entry::ABSENT, |table| load(map, table, index(page, level)))
    }

    /// Takes `count` frames from root, all or none.
    fn share(&self, memory: &Memory, run: Run, count: u64) -> Result<(), FrameError> {
        let frames = &memory.frames;
        frames.root_share_guest(run.frame, count, self.id, run.page)
    }

    fn unshare(&self, memory: &Memory, first: Frame, count: u64) {
        for n in 0..count {
            // Mapped here, so the table says it is shared with this partition.
            let frame = first.offset(n);
            let _ = memory.frames.guest_unshare(frame, self.id);
        }
    }
}

impl Run {
    /// Returns whether the run covers the 2 MiB at guest page `start` in one piece, with frames that are aligned
    /// as its pages are.
    fn covers_large(&self, start: u64) -> bool {
        let Some(before) = start.checked_sub(self.page.number()) else {
            return false;
        };
        start.is_multiple_of(LARGE_PAGES)
            && before + LARGE_PAGES <= self.pages
            && (self.frame.number() + before).is_multiple_of(LARGE_PAGES)
    }

    /// Returns the run without its first `pages` pages.
    #[must_use]
    pub fn after(self, pages: u64) -> Self {
        Self {
            page: self.page.offset(pages),
            frame: self.frame.offset(pages),
            pages: self.pages - pages,
            ..self
        }
    }

    /// Returns the first `pages` pages of the run, or fewer, so that no piece of a large page is left at the end.
    #[must_use]
    pub fn first(self, pages: u64) -> Self {
        if self.pages <= pages {
            return self;
        }
        let page = self.page.number();
        let end = page + pages;
        let aligned = end - end % LARGE_PAGES;
        let pages = if aligned > page {
            aligned - page
        } else {
            pages
        };
        Self { pages, ..self }
    }
}

/// Returns the entry for `page` in the page table that `directory` points to, if it points to one.
fn load_page(map: &PhysMap, directory: Entry, page: u64) -> Entry {
    if directory.is_present() && !directory.is_large() {
        load(map, directory.frame(), index(page, 0))
    } else {
        Entry::ABSENT
    }
}
