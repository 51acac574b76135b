//! From the loader to VM 0: finds memory and modules, loads the stock kernel, starts every CPU.
//!
//! `multiboot` reads what the loader left, `map` carves the memory map, `acpi` copies the tables
//! and adds the wakeup mailbox, `linux` lays out VM 0, `processors` starts the other CPUs.

use guest_proto::limits::MAX_CPUS;

use crate::arch::svm::{RootCpu, Start};
use crate::arch::{self, memory};
use crate::{boot_log, root};

mod acpi;
mod bytes;
mod linux;
mod map;
mod multiboot;
mod processors;

/// Where the image stands in physical memory.
#[derive(Clone, Copy, Debug)]
pub struct Image {
    /// First byte.
    pub start: u64,
    /// Past its last.
    pub end: u64,
    /// Real-mode code that starts another CPU.
    pub trampoline: u64,
    /// Past its last byte.
    pub trampoline_end: u64,
}

impl Image {
    /// Past the last byte of what is the microvisor's own: whole large pages.
    fn own_end(&self) -> u64 {
        self.end.next_multiple_of(arch::svm::LARGE_PAGE)
    }
}

/// Low memory that VM 0's boot needs, each a page or more. VM 0 keeps all of it reserved: its CPUs
/// start on these page tables and wait in this mailbox.
mod low {
    /// All of it.
    pub(super) const START: u64 = 0x2_0000;
    pub(super) const BOOT_PARAMS: u64 = START;
    pub(super) const COMMAND_LINE: u64 = 0x2_1000;
    pub(super) const PAGE_TABLES: u64 = 0x2_2000;
    pub(super) const GDT: u64 = 0x2_4000;
    pub(super) const MAILBOX: u64 = 0x2_5000;
    pub(super) const ACPI: u64 = 0x2_6000;
    pub(super) const END: u64 = 0x3_0000;
    /// Start-up page of other CPUs: free again once they run.
    pub(super) const TRAMPOLINE: u64 = 0x8000;
}

/// Least memory that a root partition is useful with.
const LEAST_MEMORY: u64 = 512 << 20;

/// Why the machine cannot be booted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Error {
    NotMultiboot,
    BadInfo,
    NoModules,
    TooManyRanges,
    LittleMemory(u64),
    Kernel(linux::KernelError),
    NoRoomForInitrd,
    Acpi(acpi::AcpiError),
}

impl core::fmt::Display for Error {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::NotMultiboot => f.write_str("not started by a Multiboot loader"),
            Self::BadInfo => f.write_str("the loader's Multiboot information is damaged"),
            Self::NoModules => {
                f.write_str("no boot modules: give VM 0's kernel, then its initrd, as modules")
            }
            Self::TooManyRanges => f.write_str("the memory map has too many ranges"),
            Self::LittleMemory(bytes) => {
                write!(
                    f,
                    "{} MiB of memory; at least 512 MiB are needed",
                    bytes >> 20
                )
            }
            Self::Kernel(why) => write!(f, "VM 0's kernel (first module) {why}"),
            Self::NoRoomForInitrd => {
                f.write_str("no room for VM 0's initrd (second module) below 2 GiB")
            }
            Self::Acpi(why) => write!(f, "ACPI: {why}"),
        }
    }
}

/// Boots the machine on its first CPU.
pub fn start(magic: u32, info: u32, image: &Image) -> ! {
    boot_log!("version {}", env!("CARGO_PKG_VERSION"));
    match arch::svm::supported() {
        Ok((revision, features)) => {
            boot_log!("SVM revision {revision}, features {features:#010x}");
        }
        Err(why) => stop(&why),
    }
    let entry = match prepare(magic, info, image) {
        Ok(entry) => entry,
        Err(error) => stop(&error),
    };
    arch::svm::build_root_map(image.start, image.own_end());
    let Some(cpu) = RootCpu::new(0) else {
        stop(&"the boot CPU started twice");
    };
    let wanted = processors::start_others(image);
    boot_log!("{wanted} CPUs; entering VM 0");
    root::run(cpu, &vm0_start(entry), low::BOOT_PARAMS)
}

/// Another CPU: waits in the mailbox until VM 0 wants it.
pub fn start_ap(index: u32) -> ! {
    let id = arch::apic_id();
    // The boot CPU is 0.
    let Some(cpu) = RootCpu::new(index as usize + 1) else {
        arch::halt();
    };
    processors::arrived();
    let vector = memory::Mailbox::at(low::MAILBOX).wait(id);
    root::run(cpu, &vm0_start(vector), 0)
}

fn vm0_start(rip: u64) -> Start {
    Start {
        rip,
        cr3: low::PAGE_TABLES,
        gdt: low::GDT,
    }
}

fn stop(why: &dyn core::fmt::Display) -> ! {
    boot_log!("cannot start: {why}");
    arch::halt()
}

/// Lays VM 0 out in memory; its entry point.
fn prepare(magic: u32, info: u32, image: &Image) -> Result<u64, Error> {
    let info = multiboot::parse(magic, info)?;
    let total = info.map.usable_bytes();
    if total < LEAST_MEMORY {
        return Err(Error::LittleMemory(total));
    }
    let Some(kernel) = info.modules.first() else {
        return Err(Error::NoModules);
    };
    boot_log!("{} MiB of memory in {} ranges", total >> 20, info.map.len());
    let mut map = info.map.clone();
    map.reserve(image.start, image.own_end())?;
    map.reserve(low::START, low::END)?;
    boot_log!("own memory {:#x} to {:#x}", image.start, image.own_end());

    // The image and the modules move in an order in which nothing is overwritten before it has
    // moved: the initrd goes high first, then the kernel to where it wants to be.
    let header =
        linux::Kernel::parse(memory::bytes(kernel.start, kernel.len()).ok_or(Error::BadInfo)?)
            .map_err(Error::Kernel)?;
    let initrd = match info.modules.get(1) {
        None => None,
        Some(module) => {
            let to = map
                .highest_room(
                    module.len(),
                    kernel.end.max(module.end),
                    header.initrd_limit,
                )
                .ok_or(Error::NoRoomForInitrd)?;
            let from = memory::bytes(module.start, module.len()).ok_or(Error::BadInfo)?;
            if !memory::write(to, from) {
                return Err(Error::NoRoomForInitrd);
            }
            Some((to, module.len()))
        }
    };
    if !map.is_usable(header.load_address, header.memory_size) {
        return Err(Error::Kernel(linux::KernelError::NoRoom));
    }
    let rsdp = acpi::copy_tables().map_err(Error::Acpi)?;
    let entry = header.entry();
    linux::lay_out(&header, kernel, initrd, info.command_line(), rsdp, &map)?;
    boot_log!(
        "VM 0: kernel at {:#x}, initrd {:x?}",
        header.load_address,
        initrd
    );
    Ok(entry)
}

/// CPUs that the per-CPU tables have room for, the boot CPU not counted.
const OTHERS: u64 = MAX_CPUS - 1;
