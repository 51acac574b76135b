//! The guest's page tables: no paging, 32-bit, PAE, 4 levels and 5 levels (APM vol. 2 §5).
//!
//! The CPU has checked an access already where it faulted on the nested tables. All of its checks are made
//! here again, because the instruction or the tables may be others by now, and for the pages that the CPU has
//! not reached: presence, write and user rights, no-execute, SMEP, SMAP and protection keys (APM vol. 2 §5.6).
//! Accessed and dirty bits are left alone.

use x86_64::registers::control::{Cr0Flags, Cr4Flags, EferFlags};
use x86_64::registers::rflags::RFlags;
use x86_64::structures::idt::PageFaultErrorCode;
use x86_64::structures::paging::PageTableFlags;

use super::registers::Registers;
use super::{Fault, Space};

const CR0_WP: u64 = Cr0Flags::WRITE_PROTECT.bits();
const CR4_PSE: u64 = Cr4Flags::PAGE_SIZE_EXTENSION.bits();
const CR4_PAE: u64 = Cr4Flags::PHYSICAL_ADDRESS_EXTENSION.bits();
const CR4_LA57: u64 = Cr4Flags::L5_PAGING.bits();
const CR4_SMEP: u64 = Cr4Flags::SUPERVISOR_MODE_EXECUTION_PROTECTION.bits();
const CR4_SMAP: u64 = Cr4Flags::SUPERVISOR_MODE_ACCESS_PREVENTION.bits();
const CR4_PKE: u64 = Cr4Flags::PROTECTION_KEY_USER.bits();
const RFLAGS_AC: u64 = RFlags::ALIGNMENT_CHECK.bits();
const EFER_LMA: u64 = EferFlags::LONG_MODE_ACTIVE.bits();
const EFER_NXE: u64 = EferFlags::NO_EXECUTE_ENABLE.bits();

const PRESENT: u64 = PageTableFlags::PRESENT.bits();
const WRITE: u64 = PageTableFlags::WRITABLE.bits();
const USER: u64 = PageTableFlags::USER_ACCESSIBLE.bits();
const LARGE: u64 = PageTableFlags::HUGE_PAGE.bits();
const NO_EXECUTE: u64 = PageTableFlags::NO_EXECUTE.bits();
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Bits of a page fault's error code.
const CODE_PRESENT: u32 = code(PageFaultErrorCode::PROTECTION_VIOLATION);
const CODE_WRITE: u32 = code(PageFaultErrorCode::CAUSED_BY_WRITE);
const CODE_USER: u32 = code(PageFaultErrorCode::USER_MODE);
const CODE_FETCH: u32 = code(PageFaultErrorCode::INSTRUCTION_FETCH);
const CODE_KEY: u32 = code(PageFaultErrorCode::PROTECTION_KEY);

const fn code(code: PageFaultErrorCode) -> u32 {
    code.bits() as u32
}

/// The purpose of the access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Access {
    write: bool,
    fetch: bool,
    /// The CPU's own, as of a descriptor table: it has the supervisor's rights.
    system: bool,
}

impl Access {
    pub(super) const READ: Self = Self {
        write: false,
        fetch: false,
        system: false,
    };
    pub(super) const SYSTEM: Self = Self {
        system: true,
        ..Self::READ
    };
    pub(super) const WRITE: Self = Self {
        write: true,
        ..Self::READ
    };
    pub(super) const FETCH: Self = Self {
        fetch: true,
        ..Self::READ
    };

    pub(super) fn is_write(self) -> bool {
        self.write
    }
}

/// A kind of page tables.
struct Format {
    /// Bits of linear address below the tables: an entry of level `n` covers
    /// `12 + n * index_bits` bits.
    index_bits: u32,
    levels: u32,
    entry_size: u64,
}

