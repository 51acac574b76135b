//! VM 0's ACPI tables: the firmware's, with a copied RSDP → RSDT or XSDT → MADT, to which the
//! multiprocessor wakeup mailbox is added (ACPI 6.4 §5.2.12.19).

use super::bytes::{put, u32_at, u64_at};
use super::low;
use crate::arch::memory;

const HEADER: usize = 36;
const LENGTH: usize = 4;
const CHECKSUM: usize = 9;
/// Where a PC's firmware leaves the RSDP (ACPI §5.2.5.1).
const BIOS: (u64, u64) = (0xe_0000, 0x2_0000);
/// Longest table that is copied.
const LONGEST: usize = 8192;

/// Why VM 0 cannot get tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AcpiError {
    NoRsdp,
    BadTable,
    NoMadt,
    TooLong,
}

impl core::fmt::Display for AcpiError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::NoRsdp => "the firmware has no RSDP",
            Self::BadTable => "a table is damaged",
            Self::NoMadt => "there is no MADT",
            Self::TooLong => "the tables are too long to copy",
        })
    }
}

/// A table that is being built.
struct Table {
    bytes: [u8; LONGEST],
    len: usize,
}

impl Table {
    fn copy(from: &[u8]) -> Result<Self, AcpiError> {
        let mut table = Self {
            bytes: [0; LONGEST],
            len: 0,
        };
        table.append(from)?;
        Ok(table)
    }

    fn append(&mut self, from: &[u8]) -> Result<(), AcpiError> {
        if !put(&mut self.bytes, self.len, from) {
            return Err(AcpiError::TooLong);
        }
        self.len += from.len();
        Ok(())
    }

    /// The table with its length field and checksum.
    fn finish(&mut self) -> &[u8] {
        let len = (self.len as u32).to_le_bytes();
        self.bytes[LENGTH..LENGTH + 4].copy_from_slice(&len);
        self.bytes[CHECKSUM] = 0;
        self.bytes[CHECKSUM] = checksum(&self.bytes[..self.len]);
        &self.bytes[..self.len]
    }
}

/// The byte that makes all of `bytes` add up to 0.
fn checksum(bytes: &[u8]) -> u8 {
    0_u8.wrapping_sub(bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte)))
}

/// Copies and extends the tables; address of the new RSDP.
pub(super) fn copy_tables() -> Result<u64, AcpiError> {
    let area = memory::bytes(BIOS.0, BIOS.1).ok_or(AcpiError::NoRsdp)?;
    let rsdp = area
        .chunks_exact(16)
        .zip(0_usize..)
        .find(|(start, _)| start.starts_with(b"RSD PTR "))
        .and_then(|(_, n)| area.get(16 * n..))
        .ok_or(AcpiError::NoRsdp)?;
    let revision = *rsdp.get(15).ok_or(AcpiError::NoRsdp)?;
    let xsdt = if revision >= 2 {
        u64_at(rsdp, 24)
    } else {
        None
    };
    let (root, width) = match xsdt {
        Some(xsdt) if xsdt != 0 => (xsdt, 8),
        _ => (u32_at(rsdp, 16).ok_or(AcpiError::NoRsdp)?.into(), 4),
    };
    let root = table_at(root)?;
    let (slot, madt) = entries(root, width)
        .find_map(|(slot, address)| {
            let table = table_at(address).ok()?;
            table.starts_with(b"APIC").then_some((slot, table))
        })
        .ok_or(AcpiError::NoMadt)?;

    let mut madt = Table::copy(madt)?;
    madt.append(&wakeup_structure(low::MAILBOX))?;
    let mut root = Table::copy(root)?;
    // The three stand one after another: RSDP, root table, MADT.
    let root_at = low::ACPI + 64;
    let madt_at = (root_at + root.len as u64).next_multiple_of(16);
    if madt_at + madt.len as u64 > low::END {
        return Err(AcpiError::TooLong);
    }
    if !put(&mut root.bytes, slot, &madt_at.to_le_bytes()[..width]) {
        return Err(AcpiError::BadTable);
    }
    let written = memory::zero(low::MAILBOX, 4096)
        && memory::write(madt_at, madt.finish())
        && memory::write(root_at, root.finish())
        && memory::write(low::ACPI, &new_rsdp(root_at, width));
    written.then_some(low::ACPI).ok_or(AcpiError::BadTable)
}

/// The table at `address`, its length and checksum checked.
fn table_at(address: u64) -> Result<&'static [u8], AcpiError> {
    let header = memory::bytes(address, HEADER as u64).ok_or(AcpiError::BadTable)?;
    let len = u32_at(header, LENGTH).ok_or(AcpiError::BadTable)?;
    if (len as usize) < HEADER {
        return Err(AcpiError::BadTable);
    }
    let table = memory::bytes(address, len.into()).ok_or(AcpiError::BadTable)?;
    (checksum(table) == 0)
        .then_some(table)
        .ok_or(AcpiError::BadTable)
}

/// The pointers of an RSDT or XSDT: their offset in it, and the address.
fn entries(root: &[u8], width: usize) -> impl Iterator<Item = (usize, u64)> {
    (HEADER..root.len()).step_by(width).filter_map(move |at| {
        let address = if width == 8 {
            u64_at(root, at)?
        } else {
            u32_at(root, at)?.into()
        };
        Some((at, address))
    })
}

/// Type 0x10, 16 bytes, mailbox version 0.
fn wakeup_structure(mailbox: u64) -> [u8; 16] {
    let mut structure = [0; 16];
    structure[..2].copy_from_slice(&[0x10, 16]);
    structure[8..].copy_from_slice(&mailbox.to_le_bytes());
    structure
}

/// A revision 0 RSDP for an RSDT, revision 2 for an XSDT.
fn new_rsdp(root: u64, width: usize) -> [u8; 36] {
    let mut rsdp = [0; 36];
    rsdp[..8].copy_from_slice(b"RSD PTR ");
    rsdp[9..15].copy_from_slice(b"MVISOR");
    if width == 8 {
        rsdp[15] = 2;
        rsdp[20] = 36;
        rsdp[24..32].copy_from_slice(&root.to_le_bytes());
    } else {
        rsdp[16..20].copy_from_slice(&(root as u32).to_le_bytes());
    }
    rsdp[8] = checksum(&rsdp[..20]);
    rsdp[32] = checksum(&rsdp);
    rsdp
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finished_tables_add_up_to_zero() {
        let mut table = Table::copy(&[7; 44]).unwrap();
        table.append(&wakeup_structure(0x2_5000)).unwrap();
        let bytes = table.finish();
        assert_eq!(bytes.len(), 60);
        assert_eq!(u32_at(bytes, LENGTH), Some(60));
        assert_eq!(checksum(bytes), 0);
        assert_eq!(u64_at(bytes, 52), Some(0x2_5000));
    }

    #[test]
    fn both_checksums_of_an_rsdp_hold() {
        for width in [4, 8] {
            let rsdp = new_rsdp(0x2_6040, width);
            assert_eq!(checksum(&rsdp[..20]), 0);
            assert_eq!(checksum(&rsdp), 0);
        }
    }

    #[test]
    fn a_table_that_does_not_fit_is_an_error() {
        assert!(matches!(
            Table::copy(&[0; LONGEST + 1]),
            Err(AcpiError::TooLong)
        ));
    }
}
