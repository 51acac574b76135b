//! All of physical memory at one virtual address, and every access to it.
//!
//! Nothing else forms a pointer from a physical address. Memory that root or a guest can write is
//! only copied or accessed atomically, never borrowed; [`Placed`] lends out memory that the frame
//! table has given to the microvisor alone.
#![allow(unsafe_code, reason = "turns physical addresses into accesses")]

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};

use guest_proto::limits::PAGE_SIZE;
use guest_proto::shared::SharedPage;

use super::frame_table::OwnedFrame;
use super::{Frame, Hpa};

/// Bytes of a frame.
pub const FRAME_BYTES: usize = PAGE_SIZE as usize;

/// A mapping of physical memory.
#[derive(Clone, Copy, Debug)]
pub struct PhysMap {
    base: usize,
    size: u64,
}

impl PhysMap {
    /// Makes the value for a mapping of the physical addresses below `size` at `base`.
    ///
    /// # Safety
    ///
    /// `base` is page aligned, and for as long as the value or a copy of it is used, the `size`
    /// bytes from it are mapped readable and writable (or, for holes, never owned by anyone in
    /// the frame table, and never named by the microvisor itself), and no Rust reference other
    /// than those made here points into them.
    pub const unsafe fn new(base: usize, size: u64) -> Self {
        Self { base, size }
    }

    /// Returns the bytes of physical memory that are mapped.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Returns the aligned 64-bit word at `at`, or `None` if it is misaligned or outside of the mapping.
    pub fn atomic(&self, at: Hpa) -> Option<&AtomicU64> {
        let pointer = self.pointer::<AtomicU64>(at)?;
        // SAFETY: `pointer` checked bounds and alignment, `new`'s contract gives validity; shared
        // atomics may alias whatever else accesses this memory.
        Some(unsafe { &*pointer })
    }

    /// Returns aligned 64-bit words from `at` on, or `None` if they are misaligned or not all inside of the mapping.
    pub fn words(&self, at: Hpa, count: usize) -> Option<&[AtomicU64]> {
        let first = self.atomic(at)?;
        let bytes = (count as u64).checked_mul(8)?;
        (bytes <= self.size - at.as_u64()).then(|| {
            // SAFETY: as in `atomic`, for each word: all of them are inside of the mapping.
            unsafe { core::slice::from_raw_parts(first, count) }
        })
    }

    /// Returns a page that root, a worker and the microvisor share, or `None` if it is outside of the mapping.
    pub fn shared_page(&self, frame: Frame) -> Option<&SharedPage> {
        let pointer = self.pointer::<SharedPage>(frame.base())?;
        // SAFETY: as in `atomic`: nothing but atomics is in it.
        Some(unsafe { &*pointer })
    }

    /// Copies from memory and reads each 64-bit word once. `at` and the length must be multiples of 8. Returns false,
    /// and leaves `to` as it is, if they are not, or if the place is outside of the mapping.
    #[must_use]
    pub fn read(&self, at: Hpa, to: &mut [u8]) -> bool {
        let Some(words) = self.words_of(at, to.len()) else {
            return false;
        };
        for (bytes, word) in to.chunks_exact_mut(8).zip(words) {
            bytes.copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
        }
        true
    }

    /// Copies to memory, under the conditions of [`PhysMap::read`].
    #[must_use]
    pub fn write(&self, at: Hpa, from: &[u8]) -> bool {
        let Some(words) = self.words_of(at, from.len()) else {
            return false;
        };
        let (bytes, _) = from.as_chunks();
        for (bytes, word) in bytes.iter().zip(words) {
            word.store(u64::from_ne_bytes(*bytes), Ordering::Relaxed);
        }
        true
    }

    /// Fills a frame with zeros. Nothing happens for a frame outside of the mapping.
    pub fn zero(&self, frame: Frame) {
        if let Some(pointer) = self.pointer::<[AtomicU64; FRAME_BYTES / 8]>(frame.base()) {
            // SAFETY: bounds and alignment are checked, and `new`'s contract gives validity. The
            // microvisor owns a frame that it scrubs; that root may write it through a stale
            // translation makes the contents of no interest, and root is not Rust.
            unsafe { core::ptr::write_bytes(pointer.cast_mut().cast::<u8>(), 0, FRAME_BYTES) };
        }
    }

    /// Returns the words that `len` bytes at `at` are, if they are whole words of the mapping.
    fn words_of(&self, at: Hpa, len: usize) -> Option<&[AtomicU64]> {
        let words = self.words(at, len / 8)?;
        len.is_multiple_of(8).then_some(words)
    }

    fn pointer<T>(&self, at: Hpa) -> Option<*const T> {
        let end = at.as_u64().checked_add(size_of::<T>() as u64)?;
        let aligned = at.as_u64().is_multiple_of(align_of::<T>() as u64);
        (aligned && end <= self.size).then(|| (self.base + at.as_u64() as usize) as *const T)
    }
}

/// A `T` that lives in a frame of a partition's metadata.
#[derive(Debug)]
pub struct Placed<T> {
    frame: OwnedFrame,
    /// Where the frame is mapped: each exit of a guest comes here many times.
    at: NonNull<T>,
}

impl<T> Placed<T> {
    const FITS: () = assert!(size_of::<T>() <= FRAME_BYTES && align_of::<T>() <= FRAME_BYTES);

    /// Moves `value` into the frame. Gives the frame back if it is not in `map`.
    pub fn new(map: PhysMap, frame: OwnedFrame, value: T) -> Result<Self, OwnedFrame> {
        let () = Self::FITS;
        let pointer = map.pointer::<T>(frame.frame().base());
        let Some(at) = pointer.and_then(|pointer| NonNull::new(pointer.cast_mut())) else {
            return Err(frame);
        };
        // SAFETY: the frame is inside the map and page aligned, `T` fits (checked when compiled),
        // and `OwnedFrame` is the proof that nothing else uses it.
        unsafe { at.write(value) };
        Ok(Self { frame, at })
    }

    /// Moves the value out and gives the frame back.
    pub fn into_parts(self) -> (T, OwnedFrame) {
        // SAFETY: `new` put a `T` there, and `self` owns it and ends here.
        let value = unsafe { self.at.read() };
        (value, self.frame)
    }

    /// Returns the frame that the value lives in.
    pub fn frame(&self) -> Frame {
        self.frame.frame()
    }
}

impl<T> core::ops::Deref for Placed<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: `new` put a `T` there and checked bounds; `self` owns the frame.
        unsafe { self.at.as_ref() }
    }
}

impl<T> core::ops::DerefMut for Placed<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`, and `&mut self` makes it exclusive.
        unsafe { self.at.as_mut() }
    }
}

// SAFETY: a `Placed` owns its `T` as a `Box` does.
unsafe impl<T: Send> Send for Placed<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Placed<T> {}