/// Guest physical address of a linear one.
pub(super) fn translate(
    registers: &Registers<'_>,
    space: &mut impl Space,
    linear: u64,
    access: Access,
) -> Result<u64, Fault> {
    let state = &*registers.state;
    if !registers.has_paging() {
        return Ok(linear);
    }
    let (format, mut table) = if state.efer & EFER_LMA != 0 {
        let levels = if state.cr4 & CR4_LA57 != 0 { 5 } else { 4 };
        (wide(levels), state.cr3 & ADDRESS)
    } else if state.cr4 & CR4_PAE != 0 {
        // The four pointers of PAE lie anywhere on 32 bytes.
        (wide(3), state.cr3 & 0xffff_ffe0)
    } else {
        let format = Format {
            index_bits: 10,
            levels: 2,
            entry_size: 4,
        };
        (format, state.cr3 & 0xffff_f000)
    };
    let user = registers.is_user() && !access.system;
    let no_execute = state.efer & EFER_NXE != 0;
    let mut code = if user { CODE_USER } else { 0 };
    if access.write {
        code |= CODE_WRITE;
    }
    if access.fetch && (no_execute || state.cr4 & CR4_SMEP != 0) {
        code |= CODE_FETCH;
    }
    let fault = |code| Fault::Page {
        address: linear,
        code,
    };

    let (mut may_write, mut may_user, mut may_execute) = (true, true, true);
    for level in (0..format.levels).rev() {
        let shift = 12 + level * format.index_bits;
        let index = linear >> shift & ((1 << format.index_bits) - 1);
        let index = if format.levels == 3 && level == 2 {
            index & 3
        } else {
            index
        };
        let at = table + index * format.entry_size;
        // An entry of four bytes is one half of a word.
        let word = space.read_word(at & !7).ok_or(Fault::NotInRam(at))?;
        let entry = match format.entry_size {
            4 => word >> (8 * (at & 4)) & 0xffff_ffff,
            _ => word,
        };
        if entry & PRESENT == 0 {
            return Err(fault(code));
        }
        if format.levels == 3 && level == 2 {
            // A pointer of PAE has no rights.
            table = entry & ADDRESS;
            continue;
        }
        may_write &= entry & WRITE != 0;
        may_user &= entry & USER != 0;
        may_execute &= entry & NO_EXECUTE == 0 || !no_execute;
        let large = level > 0
            && level < 3
            && entry & LARGE != 0
            && (format.entry_size == 8 || state.cr4 & CR4_PSE != 0);
        if level > 0 && !large {
            table = entry & ADDRESS;
            continue;
        }
        let checks_write = user || state.cr0 & CR0_WP != 0;
        let supervisor_on_users = !user && may_user;
        // EFLAGS.AC is for accesses of the program, not for those that the CPU makes by itself.
        let explicit = state.rflags & RFLAGS_AC != 0 && !access.system;
        if access.write && !may_write && checks_write
            || user && !may_user
            || access.fetch && !may_execute
            || access.fetch && supervisor_on_users && state.cr4 & CR4_SMEP != 0
            || !access.fetch && supervisor_on_users && state.cr4 & CR4_SMAP != 0 && !explicit
        {
            return Err(fault(code | CODE_PRESENT));
        }
        let has_keys = state.cr4 & CR4_PKE != 0 && state.efer & EFER_LMA != 0;
        if has_keys && may_user && !access.fetch {
            // Two bits for each key: no access, no write.
            let rights = state.pkru >> (2 * (entry >> 59 & 0xf));
            if rights & 1 != 0 || rights & 2 != 0 && access.write && checks_write {
                return Err(fault(code | CODE_PRESENT | CODE_KEY));
            }
        }
        let offset = (1 << shift) - 1;
        let mut base = entry & ADDRESS & !offset;
        if large && format.entry_size == 4 {
            // PSE-36: address bits 39:32 stand in bits 20:13.
            base = entry & 0xffc0_0000 | (entry >> 13 & 0xff) << 32;
        }
        return Ok(base | linear & offset);
    }
    Err(fault(code))
}

fn wide(levels: u32) -> Format {
    Format {
        index_bits: 9,
        levels,
        entry_size: 8,
    }
}
