//! The microvisor's own page tables. No page is writable and executable, only pages that the microvisor needs are
//! mapped, and the page below each stack is not mapped.
//!
//! They map the image at its link address by the permissions of its sections, and RAM at `BASE`,
//! less the image, so that no code can be written there. Boot builds them once. Every CPU enters them before it
//! runs VM 0, and `#VMEXIT` comes back to them.
#![allow(unsafe_code, reason = "loads page tables")]

use core::arch::asm;
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

use x86_64::registers::control::{Cr4, Cr4Flags};
use x86_64::structures::paging::PageTableFlags;

use super::layout::{BASE, IMAGE, SIZE, image_physical};
use super::{cpuid, stack};

const PAGE: u64 = 4096;
const LARGE: u64 = 2 << 20;
const GIB: u64 = 1 << 30;
const ENTRIES: usize = 512;

const PRESENT: u64 = PageTableFlags::PRESENT.bits();
const WRITE: u64 = PageTableFlags::WRITABLE.bits();
const LARGE_ENTRY: u64 = PageTableFlags::HUGE_PAGE.bits();
/// Accessed and dirty, so that the CPU never has to set them.
const USED: u64 = PageTableFlags::ACCESSED.bits() | PageTableFlags::DIRTY.bits();
const NO_EXECUTE: u64 = PageTableFlags::NO_EXECUTE.bits();

/// Tables for GiB of RAM that contain holes or the image, and are mapped by 2 MiB. Further ones are mapped as a whole.
const DIRECTORIES: usize = 8;
/// Tables for the 2 MiB that the image may reach into, as the linker script checks.
const IMAGE_TABLES: usize = 4;

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

/// The place of the image in physical memory.
#[derive(Clone, Debug)]
pub struct Image {
    /// First byte.
    pub start: u64,
    /// The byte past the last.
    pub end: u64,
    /// The sections except the start-up code, in whole pages, by link address.
    pub sections: [(Range<u64>, Access); 5],
}

impl Image {
    /// Returns the image and the rest of its last large page, which are the microvisor's own.
    pub fn own(&self) -> Range<u64> {
        self.start..self.end.next_multiple_of(LARGE)
    }
}

#[repr(C, align(4096))]
struct Table([AtomicU64; ENTRIES]);

impl Table {
    const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; ENTRIES])
    }

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

struct Tables {
    top: Table,
    physical: Table,
    directories: [Table; DIRECTORIES],
    high: Table,
    image: Table,
    pages: [Table; IMAGE_TABLES],
}

/// The tables. Their section is mapped for reading only.
#[cfg_attr(target_os = "none", unsafe(link_section = ".protected"))]
static TABLES: Tables = Tables::new();

/// End of the RAM that is mapped at `BASE`.
static RAM_END: AtomicU64 = AtomicU64::new(0);

impl Tables {
    const fn new() -> Self {
        Self {
            top: Table::new(),
            physical: Table::new(),
            directories: [const { Table::new() }; DIRECTORIES],
            high: Table::new(),
            image: Table::new(),
            pages: [const { Table::new() }; IMAGE_TABLES],
        }
    }

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
    fn map_ram(&self, ram: impl Iterator<Item = Range<u64>> + Clone, own: &Range<u64>) {
        const LEAF: u64 = PRESENT | WRITE | LARGE_ENTRY | USED | NO_EXECUTE;
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
                if is_ram(&large) && !overlap(&large, own) {
                    directory.set(at, LARGE, at | LEAF);
                }
            }
        }
    }
}

/// Builds the tables for `image` and `ram`. The boot CPU calls this once.
pub fn build(image: &Image, ram: impl Iterator<Item = Range<u64>> + Clone) {
    TABLES.map_image(image);
    for guard in stack::guards() {
        TABLES.set_page(guard, 0);
    }
    TABLES.map_ram(ram.clone(), &image.own());
    let end = ram.map(|range| range.end).max().unwrap_or(0);
    RAM_END.store(end.min(SIZE), Ordering::Release);
}

/// Returns the end of the RAM that is mapped, or 0 before the tables are built.
pub(super) fn ram_end() -> u64 {
    RAM_END.load(Ordering::Acquire)
}

/// Puts this CPU on the tables, which [`build`] has built.
pub fn enter() {
    // Features in CPUID 7 EBX, and the bits of CR4 that turn them on.
    const OPTIONAL: [(u32, Cr4Flags); 2] = [
        (1 << 7, Cr4Flags::SUPERVISOR_MODE_EXECUTION_PROTECTION),
        (1 << 20, Cr4Flags::SUPERVISOR_MODE_ACCESS_PREVENTION),
    ];
    let features = match cpuid(0, 0).eax {
        7.. => cpuid(7, 0).ebx,
        _ => 0,
    };
    let has = OPTIONAL.iter().filter(|(bit, _)| features & bit != 0);
    let bits = has.fold(Cr4Flags::MACHINE_CHECK_EXCEPTION, |all, (_, flag)| {
        all | *flag
    });
    let tables = image_physical(&raw const TABLES.top).as_u64();
    // SAFETY: the tables map the code that runs, its stack and its data as they were mapped.
    unsafe {
        asm!("mov cr3, {}", in(reg) tables, options(nostack));
        Cr4::write_raw(Cr4::read_raw() | bits.bits());
    }
}

#[cfg(test)]
mod tests {
    use std::boxed::Box;
    use std::vec::Vec;

    use super::*;

    const OWN: u64 = 0x20_0000;

    fn image() -> Image {
        let section = |from: u64, to: u64, access| (IMAGE + from..IMAGE + to, access);
        Image {
            start: OWN,
            end: 0x4f_0000,
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
        tables.map_ram(ram.iter().cloned(), &image().own());
        tables
    }

    /// Every mapping: address, bytes, physical address, bits.
    fn mappings(tables: &Tables) -> Vec<(u64, u64, u64, u64)> {
        let mut found = Vec::new();
        walk(&tables.top, 0, ENTRIES as u64 * GIB, &mut found);
        found
    }

    fn walk(table: &Table, base: u64, size: u64, found: &mut Vec<(u64, u64, u64, u64)>) {
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
                // SAFETY: built by `Table::entry` of a table that lives as long as `table`.
                let next = unsafe { &*(physical.wrapping_add(IMAGE) as *const Table) };
                walk(next, address, size / ENTRIES as u64, found);
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
    fn the_image_is_mapped_once_and_start_up_code_never() {
        let tables = built(&[0..GIB, GIB..2 * GIB]);
        let own = image().own();
        let mut pages = 0;
        for (at, size, physical, _) in mappings(&tables) {
            if physical < own.end && own.start < physical + size {
                assert_eq!(at | 0xffff << 48, IMAGE + physical);
                assert!(physical >= 0x20_5000);
                pages += size / PAGE;
            }
        }
        assert_eq!(pages, 0x4f0 - 0x205);
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
            0x60_0000,
            0x7ffd_e000,
            4 * GIB,
            6 * GIB - 1,
        ] {
            assert!(has(inside), "{inside:#x}");
        }
        for outside in [
            OWN,
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
