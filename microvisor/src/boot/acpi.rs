//! VM 0's ACPI tables: the firmware's, with a copied RSDP → RSDT or XSDT → MADT, to which the
//! multiprocessor wakeup mailbox is added (ACPI 6.4 §5.2.12.19).

use super::bytes::{put, u32_at, u64_at};
use super::low;
use super::memory::BootMemory;
use crate::memory::Hpa;

const HEADER: u64 = 36;
const LENGTH: usize = 4;
const CHECKSUM: usize = 9;
/// The places where a PC's firmware leaves the RSDP (ACPI §5.2.5.1).
const BIOS: (Hpa, u64) = (Hpa::new(0xe_0000), 0x2_0000);

/// Bytes of a root system description pointer of revision 2. One of revision 0 is the start of it.
pub(super) type Rsdp = [u8; 36];

/// Error: VM 0 cannot get tables.
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

/// The place of a table whose length and checksum are right.
#[derive(Clone, Copy, Debug)]
struct Table {
    at: Hpa,
    len: u64,
}

impl Table {
    fn check(memory: &BootMemory, at: Hpa) -> Result<Self, AcpiError> {
        let header = memory.bytes(at, HEADER).ok_or(AcpiError::BadTable)?;
        let len = u32_at(header, LENGTH).ok_or(AcpiError::BadTable)?.into();
        let table = Self { at, len };
        if len < HEADER || checksum(table.bytes(memory)?) != 0 {
            return Err(AcpiError::BadTable);
        }
        Ok(table)
    }

    fn bytes<'a>(&self, memory: &'a BootMemory) -> Result<&'a [u8], AcpiError> {
        memory.bytes(self.at, self.len).ok_or(AcpiError::BadTable)
    }

    /// Copies the table to `to`, puts `more` behind it, and applies `change`.
    fn copy(
        &self,
        memory: &mut BootMemory,
        to: Hpa,
        more: &[u8],
        change: impl FnOnce(&mut [u8]) -> bool,
    ) -> Result<(), AcpiError> {
        let len = self.len + more.len() as u64;
        let done = memory.copy(to, self.at, self.len) && memory.write(to.offset(self.len), more);
        let copy = memory.bytes_mut(to, len).filter(|_| done);
        let copy = copy.ok_or(AcpiError::BadTable)?;
        let changed = change(copy) && put(copy, LENGTH, &(len as u32).to_le_bytes());
        copy[CHECKSUM] = 0;
        copy[CHECKSUM] = checksum(copy);
        changed.then_some(()).ok_or(AcpiError::BadTable)
    }
}

/// The tables for VM 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tables {
    /// Address of the new RSDP.
    pub(super) rsdp: Hpa,
    /// CPUs that the MADT lists as enabled.
    pub(super) cpus: u32,
}

/// Returns the byte that makes the sum of `bytes` 0.
fn checksum(bytes: &[u8]) -> u8 {
    0_u8.wrapping_sub(bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte)))
}

/// Copies and extends the tables. `rsdp` is the pointer that the loader passed, if it passed one: under UEFI the
/// pointer is in no place that could be searched.
pub(super) fn copy_tables(
    memory: &mut BootMemory,
    rsdp: Option<Rsdp>,
) -> Result<Tables, AcpiError> {
    let rsdp = rsdp.or_else(|| find_rsdp(memory));
    let (root, width) = root_table(&rsdp.ok_or(AcpiError::NoRsdp)?);
    let root = Table::check(memory, root)?;
    let (slot, madt) = entries(root.bytes(memory)?, width)
        .find_map(|(slot, at)| {
            let table = Table::check(memory, at).ok()?;
            let is_madt = table.bytes(memory).ok()?.starts_with(b"APIC");
            is_madt.then_some((slot, table))
        })
        .ok_or(AcpiError::NoMadt)?;
    let cpus = enabled_cpus(madt.bytes(memory)?);
    log::trace!("ACPI: root table at {}, MADT at {}", root.at, madt.at);
    let more = wakeup_structure(low::MAILBOX);
    // The three stand one after another: RSDP, root table, MADT.
    let root_at = low::ACPI.offset(64);
    let madt_at = root_at.offset(root.len.next_multiple_of(16));
    if madt_at.offset(madt.len + more.len() as u64) > low::END {
        return Err(AcpiError::TooLong);
    }
    madt.copy(memory, madt_at, &more, |_| true)?;
    root.copy(memory, root_at, &[], |table| {
        put(table, slot, &madt_at.as_u64().to_le_bytes()[..width])
    })?;
    let written =
        memory.zero(low::MAILBOX, 4096) && memory.write(low::ACPI, &new_rsdp(root_at, width));
    let tables = Tables {
        rsdp: low::ACPI,
        cpus,
    };
    written.then_some(tables).ok_or(AcpiError::BadTable)
}

