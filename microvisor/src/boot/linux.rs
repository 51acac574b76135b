//! VM 0 by the Linux 64-bit boot protocol (Linux `Documentation/arch/x86/boot.rst`).

use super::bytes::{put, u16_at, u32_at, u64_at};
use super::map::Map;
use super::memory::BootMemory;
use super::multiboot::Module;
use super::{Error, low};
use crate::memory::Hpa;

const HEADER: usize = 0x1f1;
const SIGNATURE: usize = 0x202;
/// The least version of the protocol: 2.12 has `xloadflags`.
const LEAST_VERSION: u16 = 0x20c;
const KERNEL_64: u16 = 1;
/// Offset of the 64-bit entry point in the loaded kernel.
const ENTRY_64: u64 = 0x200;
const MEMORY_LIMIT: u64 = 1 << 31;

/// Error: a module is not a kernel that can be VM 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KernelError {
    NotLinux,
    Old(u16),
    Not64Bit,
    Truncated,
    NoRoom,
}

impl core::fmt::Display for KernelError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::NotLinux => f.write_str("is not a Linux bzImage"),
            Self::Old(version) => write!(
                f,
                "has boot protocol {}.{:02}; 2.12 is needed",
                version >> 8,
                version & 0xff
            ),
            Self::Not64Bit => f.write_str("has no 64-bit entry point"),
            Self::Truncated => f.write_str("is truncated"),
            Self::NoRoom => f.write_str("finds no memory at its preferred address"),
        }
    }
}

/// The fields of a bzImage's setup header that boot uses.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kernel {
    header: [u8; 0x290 - HEADER],
    code_offset: u64,
    pub(super) load_address: Hpa,
    pub(super) memory_size: u64,
    /// First address that the initrd may not reach.
    pub(super) initrd_limit: u64,
}

impl Kernel {
    /// Checks a bzImage.
    pub(super) fn parse(image: &[u8]) -> Result<Self, KernelError> {
        if image.get(SIGNATURE..SIGNATURE + 4) != Some(b"HdrS") {
            return Err(KernelError::NotLinux);
        }
        let field = |at| u32_at(image, at).ok_or(KernelError::Truncated);
        let version = u16_at(image, 0x206).ok_or(KernelError::Truncated)?;
        if version < LEAST_VERSION {
            return Err(KernelError::Old(version));
        }
        if u16_at(image, 0x236).ok_or(KernelError::Truncated)? & KERNEL_64 == 0 {
            return Err(KernelError::Not64Bit);
        }
        let sectors = match image.get(HEADER) {
            Some(0) | None => 4,
            Some(&sectors) => u64::from(sectors),
        };
        let code_offset = (sectors + 1) * 512;
        let code = 16 * u64::from(field(0x1f4)?);
        if code == 0 || code_offset + code > image.len() as u64 {
            return Err(KernelError::Truncated);
        }
        let mut header = [0; 0x290 - HEADER];
        header.copy_from_slice(image.get(HEADER..0x290).ok_or(KernelError::Truncated)?);
        Ok(Self {
            header,
            code_offset,
            load_address: Hpa::new(u64_at(image, 0x258).ok_or(KernelError::Truncated)?),
            memory_size: u64::from(field(0x260)?).max(code),
            initrd_limit: (u64::from(field(0x22c)?) + 1).min(MEMORY_LIMIT),
        })
    }

    /// First instruction.
    pub(super) fn entry(&self) -> Hpa {
        self.load_address.offset(ENTRY_64)
    }
}

/// Moves the kernel to its place, and writes its boot parameters, page tables and descriptors.
pub(super) fn lay_out(
    memory: &mut BootMemory,
    kernel: &Kernel,
    module: &Module,
    initrd: Option<Module>,
    command_line: &[u8],
    rsdp: Hpa,
    map: &Map,
) -> Result<(), Error> {
    let params = memory.bytes_mut(low::BOOT_PARAMS, 4096);
    let params = params.ok_or(Error::BadInfo)?;
    if !boot_params(params, kernel, initrd, rsdp, map) {
        return Err(Error::TooManyRanges);
    }
    // The command line may lie anywhere, so it was copied; the kernel moves last.
    let (from, len) = (
        module.start.offset(kernel.code_offset),
        module.len - kernel.code_offset,
    );
    let written = memory.zero(low::COMMAND_LINE, 4096)
        && memory.write(low::COMMAND_LINE, command_line)
        && memory.write(low::GDT, &gdt())
        && page_tables(memory)
        && memory.copy(kernel.load_address, from, len);
    written.then_some(()).ok_or(Error::BadInfo)
}

