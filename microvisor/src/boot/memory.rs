//! Physical memory while the machine boots: one run of bytes.
#![allow(unsafe_code, reason = "boot memory is one run of bytes")]

use core::ops::Range;

use crate::arch;
use crate::arch::layout::{BASE, SIZE};
use crate::memory::{Hpa, PhysMap};

/// The machine's memory while one CPU boots, less the image. The data of the loader and of the firmware may lie
/// anywhere in it, so it is one run of bytes. It ends before frames have owners.
#[derive(Debug)]
pub(super) struct BootMemory {
    base: u64,
    size: u64,
    image: Range<Hpa>,
}

impl BootMemory {
    /// Makes the memory that the boot page tables map, less `image`.
    ///
    /// # Safety
    ///
    /// Call this once, on the boot page tables, while only the image is in use.
    pub(super) unsafe fn new(image: Range<Hpa>) -> Self {
        Self {
            base: BASE,
            size: SIZE,
            image,
        }
    }

    /// Ends this memory: from here on it is frames. `ram_end` is the end of the RAM.
    pub(super) fn end(self, ram_end: u64) -> PhysMap {
        // SAFETY: the boot page tables and the microvisor's own map RAM below, less the resident image; the frame
        // table hands out frames of RAM only, and never the resident image's.
        unsafe { PhysMap::new(BASE as usize, ram_end) }
    }

    /// Makes the memory of a test, which is filled with zeros, from physical address 0 on.
    #[cfg(test)]
    pub(super) fn fake(size: usize) -> Self {
        let bytes = std::vec![0_u8; size].leak();
        Self {
            base: bytes.as_mut_ptr() as u64,
            size: size as u64,
            image: Hpa::new(0)..Hpa::new(0),
        }
    }

    /// Returns the `len` bytes from `start` on, or `None` if they lie outside of this memory or at address 0.
    pub(super) fn bytes(&self, start: Hpa, len: u64) -> Option<&[u8]> {
        let pointer = self.pointer(start, len)?;
        // SAFETY: mapped, and `&self` keeps writers away.
        Some(unsafe { core::slice::from_raw_parts(pointer, len as usize) })
    }

    /// Returns the same bytes for writing.
    pub(super) fn bytes_mut(&mut self, start: Hpa, len: u64) -> Option<&mut [u8]> {
        let pointer = self.pointer(start, len)?;
        // SAFETY: mapped, and `&mut self` keeps everybody else away.
        Some(unsafe { core::slice::from_raw_parts_mut(pointer, len as usize) })
    }

    /// Writes `from` at `to`. Returns false if the place is outside of this memory.
    #[must_use]
    pub(super) fn write(&mut self, to: Hpa, from: &[u8]) -> bool {
        let bytes = self.bytes_mut(to, from.len() as u64);
        bytes.map(|bytes| bytes.copy_from_slice(from)).is_some()
    }

    /// Copies `len` bytes; the two places may overlap. Returns false if one is outside of this memory.
    #[must_use]
    pub(super) fn copy(&mut self, to: Hpa, from: Hpa, len: u64) -> bool {
        let (Some(to), Some(from)) = (self.pointer(to, len), self.pointer(from, len)) else {
            return false;
        };
        // SAFETY: mapped, and `&mut self` keeps everybody else away.
        unsafe { core::ptr::copy(from, to, len as usize) };
        true
    }

    /// Fills the `len` bytes from `start` on with zeros. Returns false if it is outside of this memory.
    #[must_use]
    pub(super) fn zero(&mut self, start: Hpa, len: u64) -> bool {
        let bytes = self.bytes_mut(start, len);
        bytes.map(|bytes| bytes.fill(0)).is_some()
    }

    /// Writes a register of the local APIC, which is in xAPIC mode at boot.
    pub(super) fn write_apic(&mut self, offset: u64, value: u32) {
        const APIC_BASE: u32 = 0x1b;
        let at = Hpa::new(arch::try_read_msr(APIC_BASE).unwrap_or(0)).frame();
        if let Some(register) = self.pointer(at.base().offset(offset), 4) {
            // SAFETY: mapped; the boot code writes the APIC's interrupt command only.
            unsafe { register.cast::<u32>().write_volatile(value) };
        }
    }

    fn pointer(&self, start: Hpa, len: u64) -> Option<*mut u8> {
        let start = start.as_u64();
        let end = start.checked_add(len)?;
        let in_image = start < self.image.end.as_u64() && self.image.start.as_u64() < end;
        (start != 0 && end <= self.size && !in_image).then(|| (self.base + start) as *mut u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_reaches_outside_or_into_the_image() {
        let mut memory = BootMemory::fake(0x4000);
        memory.image = Hpa::new(0x1000)..Hpa::new(0x2000);
        assert!(memory.bytes(Hpa::new(0), 1).is_none());
        assert!(memory.bytes(Hpa::new(1), 0xfff).is_some());
        assert!(memory.bytes(Hpa::new(1), 0x1000).is_none());
        assert!(memory.bytes(Hpa::new(0x1fff), 1).is_none());
        assert!(memory.write(Hpa::new(0x2000), &[1, 2, 3]));
        assert!(!memory.write(Hpa::new(0x1fff), &[1, 2]));
        assert!(memory.copy(Hpa::new(0x2001), Hpa::new(0x2000), 3));
        assert_eq!(
            memory.bytes(Hpa::new(0x2000), 4),
            Some([1, 1, 2, 3].as_slice())
        );
        assert!(!memory.copy(Hpa::new(0xfff), Hpa::new(0x2000), 2));
        assert!(!memory.copy(Hpa::new(0x2000), Hpa::new(0xfff), 2));
        assert!(memory.zero(Hpa::new(0x3fff), 1));
        assert!(!memory.zero(Hpa::new(0x3fff), 2));
        assert!(memory.bytes(Hpa::new(u64::MAX), 2).is_none());
    }
}