/// Searches the BIOS's memory for the RSDP.
fn find_rsdp(memory: &BootMemory) -> Option<Rsdp> {
    let area = memory.bytes(BIOS.0, BIOS.1)?;
    let mut places = (0..area.len()).step_by(16).filter_map(|at| area.get(at..));
    let found = places.find(|place| place.starts_with(b"RSD PTR "))?;
    found.first_chunk().copied()
}

/// Returns the XSDT, or the RSDT if there is no XSDT, and the bytes of a pointer in it.
fn root_table(rsdp: &Rsdp) -> (Hpa, usize) {
    let revision = rsdp[15];
    match u64_at(rsdp, 24) {
        Some(xsdt) if revision >= 2 && xsdt != 0 => (Hpa::new(xsdt), 8),
        _ => (Hpa::new(u32_at(rsdp, 16).unwrap_or(0).into()), 4),
    }
}

/// Returns the pointers of an RSDT or XSDT: the offset of each in the table, and the address.
fn entries(root: &[u8], width: usize) -> impl Iterator<Item = (usize, Hpa)> {
    let offsets = (HEADER as usize..root.len()).step_by(width);
    offsets.filter_map(move |at| {
        let address = if width == 8 {
            u64_at(root, at)?
        } else {
            u32_at(root, at)?.into()
        };
        Some((at, Hpa::new(address)))
    })
}

/// Returns the count of CPUs that a MADT lists as enabled, by their local APIC or x2APIC structures (ACPI 6.4
/// §5.2.12.2 and §5.2.12.12).
fn enabled_cpus(madt: &[u8]) -> u32 {
    const STRUCTURES: usize = 44;
    const APIC: u8 = 0;
    const X2APIC: u8 = 9;
    let mut rest = madt.get(STRUCTURES..).unwrap_or(&[]);
    let mut cpus = 0;
    while let &[kind, len, ..] = rest {
        let flags = match kind {
            APIC => u32_at(rest, 4),
            X2APIC => u32_at(rest, 8),
            _ => None,
        };
        cpus += flags.unwrap_or(0) & 1;
        rest = rest.get(usize::from(len.max(2))..).unwrap_or(&[]);
    }
    cpus
}

/// Returns the multiprocessor wakeup structure: type 0x10, 16 bytes, mailbox version 0.
fn wakeup_structure(mailbox: Hpa) -> [u8; 16] {
    let mut structure = [0; 16];
    structure[..2].copy_from_slice(&[0x10, 16]);
    structure[8..].copy_from_slice(&mailbox.as_u64().to_le_bytes());
    structure
}

/// A revision 0 RSDP for an RSDT, revision 2 for an XSDT.
fn new_rsdp(root: Hpa, width: usize) -> Rsdp {
    let mut rsdp = [0; 36];
    rsdp[..8].copy_from_slice(b"RSD PTR ");
    rsdp[9..15].copy_from_slice(b"MVISOR");
    if width == 8 {
        rsdp[15] = 2;
        rsdp[20] = 36;
        rsdp[24..32].copy_from_slice(&root.as_u64().to_le_bytes());
    } else {
        rsdp[16..20].copy_from_slice(&(root.as_u64() as u32).to_le_bytes());
    }
    rsdp[8] = checksum(&rsdp[..20]);
    rsdp[32] = checksum(&rsdp);
    rsdp
}

#[cfg(test)]
mod tests {
    use super::*;

    const RSDP: Hpa = Hpa::new(0xf_0010);
    const ROOT: Hpa = Hpa::new(0x12_0000);
    const OTHER: Hpa = Hpa::new(0x12_1000);
    const MADT: Hpa = Hpa::new(0x12_2000);

