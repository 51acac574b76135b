//! RAM: what `boot_params` says there is, handed out from one end, and read and written by physical
//! address, which is the virtual one.
#![allow(unsafe_code, reason = "memory by its physical address")]

use core::sync::atomic::{AtomicU64, Ordering};

use guest_proto::limits::PAGE_SIZE;
use guest_proto::shared::SharedPage;
use spin::Once;
use x86_64::structures::paging::PageTableFlags;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Past the image, whose header names its size.
const FIRST_FREE: u64 = 32 << 20;
const USABLE: u32 = 1;

/// Rights of an entry of a page table: every access, by user code too.
pub const PRESENT_WRITE_USER: u64 = PageTableFlags::PRESENT
    .union(PageTableFlags::WRITABLE)
    .union(PageTableFlags::USER_ACCESSIBLE)
    .bits();
/// Bit of an entry that maps a large page.
pub const LARGE: u64 = PageTableFlags::HUGE_PAGE.bits();

static NEXT: AtomicU64 = AtomicU64::new(0);
static END: AtomicU64 = AtomicU64::new(0);

/// Finds the largest range of RAM in the Linux boot protocol's parameters.
pub fn init(boot_params: u64) {
    const ENTRIES: u64 = 0x1e8;
    const MAP: u64 = 0x2d0;
    let count = u64::from(read::<u8>(boot_params + ENTRIES));
    let ranges = (0..count).map(|n| {
        let at = boot_params + MAP + 20 * n;
        let (start, size): (u64, u64) = (read(at), read(at + 8));
        let kind: u32 = read(at + 16);
        let end = if kind == USABLE { start + size } else { 0 };
        (start.max(FIRST_FREE).next_multiple_of(PAGE_SIZE), end)
    });
    if let Some((start, end)) = ranges.max_by_key(|(start, end)| end.saturating_sub(*start)) {
        NEXT.store(start / PAGE_SIZE, Ordering::Relaxed);
        END.store(end / PAGE_SIZE, Ordering::Relaxed);
    }
}

/// Reads a plain value at a physical address, which must be RAM of this kernel's or firmware's.
pub fn read<T: FromBytes>(address: u64) -> T {
    // SAFETY: identity mapped, and `T` takes any bytes; a page that is absent faults, which `trap`
    // reports.
    unsafe { (address as *const T).read_unaligned() }
}

/// A run of page frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pages {
    first: u64,
    count: u64,
}

impl Pages {
    /// Takes frames that nothing else uses, filled with [`Pages::PATTERN`]. Frames are not given
    /// back: a machine has enough for all cases.
    pub fn take(count: u64) -> Self {
        let first = NEXT.fetch_add(count, Ordering::Relaxed);
        if first + count > END.load(Ordering::Relaxed) {
            crate::stop(format_args!(
                "the cases need more RAM than this machine has"
            ));
        }
        let pages = Self { first, count };
        pages.fill(Self::PATTERN);
        pages
    }

    /// As [`Pages::take`], at a multiple of `align` pages.
    pub fn take_aligned(count: u64, align: u64) -> Self {
        let all = Self::take(count + align - 1);
        Self {
            first: all.first.next_multiple_of(align),
            count,
        }
    }

    /// What fresh pages hold, in each 64-bit word.
    pub const PATTERN: u64 = 0x5a5a_a5a5_dead_beef;

    /// One page that any call may fill, and no caller relies on later.
    pub fn scratch() -> Self {
        static SCRATCH: Once<u64> = Once::new();
        Self {
            first: *SCRATCH.call_once(|| Self::take(1).first),
            count: 1,
        }
    }

    /// Page frame number of the first.
    pub fn pfn(self) -> u64 {
        self.first
    }

    /// How many.
    pub fn count(self) -> u64 {
        self.count
    }

    /// Physical address of the first.
    pub fn address(self) -> u64 {
        self.first * PAGE_SIZE
    }

    /// The page of this index alone.
    pub fn page(self, index: u64) -> Self {
        assert!(index < self.count);
        Self {
            first: self.first + index,
            count: 1,
        }
    }

    /// Fills every word.
    pub fn fill(self, word: u64) {
        for index in 0..self.count * PAGE_SIZE / 8 {
            self.word(index).store(word, Ordering::Relaxed);
        }
    }

    /// Whether every word is `word`.
    pub fn holds(self, word: u64) -> bool {
        (0..self.count * PAGE_SIZE / 8).all(|n| self.word(n).load(Ordering::Relaxed) == word)
    }

    /// The word of this index. Others may write it at the same time.
    pub fn word(self, index: u64) -> &'static AtomicU64 {
        assert!(index < self.count * PAGE_SIZE / 8);
        // SAFETY: identity mapped RAM that `take` handed out, aligned, and in bounds.
        unsafe { AtomicU64::from_ptr((self.address() + 8 * index) as *mut u64) }
    }

    /// A structure of whole words at byte `offset`.
    pub fn load<T: FromBytes + IntoBytes>(self, offset: u64) -> T {
        let mut value = T::new_zeroed();
        for (bytes, n) in value.as_mut_bytes().chunks_exact_mut(8).zip(offset / 8..) {
            bytes.copy_from_slice(&self.word(n).load(Ordering::Relaxed).to_ne_bytes());
        }
        value
    }

    /// Stores a structure of whole words at byte `offset`.
    pub fn store<T: IntoBytes + Immutable + ?Sized>(self, offset: u64, value: &T) {
        for (bytes, n) in value.as_bytes().chunks(8).zip(offset / 8..) {
            let mut word = [0; 8];
            word[..bytes.len()].copy_from_slice(bytes);
            self.word(n)
                .store(u64::from_ne_bytes(word), Ordering::Relaxed);
        }
    }

    /// The first page as one that is shared with the microvisor.
    pub fn shared(self) -> &'static SharedPage {
        // SAFETY: as in `word`; it consists of atomics.
        unsafe { &*(self.address() as *const SharedPage) }
    }
}
