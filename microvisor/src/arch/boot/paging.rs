//! Builds the microvisor's own page tables.

use core::ops::Range;
use core::sync::atomic::Ordering;

use x86_64::structures::paging::PageTableFlags;

use crate::arch::layout::{BASE, IMAGE, SIZE, image_physical};
use crate::arch::paging::{ENTRIES, TABLES, Table, Tables};
use crate::arch::stack;
use crate::memory::Hpa;

const PAGE: u64 = 4096;
const LARGE: u64 = 2 << 20;
const GIB: u64 = 1 << 30;

const PRESENT: u64 = PageTableFlags::PRESENT.bits();
const WRITE: u64 = PageTableFlags::WRITABLE.bits();
const LARGE_ENTRY: u64 = PageTableFlags::HUGE_PAGE.bits();
/// Accessed and dirty, so that the CPU never has to set them.
const USED: u64 = PageTableFlags::ACCESSED.bits() | PageTableFlags::DIRTY.bits();
const NO_EXECUTE: u64 = PageTableFlags::NO_EXECUTE.bits();

/// The access to a section that is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read.
    Read,
    /// Read and execute.
    Execute,
    /// Read and write.
    Write,
}

/// The place of the image in physical memory: the start-up code, then the resident part.
#[derive(Clone, Debug)]
pub struct Image {
    /// First byte, at the start of a large page.
    pub start: Hpa,
    /// First byte of the resident part, at the start of a page.
    pub resident: Hpa,
    /// The byte past the last.
    pub end: Hpa,
    /// The sections of the resident part, in whole pages, by link address.
    pub sections: [(Range<u64>, Access); 5],
}

impl Image {
    /// Returns the start-up code, which becomes root's once VM 0 starts.
    pub fn startup(&self) -> Range<Hpa> {
        self.start..self.resident
    }

    /// Returns the resident part and the rest of its last large page, which stay the microvisor's own.
    pub fn own(&self) -> Range<Hpa> {
        self.resident..Hpa::new(self.end.as_u64().next_multiple_of(LARGE))
    }
}

impl Table {
    /// Sets the entry for `address` of a table whose entries map `size` bytes each.
    fn set(&self, address: u64, size: u64, entry: u64) {
        let index = (address / size) as usize % ENTRIES;
        self.0[index].store(entry, Ordering::Relaxed);
    }

    /// Returns the entry that leads to this table. Only entries of the last level restrict the access.
    fn entry(&self) -> u64 {
        image_physical(self).as_u64() | PRESENT | WRITE | USED
    }
}

impl Tables {
    fn map_image(&self, image: &Image) {
        self.top.set(IMAGE, ENTRIES as u64 * GIB, self.high.entry());
        self.high.set(IMAGE, GIB, self.image.entry());
        for (n, table) in (0..).zip(&self.pages) {
            self.image.set(IMAGE + n * LARGE, LARGE, table.entry());
        }
        for (section, access) in &image.sections {
            let access = match access {
                Access::Read => NO_EXECUTE,
                Access::Execute => 0,
                Access::Write => NO_EXECUTE | WRITE,
            };
            for page in section.clone().step_by(PAGE as usize) {
                self.set_page(page, page.wrapping_sub(IMAGE) | PRESENT | USED | access);
            }
        }
    }

    /// Sets the entry of a page of the image's.
    fn set_page(&self, page: u64, entry: u64) {
        let table = self.pages.get((page.wrapping_sub(IMAGE) / LARGE) as usize);
        if let Some(table) = table {
            table.set(page, PAGE, entry);
        }
    }

