//! One entry of a nested page table, as AMD's nested paging has it: the format of ordinary long
//! mode tables, always "user" (APM vol. 2 §15.25.5).

use crate::memory::Frame;

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// An entry. Accessed and dirty are set from the start, so that hardware never writes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry(u64);

impl Entry {
    /// Maps nothing.
    pub const ABSENT: Self = Self(0);

    /// As hardware reads it.
    pub const fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    /// As hardware reads it.
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// Points to a table of the next level.
    pub const fn table(frame: Frame) -> Self {
        Self(frame.base().as_u64() | PRESENT | WRITABLE | USER | ACCESSED)
    }

    /// Maps a 4 KiB page, in a page table.
    pub const fn page(frame: Frame, writable: bool) -> Self {
        let write = if writable { WRITABLE } else { 0 };
        Self(frame.base().as_u64() | PRESENT | write | USER | ACCESSED | DIRTY)
    }

    /// Maps a large page, in a page directory (2 MiB) or page directory pointer table (1 GiB).
    pub const fn large(frame: Frame, writable: bool) -> Self {
        Self(Self::page(frame, writable).0 | LARGE)
    }

    /// Maps nothing more, but still says what it mapped.
    pub const fn cleared(self) -> Self {
        Self(self.0 & !PRESENT)
    }

    /// Maps or points to something.
    pub const fn is_present(self) -> bool {
        self.0 & PRESENT != 0
    }

    /// In a directory: maps a large page, rather than pointing to a table.
    pub const fn is_large(self) -> bool {
        self.0 & LARGE != 0
    }

    /// What it maps may be written.
    pub const fn writable(self) -> bool {
        self.0 & WRITABLE != 0
    }

    /// The table, or the first frame of the page.
    pub const fn frame(self) -> Frame {
        Frame::new((self.0 & ADDRESS) >> 12)
    }
}
