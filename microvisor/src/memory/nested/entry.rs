//! One entry of a nested page table. AMD's nested paging has the format of ordinary long mode tables, and
//! every page is a user's (APM vol. 2 §15.25.5).

use x86_64::structures::paging::PageTableFlags;

use crate::memory::Frame;

const PRESENT: u64 = PageTableFlags::PRESENT.bits();
const WRITABLE: u64 = PageTableFlags::WRITABLE.bits();
const USER: u64 = PageTableFlags::USER_ACCESSIBLE.bits();
const ACCESSED: u64 = PageTableFlags::ACCESSED.bits();
const DIRTY: u64 = PageTableFlags::DIRTY.bits();
const LARGE: u64 = PageTableFlags::HUGE_PAGE.bits();
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// An entry. Accessed and dirty are set from the start, so that hardware never writes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry(u64);

impl Entry {
    /// The entry that maps nothing.
    pub const ABSENT: Self = Self(0);

    /// As hardware reads it.
    pub const fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    /// As hardware reads it.
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// Makes an entry that points to a table of the next level.
    pub const fn table(frame: Frame) -> Self {
        Self(frame.base().as_u64() | PRESENT | WRITABLE | USER | ACCESSED)
    }

    /// Makes an entry of a page table, which maps a 4 KiB page.
    pub const fn page(frame: Frame, writable: bool) -> Self {
        let write = if writable { WRITABLE } else { 0 };
        Self(frame.base().as_u64() | PRESENT | write | USER | ACCESSED | DIRTY)
    }

    /// Makes an entry that maps a large page: 2 MiB in a page directory, 1 GiB in a page directory pointer table.
    pub const fn large(frame: Frame, writable: bool) -> Self {
        Self(Self::page(frame, writable).0 | LARGE)
    }

    /// Returns the entry with its present bit cleared. It still names the frame that it mapped.
    pub const fn cleared(self) -> Self {
        Self(self.0 & !PRESENT)
    }

    /// Returns whether the entry maps a page or points to a table.
    pub const fn is_present(self) -> bool {
        self.0 & PRESENT != 0
    }

    /// Returns whether an entry of a directory maps a large page, rather than pointing to a table.
    pub const fn is_large(self) -> bool {
        self.0 & LARGE != 0
    }

    /// Returns whether the page may be written.
    pub const fn writable(self) -> bool {
        self.0 & WRITABLE != 0
    }

    /// Returns the table, or the first frame of the page.
    pub const fn frame(self) -> Frame {
        Frame::new((self.0 & ADDRESS) >> 12)
    }
}