    /// Maps the ranges of `ram`, rounded out to 2 MiB, less `own`.
    fn map_ram(&self, ram: impl Iterator<Item = Range<Hpa>> + Clone, own: Range<Hpa>) {
        const PAGE_LEAF: u64 = PRESENT | WRITE | USED | NO_EXECUTE;
        const LEAF: u64 = PAGE_LEAF | LARGE_ENTRY;
        let bytes = |range: Range<Hpa>| range.start.as_u64()..range.end.as_u64();
        let (ram, own) = (ram.map(bytes), &bytes(own));
        let overlap = |a: &Range<u64>, b: &Range<u64>| a.start < b.end && b.start < a.end;
        let is_ram = |place: &Range<u64>| ram.clone().any(|range| overlap(&range, place));
        self.top
            .set(BASE, ENTRIES as u64 * GIB, self.physical.entry());
        let mut directories = self.directories.iter();
        for at in (0..SIZE).step_by(GIB as usize) {
            let gib = at..at + GIB;
            if !is_ram(&gib) {
                continue;
            }
            let covers = |range: Range<u64>| range.start <= at && gib.end <= range.end;
            let whole = ram.clone().any(covers) && !overlap(&gib, own);
            let directory = if whole { None } else { directories.next() };
            let Some(directory) = directory else {
                self.physical.set(at, GIB, at | LEAF);
                continue;
            };
            self.physical.set(at, GIB, directory.entry());
            for at in gib.step_by(LARGE as usize) {
                let large = at..at + LARGE;
                if !is_ram(&large) {
                    continue;
                }
                if !overlap(&large, own) {
                    directory.set(at, LARGE, at | LEAF);
                } else if large.contains(&own.start) {
                    directory.set(at, LARGE, self.before_image.entry());
                    for page in (at..own.start).step_by(PAGE as usize) {
                        self.before_image.set(page, PAGE, page | PAGE_LEAF);
                    }
                }
            }
        }
    }
}

/// Builds the tables for `image` and `ram`. The boot CPU calls this once.
pub fn build(image: &Image, ram: impl Iterator<Item = Range<Hpa>> + Clone) {
    TABLES.map_image(image);
    for guard in stack::guards() {
        TABLES.set_page(guard, 0);
    }
    TABLES.map_ram(ram, image.own());
}

#[cfg(test)]
mod tests {
    use std::boxed::Box;
    use std::vec::Vec;

    use super::*;
    use crate::arch::paging::DIRECTORIES;

    const OWN: u64 = 0x20_0000;

    fn image() -> Image {
        let section = |from: u64, to: u64, access| (IMAGE + from..IMAGE + to, access);
        Image {
            start: Hpa::new(OWN),
            resident: Hpa::new(0x20_5000),
            end: Hpa::new(0x4f_0000),
            sections: [
                section(0x20_5000, 0x21_0000, Access::Execute),
                section(0x21_0000, 0x21_2000, Access::Read),
                section(0x21_2000, 0x22_0000, Access::Write),
                section(0x22_0000, 0x23_0000, Access::Read),
                section(0x23_0000, 0x4f_0000, Access::Write),
            ],
        }
    }

    fn built(ram: &[Range<u64>]) -> Box<Tables> {
        let tables = Box::new(Tables::new());
        tables.map_image(&image());
        let address = |range: &Range<u64>| Hpa::new(range.start)..Hpa::new(range.end);
        tables.map_ram(ram.iter().map(address), image().own());
        tables
    }

    /// Every mapping: address, bytes, physical address, bits.
    fn mappings(tables: &Tables) -> Vec<(u64, u64, u64, u64)> {
        let mut found = Vec::new();
        walk(tables, &tables.top, 0, ENTRIES as u64 * GIB, &mut found);
        found
    }

    /// The table at a physical address.
    fn table_at(tables: &Tables, physical: u64) -> &Table {
        let single = [
            &tables.physical,
            &tables.before_image,
            &tables.high,
            &tables.image,
        ];
        let many = tables.directories.iter().chain(&tables.pages);
        let mut all = single.into_iter().chain(many);
        all.find(|table| image_physical(*table).as_u64() == physical)
            .unwrap()
    }

