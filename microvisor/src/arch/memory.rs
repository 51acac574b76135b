//! Physical memory while the machine boots: one mapping of its first 512 GiB.

use core::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

/// Virtual address of physical address 0.
const BASE: u64 = 0xffff_8000_0000_0000;
/// Bytes mapped.
const SIZE: u64 = 512 << 30;
/// The image's link address less its load address.
const IMAGE: u64 = 0xffff_ffff_8000_0000;

/// Physical address of something in the image.
pub fn image_physical<T>(object: *const T) -> u64 {
    (object as u64).wrapping_sub(IMAGE)
}

/// The bytes at `[start, start + len)`, of a loader's tables that nobody writes any more.
/// `None` if they lie outside the mapping, or at address 0.
pub fn bytes(start: u64, len: u64) -> Option<&'static [u8]> {
    if !contains(start, len) {
        return None;
    }
    // SAFETY: mapped, and the caller reads tables of firmware or loader before anything moves.
    Some(unsafe { core::slice::from_raw_parts((BASE + start) as *const u8, len as usize) })
}

/// Copies `from` to physical address `to`. False if that is outside the mapping.
#[must_use]
pub fn write(to: u64, from: &[u8]) -> bool {
    if !contains(to, from.len() as u64) {
        return false;
    }
    // SAFETY: mapped; `copy` allows overlap.
    unsafe { core::ptr::copy(from.as_ptr(), (BASE + to) as *mut u8, from.len()) };
    true
}

/// Fills `[start, start + len)` with zeros. False if that is outside the mapping.
#[must_use]
pub fn zero(start: u64, len: u64) -> bool {
    if !contains(start, len) {
        return false;
    }
    // SAFETY: mapped.
    unsafe { core::ptr::write_bytes((BASE + start) as *mut u8, 0, len as usize) };
    true
}

/// The multiprocessor wakeup mailbox (ACPI 6.4 §5.2.12.19), at a page-aligned address.
#[derive(Debug)]
pub struct Mailbox {
    command: &'static AtomicU16,
    apic_id: &'static AtomicU32,
    vector: &'static AtomicU64,
}

impl Mailbox {
    /// The mailbox at `page`, a page of low memory.
    pub fn at(page: u64) -> Self {
        let base = BASE + (page & 0xf_f000);
        // SAFETY: low memory is mapped; atomics may be shared with VM 0.
        unsafe {
            Self {
                command: &*(base as *const AtomicU16),
                apic_id: &*((base + 4) as *const AtomicU32),
                vector: &*((base + 8) as *const AtomicU64),
            }
        }
    }

    /// Waits until this CPU is wanted; where it is to begin.
    pub fn wait(&self, apic_id: u32) -> u64 {
        loop {
            if self.command.load(Ordering::Acquire) == 1
                && self.apic_id.load(Ordering::Relaxed) == apic_id
            {
                let vector = self.vector.load(Ordering::Relaxed);
                // Tells the waker that the command was taken.
                self.command.store(0, Ordering::Release);
                return vector;
            }
            core::hint::spin_loop();
        }
    }
}

/// Writes a register of the local APIC, which is in xAPIC mode at boot.
pub(crate) fn write_apic(offset: u64, value: u32) {
    const APIC_BASE: u32 = 0x1b;
    let base = super::read_msr(APIC_BASE) & 0xf_ffff_f000;
    // SAFETY: the APIC's page is mapped, and the boot code writes its interrupt command only.
    unsafe { ((BASE + base + offset) as *mut u32).write_volatile(value) };
}

fn contains(start: u64, len: u64) -> bool {
    start != 0 && start < SIZE && len <= SIZE - start
}
