//! From the loader to VM 0: finds memory and modules, loads the stock kernel, starts every CPU.
//!
//! `multiboot` reads the loader's information, `map` divides the memory map, `acpi` copies the tables
//! and adds the wakeup mailbox, `linux` lays out VM 0, `processors` starts the other CPUs.
#![cfg_attr(
    not(target_os = "none"),
    allow(
        dead_code,
        reason = "nothing boots on the host, which only tests this code"
    )
)]

use core::ops::Range;

use guest_proto::limits::MAX_CPUS;
use log::{debug, error, info, warn};

use crate::arch;
use crate::arch::boot::paging::{self, Image};
use crate::arch::boot::{Start, descriptors};
use crate::arch::hw::Root;
use crate::machine::Machine;
use crate::memory::{Gpa, Hpa};
use crate::{console, root};
use map::Map;
use memory::BootMemory;
use multiboot::{Info, Module};
use options::Options;
use own::Own;
use processors::{Code, WAIT_LOOP};

mod acpi;
mod bytes;
#[cfg(target_os = "none")]
mod entry;
mod linux;
mod map;
mod memory;
mod multiboot;
mod options;
mod own;
mod processors;

/// Low memory that VM 0's boot needs. VM 0 keeps all of it reserved: its CPUs start on these page tables, descriptors
/// and stacks, and wait at this mailbox.
mod low {
    use crate::memory::Hpa;

    /// Start of all this memory.
    pub(super) const START: Hpa = Hpa::new(0x2_0000);
    pub(super) const BOOT_PARAMS: Hpa = START;
    pub(super) const COMMAND_LINE: Hpa = Hpa::new(0x2_1000);
    pub(super) const PAGE_TABLES: Hpa = Hpa::new(0x2_2000);
    pub(super) const GDT: Hpa = Hpa::new(0x2_4000);
    /// The multiprocessor wakeup mailbox.
    pub(super) const MAILBOX: Hpa = Hpa::new(0x2_5000);
    /// Interrupt descriptors of a CPU that starts: for NMIs only.
    pub(super) const IDT: Hpa = Hpa::new(0x2_6000);
    /// Code of the CPUs that wait for VM 0.
    pub(super) const WAIT: Hpa = Hpa::new(0x2_6100);
    /// Stacks of the CPUs that start, each [`STACK`] bytes: room for an NMI's frame.
    pub(super) const STACKS: Hpa = Hpa::new(0x2_7000);
    pub(super) const STACK: u64 = 64;
    pub(super) const ACPI: Hpa = Hpa::new(0x2_8000);
    pub(super) const END: Hpa = Hpa::new(0x3_0000);
    /// Start-up page of the other CPUs. It is free again once they run.
    pub(super) const TRAMPOLINE: Hpa = Hpa::new(0x8000);
}

/// Least memory that a root partition is useful with.
const LEAST_MEMORY: u64 = 512 << 20;

/// Error: the machine cannot be booted.
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
    Option(options::BadOption),
    TooManyCpus(u32),
    MissingCpus { running: u32, listed: u32 },
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
                "the memory from {} to {} is not free",
                low::START,
                low::END
            ),
            Self::Acpi(why) => write!(f, "ACPI: {why}"),
            Self::Option(why) => write!(f, "command line: {why}"),
            Self::TooManyCpus(cpus) => {
                write!(f, "the machine has {cpus} CPUs; {MAX_CPUS} are the most")
            }
            Self::MissingCpus { running, listed } => write!(
                f,
                "{running} of {listed} CPUs started; a CPU that starts later would be out of control"
            ),
        }
    }
}

/// Boots the machine on its first CPU. `loader` is what the loader passes: a magic number, and where
/// its information is.
fn start(memory: BootMemory, loader: (u32, u32), image: &Image, code: &Code) -> ! {
    descriptors::load();
    let (machine, cpu) = boot(memory, loader, image, code);
    let Range { start, end } = image.startup();
    root::run(machine, cpu, start.frame()..end.frame())
}

/// Boots up to VM 0. Returns the machine and this CPU. The frame of this function takes most of the stack, which VM 0's
/// exits need again.
#[inline(never)]
fn boot(
    mut memory: BootMemory,
    loader: (u32, u32),
    image: &Image,
    code: &Code,
) -> (&'static Machine, Root) {
    console::begin();
    info!("version {}", env!("CARGO_PKG_VERSION"));
    match arch::boot::supported() {
        Ok((revision, features)) => {
            info!("SVM revision {revision}, features {features:#010x}");
        }
        Err(why) => stop(why),
    }
    let prepared = match prepare(&mut memory, loader, image) {
        Ok(prepared) => prepared,
        Err(error) => stop(error),
    };
    let Prepared {
        entry,
        own,
        map,
        cpus: listed,
        options,
    } = prepared;
    let cpus = match processors::start_others(&mut memory, code, listed) {
        Ok(cpus) => cpus,
        Err(error) => stop(error),
    };
    let physical = memory.end(own.ram_end());
    let machine = own.machine(physical, &map, image.own(), cpus, options);
    let Some(cpu) = Root::new(0, &vm0_start(entry, low::BOOT_PARAMS.as_u64(), 0)) else {
        stop("the boot CPU started twice");
    };
    if let Err(error) = processors::wait_for_others(cpus) {
        stop(error);
    }
    info!("{cpus} CPUs; entering VM 0");
    console::leave_serial();
    (machine, cpu)
}