/// Fills in `struct boot_params`, the "zero page". Returns false if the memory map does not fit.
#[must_use]
fn boot_params(
    params: &mut [u8],
    kernel: &Kernel,
    initrd: Option<Module>,
    rsdp: Hpa,
    map: &Map,
) -> bool {
    const ACPI_RSDP: usize = 0x070;
    const E820_ENTRIES: usize = 0x1e8;
    const TYPE_OF_LOADER: usize = 0x210;
    const UNREGISTERED_LOADER: u8 = 0xff;
    const RAMDISK: usize = 0x218;
    const COMMAND_LINE: usize = 0x228;
    const E820: usize = 0x2d0;
    params.fill(0);
    let (place, size) = initrd.map_or((0, 0), |initrd| (initrd.start.as_u64(), initrd.len));
    let mut done = put(params, HEADER, &kernel.header)
        && put(params, TYPE_OF_LOADER, &[UNREGISTERED_LOADER])
        && put(params, RAMDISK, &(place as u32).to_le_bytes())
        && put(params, RAMDISK + 4, &(size as u32).to_le_bytes())
        && put(
            params,
            COMMAND_LINE,
            &(low::COMMAND_LINE.as_u64() as u32).to_le_bytes(),
        )
        && put(params, ACPI_RSDP, &rsdp.as_u64().to_le_bytes())
        && put(params, E820_ENTRIES, &[map.len() as u8]);
    for (n, range) in map.iter().enumerate() {
        let at = E820 + 20 * n;
        done = done
            && put(params, at, &range.start.as_u64().to_le_bytes())
            && put(params, at + 8, &range.len().to_le_bytes())
            && put(params, at + 16, &range.kind.to_le_bytes());
    }
    done
}

/// The descriptors: two null ones, code at 0x10, data at 0x18.
fn gdt() -> [u8; 32] {
    let mut table = [0; 32];
    table[16..24].copy_from_slice(&0x00af_9b00_0000_ffff_u64.to_le_bytes());
    table[24..].copy_from_slice(&0x00cf_9300_0000_ffff_u64.to_le_bytes());
    table
}

/// Writes page tables that map the first 512 GiB at their own addresses in 1 GiB pages.
fn page_tables(memory: &mut BootMemory) -> bool {
    const PRESENT_WRITE: u64 = 0b11;
    const LARGE: u64 = 1 << 7;
    let pointers = low::PAGE_TABLES.offset(4096);
    let Some(table) = memory.bytes_mut(pointers, 4096) else {
        return false;
    };
    for (gib, entry) in (0_u64..).zip(table.chunks_exact_mut(8)) {
        entry.copy_from_slice(&(gib << 30 | LARGE | PRESENT_WRITE).to_le_bytes());
    }
    memory.zero(low::PAGE_TABLES, 4096)
        && memory.write(
            low::PAGE_TABLES,
            &(pointers.as_u64() | PRESENT_WRITE).to_le_bytes(),
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> std::vec::Vec<u8> {
        let mut image = std::vec![0; 512 * 2 + 64];
        image[HEADER] = 1;
        image[0x1f4] = 4;
        image[SIGNATURE..SIGNATURE + 4].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
        image[0x22c..0x230].copy_from_slice(&0x7fff_ffff_u32.to_le_bytes());
        image[0x236] = 1;
        image[0x258..0x260].copy_from_slice(&0x100_0000_u64.to_le_bytes());
        image
    }

    #[test]
    fn a_kernel_is_taken() {
        let kernel = Kernel::parse(&image()).unwrap();
        assert_eq!(kernel.entry(), Hpa::new(0x100_0200));
        assert_eq!(kernel.code_offset, 1024);
        assert_eq!(kernel.initrd_limit, 1 << 31);
    }

    #[test]
    fn each_fault_has_its_name() {
        let bad = |change: &dyn Fn(&mut std::vec::Vec<u8>)| {
            let mut image = image();
            change(&mut image);
            Kernel::parse(&image).unwrap_err()
        };
        assert_eq!(bad(&|i| i[SIGNATURE] = 0), KernelError::NotLinux);
        assert_eq!(bad(&|i| i[0x206] = 0xb), KernelError::Old(0x20b));
        assert_eq!(bad(&|i| i[0x236] = 0), KernelError::Not64Bit);
        assert_eq!(bad(&|i| i.truncate(1087)), KernelError::Truncated);
        assert_eq!(bad(&|i| i.truncate(100)), KernelError::NotLinux);
    }

    #[test]
    fn boot_params_hold_the_map() {
        let mut map = Map::new();
        let range = super::super::map::Range::new(0x1000, 0x2000, 1);
        map.add(range.unwrap()).unwrap();
        let kernel = Kernel::parse(&image()).unwrap();
        let mut params = [1; 4096];
        let initrd = Module {
            start: Hpa::new(0x7000),
            len: 9,
        };
        let rsdp = Hpa::new(0x26000);
        assert!(boot_params(&mut params, &kernel, Some(initrd), rsdp, &map));
        assert_eq!(params[0x1e8], 1);
        assert_eq!(u64_at(&params, 0x2d0), Some(0x1000));
        assert_eq!(u64_at(&params, 0x2d8), Some(0x2000));
        assert_eq!(u32_at(&params, 0x218), Some(0x7000));
        assert_eq!(u64_at(&params, 0x70), Some(0x26000));
    }
}
