//! The microvisor's own page tables. No page is writable and executable, only pages that the microvisor needs are
//! mapped, and the page below each stack is not mapped.
//!
//! They map the resident part of the image at its link address by the permissions of its sections, and RAM at `BASE`,
//! less that part, so that no code can be written there. `boot::paging` builds them once. They do not map the start-up
//! code: every CPU enters them when it leaves that code, before it runs VM 0, and `#VMEXIT` comes back to them.
#![allow(unsafe_code, reason = "loads page tables")]

use core::arch::asm;
use core::sync::atomic::AtomicU64;

use x86_64::registers::control::{Cr4, Cr4Flags};

use super::cpuid;
use super::layout::image_physical;

pub(super) const ENTRIES: usize = 512;
/// Tables for GiB of RAM that contain holes or the image, and are mapped by 2 MiB. Further ones are mapped as a whole.
pub(super) const DIRECTORIES: usize = 8;
/// Tables for the 2 MiB that the image may reach into, as the linker script checks.
pub(super) const IMAGE_TABLES: usize = 4;

/// A page table of any level.
#[repr(C, align(4096))]
pub(super) struct Table(pub(super) [AtomicU64; ENTRIES]);

/// All tables.
pub(super) struct Tables {
    pub(super) top: Table,
    /// RAM: by GiB.
    pub(super) physical: Table,
    /// RAM: by 2 MiB.
    pub(super) directories: [Table; DIRECTORIES],
    /// RAM: the pages before the resident part of the image, in the same 2 MiB.
    pub(super) before_image: Table,
    /// The image: by GiB.
    pub(super) high: Table,
    /// The image: by 2 MiB.
    pub(super) image: Table,
    /// The image: by pages.
    pub(super) pages: [Table; IMAGE_TABLES],
}

/// The tables. Their section is mapped for reading only.
#[cfg_attr(target_os = "none", unsafe(link_section = ".protected"))]
pub(super) static TABLES: Tables = Tables::new();

impl Table {
    const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; ENTRIES])
    }
}

impl Tables {
    pub(super) const fn new() -> Self {
        Self {
            top: Table::new(),
            physical: Table::new(),
            directories: [const { Table::new() }; DIRECTORIES],
            before_image: Table::new(),
            high: Table::new(),
            image: Table::new(),
            pages: [const { Table::new() }; IMAGE_TABLES],
        }
    }
}

/// Puts this CPU on the tables, which boot has built.
pub fn enter() {
    // Features in CPUID 7 EBX, and the bits of CR4 that turn them on.
    const OPTIONAL: [(u32, Cr4Flags); 2] = [
        (1 << 7, Cr4Flags::SUPERVISOR_MODE_EXECUTION_PROTECTION),
        (1 << 20, Cr4Flags::SUPERVISOR_MODE_ACCESS_PREVENTION),
    ];
    let features = match cpuid(0, 0).eax {
        7.. => cpuid(7, 0).ebx,
        _ => 0,
    };
    let has = OPTIONAL.iter().filter(|(bit, _)| features & bit != 0);
    let bits = has.fold(Cr4Flags::MACHINE_CHECK_EXCEPTION, |all, (_, flag)| {
        all | *flag
    });
    let tables = image_physical(&raw const TABLES.top).as_u64();
    // SAFETY: the tables map this code, which is resident, its stack and its data as they were mapped.
    unsafe {
        asm!("mov cr3, {}", in(reg) tables, options(nostack));
        Cr4::write_raw(Cr4::read_raw() | bits.bits());
    }
}