    fn table(memory: &mut BootMemory, at: Hpa, signature: &[u8; 4], body: &[u8]) {
        let mut bytes = std::vec![0; HEADER as usize];
        bytes[..4].copy_from_slice(signature);
        bytes.extend_from_slice(body);
        let len = bytes.len() as u32;
        bytes[LENGTH..LENGTH + 4].copy_from_slice(&len.to_le_bytes());
        bytes[CHECKSUM] = checksum(&bytes);
        assert!(memory.write(at, &bytes));
    }

    /// A PC's tables with a root table of `width`.
    fn firmware(width: usize) -> BootMemory {
        let mut memory = BootMemory::fake(0x13_0000);
        table(&mut memory, OTHER, b"FACP", &[1; 8]);
        table(&mut memory, MADT, b"APIC", &[2; 20]);
        let mut pointers = std::vec::Vec::new();
        for at in [OTHER, MADT] {
            pointers.extend_from_slice(&at.as_u64().to_le_bytes()[..width]);
        }
        table(&mut memory, ROOT, b"XSDT", &pointers);
        assert!(memory.write(RSDP, &new_rsdp(ROOT, width)));
        memory
    }

    #[test]
    fn the_copies_lead_to_a_madt_with_the_mailbox() {
        for width in [4, 8] {
            let mut memory = firmware(width);
            let tables = copy_tables(&mut memory, None).unwrap();
            let rsdp = *memory
                .bytes(tables.rsdp, 36)
                .unwrap()
                .first_chunk()
                .unwrap();
            assert_eq!(checksum(&rsdp[..20]), 0);
            assert_eq!(checksum(&rsdp), 0);
            let (root, found) = root_table(&rsdp);
            assert_eq!(found, width);
            let root = Table::check(&memory, root).unwrap();
            let pointers: std::vec::Vec<_> = entries(root.bytes(&memory).unwrap(), width).collect();
            assert_eq!(pointers[0].1, OTHER);
            let madt = Table::check(&memory, pointers[1].1).unwrap();
            let madt = madt.bytes(&memory).unwrap();
            assert_eq!(madt.len(), 36 + 20 + 16);
            assert_eq!(madt[56..58], [0x10, 16]);
            assert_eq!(u64_at(madt, 64), Some(low::MAILBOX.as_u64()));
        }
    }

    #[test]
    fn the_loaders_rsdp_comes_first() {
        let mut memory = firmware(8);
        assert!(memory.zero(RSDP, 36));
        let copy = |memory: &mut BootMemory, rsdp| copy_tables(memory, rsdp);
        assert_eq!(copy(&mut memory, None), Err(AcpiError::NoRsdp));
        let rsdp = new_rsdp(ROOT, 8);
        assert_eq!(copy(&mut memory, Some(rsdp)).unwrap().rsdp, low::ACPI);
    }

    #[test]
    fn enabled_cpus_are_counted() {
        let mut madt = std::vec![0; 44];
        assert_eq!(enabled_cpus(&madt), 0);
        madt.extend_from_slice(&[0, 8, 0, 0, 1, 0, 0, 0]);
        madt.extend_from_slice(&[1, 12, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0]);
        madt.extend_from_slice(&[0, 8, 1, 1, 2, 0, 0, 0]);
        madt.extend_from_slice(&[9, 16, 0, 0, 7, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(enabled_cpus(&madt), 2);
        // A damaged end: no length, and too long a one.
        madt.extend_from_slice(&[0, 0, 9, 200, 0]);
        assert_eq!(enabled_cpus(&madt), 2);
    }

    #[test]
    fn each_fault_has_its_name() {
        let fault = |change: &dyn Fn(&mut BootMemory)| {
            let mut memory = firmware(8);
            change(&mut memory);
            copy_tables(&mut memory, None).unwrap_err()
        };
        assert_eq!(
            fault(&|memory| assert!(memory.write(ROOT.offset(40), &[7]))),
            AcpiError::BadTable
        );
        assert_eq!(
            fault(&|memory| assert!(memory.write(MADT.offset(40), &[7]))),
            AcpiError::NoMadt
        );
        assert_eq!(
            fault(&|memory| table(memory, MADT, b"APIC", &[0; 0xa000])),
            AcpiError::TooLong
        );
        assert_eq!(
            fault(&|memory| assert!(memory.write(ROOT.offset(4), &u32::MAX.to_le_bytes()))),
            AcpiError::BadTable
        );
    }
}