    fn walk(
        tables: &Tables,
        table: &Table,
        base: u64,
        size: u64,
        found: &mut Vec<(u64, u64, u64, u64)>,
    ) {
        for (n, entry) in (0..).zip(&table.0) {
            let entry = entry.load(Ordering::Relaxed);
            let physical = entry & 0xf_ffff_ffff_f000;
            let address = base + n * size;
            if entry & PRESENT == 0 {
                continue;
            }
            if size == PAGE || entry & LARGE_ENTRY != 0 {
                found.push((address, size, physical, entry & !physical));
            } else {
                let next = table_at(tables, physical);
                walk(tables, next, address, size / ENTRIES as u64, found);
            }
        }
    }

    #[test]
    fn nothing_is_writable_and_executable() {
        let tables = built(&[0..0x9_f000, 0x10_0000..0x7ffd_f000, 4 * GIB..6 * GIB]);
        for (at, _, _, bits) in mappings(&tables) {
            let executable = bits & NO_EXECUTE == 0;
            assert!(bits & WRITE == 0 || !executable, "{at:#x}");
            let text = (IMAGE + 0x20_5000..IMAGE + 0x21_0000).contains(&(at | 0xffff << 48));
            assert_eq!(executable, text, "{at:#x}");
        }
    }

    #[test]
    fn the_resident_part_is_mapped_once_and_start_up_code_as_ram() {
        let tables = built(&[0..GIB, GIB..2 * GIB]);
        let bytes = |range: Range<Hpa>| range.start.as_u64()..range.end.as_u64();
        let own = bytes(image().own());
        let startup = bytes(image().startup());
        let mut pages = 0;
        let mut startup_pages = 0;
        for (at, size, physical, bits) in mappings(&tables) {
            if physical < own.end && own.start < physical + size {
                assert_eq!(at | 0xffff << 48, IMAGE + physical);
                pages += size / PAGE;
            }
            if physical < startup.end && startup.start < physical + size {
                assert_eq!(at | 0xffff << 48, BASE + physical);
                assert_eq!(bits & (NO_EXECUTE | WRITE), NO_EXECUTE | WRITE);
                startup_pages += size / PAGE;
            }
        }
        assert_eq!(pages, 0x4f0 - 0x205);
        assert_eq!(startup_pages, 5);
    }

    #[test]
    fn ram_is_mapped_and_holes_are_not() {
        let tables = built(&[0..0x9_f000, 0x10_0000..0x7ffd_f000, 4 * GIB..6 * GIB]);
        let mapped: Vec<_> = mappings(&tables)
            .into_iter()
            .filter(|(at, ..)| at | 0xffff << 48 < IMAGE)
            .collect();
        assert!(
            mapped
                .iter()
                .all(|(at, _, physical, _)| at | 0xffff << 48 == BASE + physical)
        );
        let has = |wanted: u64| {
            let covers = |m: &&(u64, u64, u64, u64)| (m.2..m.2 + m.1).contains(&wanted);
            mapped.iter().filter(covers).count() == 1
        };
        for inside in [
            0,
            0x9_e000,
            0x10_0000,
            OWN,
            0x20_4fff,
            0x60_0000,
            0x7ffd_e000,
            4 * GIB,
            6 * GIB - 1,
        ] {
            assert!(has(inside), "{inside:#x}");
        }
        for outside in [
            0x20_5000,
            0x5f_ffff,
            0x8000_0000,
            0xfee0_0000,
            4 * GIB - 1,
            6 * GIB,
        ] {
            assert!(!has(outside), "{outside:#x}");
        }
        assert!(mapped.iter().any(|(_, size, ..)| *size == GIB));
    }

    #[test]
    fn more_holes_than_directories_are_mapped_with_their_gib() {
        let ram: Vec<_> = (0..12).map(|n| n * GIB..n * GIB + LARGE).collect();
        let mappings = mappings(&built(&ram));
        let whole = mappings.iter().filter(|(_, size, ..)| *size == GIB);
        assert_eq!(whole.count(), 12 - DIRECTORIES);
    }
}
