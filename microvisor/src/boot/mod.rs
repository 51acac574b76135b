//! From the loader to VM 0: finds memory and modules, loads the stock kernel, starts every CPU.
//!
//! `multiboot` reads what the loader left, `map` carves the memory map, `acpi` copies the tables
//! and adds the wakeup mailbox, `linux` lays out VM 0, `processors` starts the other CPUs.

use guest_proto::limits::MAX_CPUS;

use crate::arch::memory::BootMemory;
use crate::arch::paging::{self, Image};
use crate::arch::svm::{RootCpu, Start};
use crate::arch::{self, descriptors};
use crate::machine::Machine;
use crate::{boot_log, console, root};
use map::Map;
use multiboot::{Info, Module};
use own::Own;

mod acpi;
mod bytes;
mod linux;
mod map;
mod multiboot;
mod own;
mod processors;

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
    NoRoomForTables,
    NoLowMemory,
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
            Self::NoRoomForTables => f.write_str("no room for the microvisor's tables below 4 GiB"),
            Self::NoLowMemory => write!(
                f,
                "the memory from {:#x} to {:#x} is not free",
                low::START,
                low::END
            ),
            Self::Acpi(why) => write!(f, "ACPI: {why}"),
        }
    }
}

/// Boots the machine on its first CPU. `loader` is what the loader passes: a magic number, and where
/// its information is; `trampoline` is the real-mode code that starts another CPU.
pub fn start(memory: BootMemory, loader: (u32, u32), image: &Image, trampoline: &[u8]) -> ! {
    descriptors::load();
    let (machine, cpu, entry) = boot(memory, loader, image, trampoline);
    root::run(machine, cpu, &vm0_start(entry), low::BOOT_PARAMS)
}

/// Everything before VM 0: the machine, this CPU, VM 0's first instruction. Its frame is most of the
/// stack, which VM 0's exits need again.
#[inline(never)]
fn boot(
    mut memory: BootMemory,
    loader: (u32, u32),
    image: &Image,
    trampoline: &[u8],
) -> (&'static Machine, RootCpu, u64) {
    boot_log!("version {}", env!("CARGO_PKG_VERSION"));
    match arch::svm::supported() {
        Ok((revision, features)) => {
            boot_log!("SVM revision {revision}, features {features:#010x}");
        }
        Err(why) => stop(&why),
    }
    let prepared = match prepare(&mut memory, loader, image) {
        Ok(prepared) => prepared,
        Err(error) => stop(&error),
    };
    let Some(cpu) = RootCpu::new(0) else {
        stop(&"the boot CPU started twice");
    };
    let Prepared {
        entry,
        own,
        map,
        cpus: expected,
    } = prepared;
    let cpus = processors::start_others(&mut memory, trampoline, expected);
    memory.end();
    let machine = own.machine(&map, image.own(), root::features(), cpus);
    boot_log!("{cpus} CPUs of {expected}; entering VM 0");
    console::leave_serial();
    (machine, cpu, entry)
}

/// Another CPU: waits in the mailbox until VM 0 wants it.
pub fn start_ap(index: u32) -> ! {
    descriptors::load();
    paging::enter();
    let id = arch::apic_id();
    // The boot CPU is 0.
    let Some(cpu) = RootCpu::new(index as usize + 1) else {
        arch::halt();
    };
    let vector = processors::wait(id);
    // VM 0 wakes this CPU, so the machine is complete.
    match (own::machine(), vector) {
        (Some(machine), Some(vector)) => root::run(machine, cpu, &vm0_start(vector), 0),
        _ => arch::halt(),
    }
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

/// What there is before VM 0 starts.
struct Prepared {
    /// VM 0's first instruction.
    entry: u64,
    own: Own,
    /// VM 0's memory map.
    map: Map,
    /// CPUs that the machine has.
    cpus: u32,
}

/// Lays VM 0 out in memory.
#[inline(never)]
fn prepare(memory: &mut BootMemory, loader: (u32, u32), image: &Image) -> Result<Prepared, Error> {
    let mut info = Info::new();
    multiboot::parse(memory, loader, &mut info)?;
    let total = info.map.usable_bytes();
    if total < LEAST_MEMORY {
        return Err(Error::LittleMemory(total));
    }
    let (kernel, initrd) = match *info.modules() {
        [] => return Err(Error::NoModules),
        [kernel, ref others @ ..] => (kernel, others.first().copied()),
    };
    boot_log!("{} MiB of memory in {} ranges", total >> 20, info.map.len());
    #[cfg(feature = "fault-injection")]
    crate::fault::arm(info.command_line());
    paging::build(image, info.map.usable().map(|range| range.start..range.end));
    info.map.reserve(image.own().start, image.own().end)?;
    if !info.map.is_usable(low::START, low::END - low::START) {
        return Err(Error::NoLowMemory);
    }
    info.map.reserve(low::START, low::END)?;
    let own = Own::reserve(&mut info)?;
    for range in [image.own(), own.range()] {
        boot_log!("own memory {:#x} to {:#x}", range.start, range.end);
    }

    // The image and the modules move in an order in which nothing is overwritten before it has
    // moved: the initrd goes high first, then the kernel to where it wants to be.
    let code = memory
        .bytes(kernel.start, kernel.len())
        .ok_or(Error::BadInfo)?;
    let header = linux::Kernel::parse(code).map_err(Error::Kernel)?;
    let initrd = match initrd {
        None => None,
        Some(module) => {
            let to = initrd_place(&info.map, &kernel, &header, module.len())?;
            if !memory.copy(to, module.start, module.len()) {
                return Err(Error::NoRoomForInitrd);
            }
            Some((to, module.len()))
        }
    };
    if !info.map.is_usable(header.load_address, header.memory_size) {
        return Err(Error::Kernel(linux::KernelError::NoRoom));
    }
    let tables = acpi::copy_tables(memory, info.rsdp).map_err(Error::Acpi)?;
    let entry = header.entry();
    linux::lay_out(
        memory,
        &header,
        &kernel,
        initrd,
        info.command_line(),
        tables.rsdp,
        &info.map,
    )?;
    boot_log!(
        "VM 0: kernel at {:#x}, initrd {:x?}",
        header.load_address,
        initrd
    );
    Ok(Prepared {
        entry,
        own,
        map: info.map,
        cpus: tables.cpus,
    })
}

/// The highest place for the initrd that is not the kernel's, now or later.
#[inline(never)]
fn initrd_place(
    map: &Map,
    kernel: &Module,
    header: &linux::Kernel,
    len: u64,
) -> Result<u64, Error> {
    let mut free = map.clone();
    let load_end = header.load_address.saturating_add(header.memory_size);
    free.reserve(kernel.start, kernel.end)?;
    free.reserve(header.load_address, load_end)?;
    let place = free.highest_room(len, header.initrd_limit);
    place.ok_or(Error::NoRoomForInitrd)
}

/// CPUs that the per-CPU tables have room for, the boot CPU not counted.
const OTHERS: u64 = MAX_CPUS - 1;