/// Enters VM 0 on another CPU, which waits at the mailbox until VM 0 starts it.
fn start_ap(index: u32) -> ! {
    descriptors::load();
    // The boot CPU is 0.
    let index = index as usize + 1;
    let rip = low::WAIT.offset(WAIT_LOOP);
    let start = vm0_start(rip, arch::apic_id().into(), index as u64);
    let Some(cpu) = Root::new(index, &start) else {
        arch::halt();
    };
    let machine = loop {
        match own::machine() {
            Some(machine) => break machine,
            None => core::hint::spin_loop(),
        }
    };
    root::wait(machine, cpu, &processors::HELD)
}

/// Returns how CPU `index` of VM 0 starts: at `rip`, with `rsi` in RSI.
fn vm0_start(rip: Hpa, rsi: u64, index: u64) -> Start {
    // Each page of VM 0's is at its own address.
    let own = |address: Hpa| Gpa::new(address.as_u64());
    Start {
        rip: own(rip),
        rsi,
        rsp: own(low::STACKS.offset((index + 1) * low::STACK)),
        cr3: own(low::PAGE_TABLES),
        gdt: own(low::GDT),
        idt: own(low::IDT),
    }
}

/// Prints why the machine cannot start, and halts. No `dyn` here: a table of its functions would be resident data.
fn stop(why: impl core::fmt::Display) -> ! {
    error!("cannot start: {why}");
    arch::halt()
}

/// The results of [`prepare`].
struct Prepared {
    /// VM 0's first instruction.
    entry: Hpa,
    own: Own,
    /// VM 0's memory map.
    map: Map,
    /// Count of the machine's CPUs.
    cpus: u32,
    options: Options,
}

/// Lays VM 0 out in memory.
#[inline(never)]
fn prepare(memory: &mut BootMemory, loader: (u32, u32), image: &Image) -> Result<Prepared, Error> {
    let mut info = Info::new();
    multiboot::parse(memory, loader, &mut info)?;
    let unknown = |key: &str| warn!("the command line has an unknown option: {key}");
    let options = Options::parse(info.own_line(), unknown).map_err(Error::Option)?;
    console::set_levels(options.log);
    for range in info.map.iter() {
        debug!(
            "memory {} to {}: type {}",
            range.start, range.end, range.kind
        );
    }
    for module in info.modules() {
        debug!("module of {} bytes at {}", module.len, module.start);
    }
    let total = info.map.usable_bytes();
    if total < LEAST_MEMORY {
        return Err(Error::LittleMemory(total));
    }
    let (kernel, initrd) = match *info.modules() {
        [] => return Err(Error::NoModules),
        [kernel, ref others @ ..] => (kernel, others.first().copied()),
    };
    info!("{} MiB of memory in {} ranges", total >> 20, info.map.len());
    #[cfg(feature = "fault-injection")]
    crate::fault::arm(info.command_line(), start_ap as *const () as u64);
    let ram = info.map.usable();
    paging::build(image, ram.map(|range| range.start..range.end));
    info.map.reserve(image.own())?;
    if !info
        .map
        .is_usable(low::START, low::END.as_u64() - low::START.as_u64())
    {
        return Err(Error::NoLowMemory);
    }
    info.map.reserve(low::START..low::END)?;
    let own = Own::reserve(&mut info, image.startup())?;
    for range in [image.own(), own.range()] {
        info!("own memory {} to {}", range.start, range.end);
    }

    // The image and the modules move in an order in which nothing is overwritten before it has
    // moved: the initrd goes high first, then the kernel to where it wants to be.
    let code = memory
        .bytes(kernel.start, kernel.len)
        .ok_or(Error::BadInfo)?;
    let header = linux::Kernel::parse(code).map_err(Error::Kernel)?;
    let initrd = match initrd {
        None => None,
        Some(module) => {
            let len = module.len;
            let start = initrd_place(&info.map, image, &kernel, &header, len)?;
            if !memory.copy(start, module.start, len) {
                return Err(Error::NoRoomForInitrd);
            }
            Some(Module { start, len })
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
    info!("VM 0: kernel at {}", header.load_address);
    if let Some(Module { start, len }) = initrd {
        info!("VM 0: initrd of {len} bytes at {start}");
    }
    Ok(Prepared {
        entry,
        own,
        map: info.map,
        cpus: tables.cpus,
        options,
    })
}

/// Returns the highest place for the initrd at which neither the loaded kernel nor the moved one nor the start-up code
/// lies.
#[inline(never)]
fn initrd_place(
    map: &Map,
    image: &Image,
    kernel: &Module,
    header: &linux::Kernel,
    len: u64,
) -> Result<Hpa, Error> {
    let mut free = map.clone();
    let load_end = header.load_address.offset(header.memory_size);
    free.reserve(image.startup())?;
    free.reserve(kernel.range())?;
    free.reserve(header.load_address..load_end)?;
    let place = free.highest_room(len, header.initrd_limit);
    place.ok_or(Error::NoRoomForInitrd)
}
