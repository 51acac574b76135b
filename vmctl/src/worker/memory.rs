//! Guest RAM: a sealed memfd, mapped here and given to the driver slot by slot.
//!
//! The lower 3 GiB of RAM start at address 0, the rest at 4 GiB; the gap between holds the APICs
//! and, later, PCI. [`Ram`] owns the file and the mapping; [`layout`] says what the loader puts
//! below 1 MiB.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

use crate::config::format_size;
use crate::driver::{DriverError, Partition};

/// The layout of guest physical memory.
pub mod layout {
    /// Global descriptor table of the boot CPU.
    pub const GDT: u64 = 0x500;
    /// `hvm_start_info` or Multiboot information, with their tables behind it.
    pub const START_INFO: u64 = 0x6000;
    /// Linux's `boot_params`.
    pub const BOOT_PARAMS: u64 = 0x7000;
    /// Identity-mapping page tables of the boot CPU: 6 pages.
    pub const PAGE_TABLES: u64 = 0x8000;
    /// Kernel command line.
    pub const CMDLINE: u64 = 0x2_0000;
    /// End of conventional memory.
    pub const LOW_END: u64 = 0x9_fc00;
    /// ACPI tables, where a kernel that isn't told looks for them.
    pub const ACPI: u64 = 0xe_0000;
    /// The address at which a CPU in real mode finds its firmware: F000:FFF0.
    pub const RESET_VECTOR: u64 = 0xf_fff0;
    /// Start of the memory that kernels may be loaded to.
    pub const HIGH: u64 = 0x10_0000;
    /// End of the RAM below 4 GiB, at most.
    pub const GAP: u64 = 3 << 30;
    /// Start of the RAM above.
    pub const ABOVE: u64 = 4 << 30;
    /// I/O APIC.
    pub const IOAPIC: u64 = 0xfec0_0000;
    /// Local APICs.
    pub const LAPIC: u64 = 0xfee0_0000;
}

/// The mapping, as vm-memory has it.
pub type Memory = GuestMemoryMmap<()>;

/// RAM of one VM.
#[derive(Debug)]
pub struct Ram {
    file: Arc<File>,
    mapping: Memory,
    size: u64,
}

impl Ram {
    /// Makes `size` bytes of RAM, zeroed and not yet backed by anything.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub fn new(size: u64) -> io::Result<Self> {
        let fd = memfd_create("guest-ram", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&fd, size)?;
        fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW)?;
        let file = Arc::new(File::from(fd));
        let mut regions = Vec::new();
        for (gpa, size, offset) in ranges(size) {
            let at = FileOffset::from_arc(Arc::clone(&file), offset);
            let size = usize::try_from(size).map_err(|_| io::ErrorKind::OutOfMemory)?;
            let region = MmapRegion::from_file(at, size).map_err(io::Error::other)?;
            let region = GuestRegionMmap::new(region, GuestAddress(gpa))
                .ok_or(io::ErrorKind::InvalidInput)?;
            regions.push(region);
        }
        let mapping = Memory::from_regions(regions).map_err(io::Error::other)?;
        Ok(Self {
            file,
            mapping,
            size,
        })
    }

    /// Gives it to the partition.
    ///
    /// # Errors
    ///
    /// The driver's.
    pub fn register(&self, partition: &Partition) -> Result<(), DriverError> {
        for (slot, (gpa, size, offset)) in (0..).zip(ranges(self.size)) {
            partition.set_memory(slot, self.file.as_fd(), gpa, size, offset, 0)?;
        }
        Ok(())
    }

    /// The mapping.
    pub fn mapping(&self) -> &Memory {
        &self.mapping
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// End of the RAM below 4 GiB.
    pub fn low_end(&self) -> u64 {
        self.size.min(layout::GAP)
    }

    /// Returns the usable ranges of a memory map: address and size.
    pub fn usable(&self) -> impl Iterator<Item = (u64, u64)> {
        let low_end = self.low_end();
        let above = self.size - low_end;
        [
            (0, layout::LOW_END),
            (layout::HIGH, low_end - layout::HIGH),
            (layout::ABOVE, above),
        ]
        .into_iter()
        .filter(|&(_, size)| size > 0)
    }
}

/// Guest address, size and file offset of each run of RAM.
fn ranges(size: u64) -> impl Iterator<Item = (u64, u64, u64)> {
    let low = size.min(layout::GAP);
    [(0, low, 0), (layout::ABOVE, size - low, low)]
        .into_iter()
        .filter(|&(_, size, _)| size > 0)
}

/// Error: the root partition has less memory than a VM wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{} of memory are more than the root partition has to give: {}M are available",
    format_size(*wanted),
    available >> 20
)]
pub struct NoMemory {
    wanted: u64,
    available: u64,
}

/// Checks that the root partition has `size` bytes to give.
///
/// # Errors
///
/// Fails with [`NoMemory`], which has both figures.
pub fn check_available(size: u64) -> Result<(), NoMemory> {
    let Ok(meminfo) = std::fs::read_to_string("/proc/meminfo") else {
        return Ok(());
    };
    match available(&meminfo) {
        Some(available) if available < size => Err(NoMemory {
            wanted: size,
            available,
        }),
        _ => Ok(()),
    }
}

fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{Bytes, GuestMemoryBackend};

    #[test]
    fn ram_is_split_at_the_gap() {
        let size = (3 << 30) + (1 << 20);
        let ram = Ram::new(size).unwrap();
        assert_eq!(ram.low_end(), 3 << 30);
        let memory = ram.mapping();
        memory.write_obj(7u64, GuestAddress(layout::ABOVE)).unwrap();
        assert_eq!(
            memory.read_obj::<u64>(GuestAddress(layout::ABOVE)).unwrap(),
            7
        );
        assert!(memory.write_obj(7u64, GuestAddress(3 << 30)).is_err());
        assert_eq!(memory.num_regions(), 2);
        assert_eq!(ram.usable().count(), 3);
        assert_eq!(Ram::new(2 << 20).unwrap().usable().count(), 2);
    }

    #[test]
    fn available_memory_is_read() {
        let text = "MemTotal:  100 kB\nMemAvailable:    1024 kB\n";
        assert_eq!(available(text), Some(1 << 20));
        assert_eq!(available("nothing"), None);
    }
}
