//! PVH: an ELF kernel entered in 32-bit mode with `hvm_start_info` in EBX (Xen's
//! `public/arch-x86/hvm/start_info.h`).

use linux_loader::loader::elf::start_info::{
    hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::{Bytes, GuestAddress};

use super::super::memory::{Ram, layout};
use super::elf::Elf;
use super::{Boot, Entry, LoadError, Source};

const MAGIC: u32 = 0x336e_c578;
const RAM_TYPE: u32 = 1;
/// Address of the memory map, behind the start information and its one module.
const MEMMAP: u64 = layout::START_INFO + 0x100;
const MODULES: u64 = layout::START_INFO + 0x80;

/// A kernel with a PVH note.
#[derive(Debug)]
pub(super) struct Pvh {
    pub(super) elf: Elf,
    pub(super) entry: u32,
}

impl Pvh {
    pub(super) fn load(
        &self,
        source: &mut Source,
        ram: &Ram,
        boot: &mut Boot<'_>,
    ) -> Result<Entry, LoadError> {
        let end = self.elf.load(source, ram)?;
        let mut info = hvm_start_info {
            magic: MAGIC,
            version: 1,
            cmdline_paddr: layout::CMDLINE,
            rsdp_paddr: boot.rsdp,
            memmap_paddr: MEMMAP,
            ..hvm_start_info::default()
        };
        let memory = ram.mapping();
        if let Some(initrd) = &mut boot.initrd {
            let paddr = initrd.load_high(ram, end, u64::MAX)?;
            let module = hvm_modlist_entry {
                paddr,
                size: initrd.source.size,
                ..hvm_modlist_entry::default()
            };
            info.nr_modules = 1;
            info.modlist_paddr = MODULES;
            memory
                .write_obj(module, GuestAddress(MODULES))
                .map_err(|e| source.error(e))?;
        }
        for (at, (addr, size)) in (MEMMAP..).step_by(24).zip(ram.usable()) {
            let entry = hvm_memmap_table_entry {
                addr,
                size,
                type_: RAM_TYPE,
                reserved: 0,
            };
            info.memmap_entries += 1;
            memory
                .write_obj(entry, GuestAddress(at))
                .map_err(|e| source.error(e))?;
        }
        memory
            .write_obj(info, GuestAddress(layout::START_INFO))
            .map_err(|e| source.error(e))?;
        Ok(Entry::Flat32 {
            eip: self.entry,
            eax: 0,
            ebx: layout::START_INFO as u32,
        })
    }
}
