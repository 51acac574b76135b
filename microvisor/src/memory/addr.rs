//! Physical addresses. Each kind has its own type, so that one cannot be taken for another.

use guest_proto::limits::PAGE_SIZE;

/// Bits of a physical address on x86 (APM vol. 2 §5.1).
const PHYS_BITS: u32 = 52;
const PHYS_MASK: u64 = (1 << PHYS_BITS) - 1;
const PAGE_SHIFT: u32 = PAGE_SIZE.trailing_zeros();

/// A host physical address: an address of the machine's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Hpa(u64);

impl Hpa {
    /// The address `address`; bits above 51 do not exist and are dropped.
    pub const fn new(address: u64) -> Self {
        Self(address & PHYS_MASK)
    }

    /// Returns the address as a number of bytes.
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// Returns the address `bytes` after this one.
    pub const fn offset(self, bytes: u64) -> Self {
        Self::new(self.0.wrapping_add(bytes))
    }

    /// Returns the frame that the address lies in.
    pub const fn frame(self) -> Frame {
        Frame(self.0 >> PAGE_SHIFT)
    }
}

impl core::fmt::Display for Hpa {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// A guest physical address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Gpa(u64);

impl Gpa {
    /// The address `address`; bits above 51 do not exist and are dropped.
    pub const fn new(address: u64) -> Self {
        Self(address & PHYS_MASK)
    }

    /// Returns the address as a number of bytes.
    pub const fn as_u64(self) -> u64 {
        self.0
    }
}

/// A 4 KiB page of a guest's physical memory, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct GuestPage(u64);

impl GuestPage {
    /// Count of guest pages: guest physical addresses have 48 bits.
    pub const COUNT: u64 = 1 << 36;

    /// Makes the page with this number. It stays as it is, also where no guest has such a page, so that `verify` finds
    /// a wrong one in the frame table. [`GuestPage::first_of`] checks pages that root names.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// Returns page `number`, if it and the pages behind it, `pages` in all and at least one, exist.
    pub fn first_of(number: u64, pages: u64) -> Option<Self> {
        let end = number.checked_add(pages)?;
        (number < end && end <= Self::COUNT).then_some(Self(number))
    }

    /// Returns the page `pages` after this one.
    pub const fn offset(self, pages: u64) -> Self {
        Self(self.0.wrapping_add(pages))
    }

    /// Returns its number.
    pub const fn number(self) -> u64 {
        self.0
    }
}

/// A 4 KiB frame of the machine's memory, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Frame(u64);

impl Frame {
    /// Makes the frame with this number; bits that no physical address has are dropped.
    pub const fn new(number: u64) -> Self {
        Self(number & (PHYS_MASK >> PAGE_SHIFT))
    }

    /// Makes the frame with this number, if a physical address can have it.
    pub const fn checked(number: u64) -> Option<Self> {
        if number > PHYS_MASK >> PAGE_SHIFT {
            return None;
        }
        Some(Self(number))
    }

    /// Returns the frame `frames` after this one.
    pub const fn offset(self, frames: u64) -> Self {
        Self::new(self.0.wrapping_add(frames))
    }

    /// Returns its number.
    pub const fn number(self) -> u64 {
        self.0
    }

    /// Returns the address of the frame's first byte.
    pub const fn base(self) -> Hpa {
        Hpa(self.0 << PAGE_SHIFT)
    }
}
