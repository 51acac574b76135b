//! The virtual addresses of the microvisor.

use crate::memory::Hpa;

/// Virtual address of physical address 0.
pub const BASE: u64 = 0xffff_8000_0000_0000;
/// Bytes of physical memory that can be mapped at `BASE`.
pub const SIZE: u64 = 512 << 30;
/// The image's link address less its load address.
pub(super) const IMAGE: u64 = 0xffff_ffff_8000_0000;

/// Returns the physical address of an object in the image.
pub fn image_physical<T>(object: *const T) -> Hpa {
    Hpa::new((object as u64).wrapping_sub(IMAGE))
}
