//! Little-endian fields of a table.

/// Returns the 16-bit field at `at`.
pub(super) fn u16_at(table: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*table.get(at..)?.first_chunk()?))
}

/// Returns the 32-bit field at `at`.
pub(super) fn u32_at(table: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*table.get(at..)?.first_chunk()?))
}

/// Returns the 64-bit field at `at`.
pub(super) fn u64_at(table: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*table.get(at..)?.first_chunk()?))
}

/// Writes `value` at `at`. Returns false if it does not fit.
#[must_use]
pub(super) fn put(table: &mut [u8], at: usize, value: &[u8]) -> bool {
    let Some(field) = table.get_mut(at..at + value.len()) else {
        return false;
    };
    field.copy_from_slice(value);
    true
}
