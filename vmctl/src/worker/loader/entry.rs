//! State of the boot CPU at a kernel's entry, and the tables it needs.

use guest_proto::vcpu_page::{RunState, Segment, VcpuState};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};
use x86_64::registers::control::{Cr0Flags, Cr4Flags, EferFlags};

use super::super::memory::{Ram, layout};

/// Selectors, as the 64-bit boot protocol of Linux wants them (`__BOOT_CS`, `__BOOT_DS`).
const CODE: u16 = 0x10;
const DATA: u16 = 0x18;
const TASK: u16 = 0x20;

/// Segment attributes as the VMCB packs them (APM vol. 2 §15.5.1).
mod attributes {
    pub(super) const CODE_64: u16 = 0xa9b;
    pub(super) const CODE_32: u16 = 0xc9b;
    pub(super) const DATA: u16 = 0xc93;
    pub(super) const TASK: u16 = 0x08b;
    pub(super) const LDT: u16 = 0x082;
}

const CR0_PE: u64 = Cr0Flags::PROTECTED_MODE_ENABLE.bits();
const CR0_ET: u64 = Cr0Flags::EXTENSION_TYPE.bits();
const CR0_PG: u64 = Cr0Flags::PAGING.bits();
const CR4_PAE: u64 = Cr4Flags::PHYSICAL_ADDRESS_EXTENSION.bits();
const EFER_LME: u64 = EferFlags::LONG_MODE_ENABLE.bits();
const EFER_LMA: u64 = EferFlags::LONG_MODE_ACTIVE.bits();

/// The state of the CPU at a kernel's entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// 64-bit mode, first 4 GiB identity-mapped: Linux's 64-bit boot protocol.
    Linux64 {
        /// First instruction.
        rip: u64,
        /// RSI.
        boot_params: u64,
    },
    /// 32-bit protected mode without paging: PVH and Multiboot.
    Flat32 {
        /// First instruction.
        eip: u32,
        /// EAX.
        eax: u32,
        /// EBX: the information structure.
        ebx: u32,
    },
}

impl Entry {
    /// Writes descriptor and page tables.
    pub(super) fn write_tables(&self, ram: &Ram) -> Result<(), GuestMemoryError> {
        let memory = ram.mapping();
        let code = match self {
            Self::Linux64 { .. } => attributes::CODE_64,
            Self::Flat32 { .. } => attributes::CODE_32,
        };
        let gdt = [
            0,
            0,
            descriptor(code, 0xf_ffff),
            descriptor(attributes::DATA, 0xf_ffff),
            descriptor(attributes::TASK, 0x67),
            0,
        ];
        memory.write_obj(gdt, GuestAddress(layout::GDT))?;
        if let Self::Linux64 { .. } = self {
            let table = |n: u64| layout::PAGE_TABLES + n * 0x1000;
            let write = |value: u64, at: u64| memory.write_obj(value, GuestAddress(at));
            write(table(1) | 0x3, table(0))?;
            for gib in 0..4 {
                write(table(2 + gib) | 0x3, table(1) + 8 * gib)?;
                for i in 0..512 {
                    let page = gib << 30 | i << 21;
                    write(page | 0x83, table(2 + gib) + 8 * i)?;
                }
            }
        }
        Ok(())
    }

    /// Changes a boot CPU's state after reset to this entry.
    pub fn apply(&self, state: &mut VcpuState) {
        state.gpr = [0; 16];
        state.rflags = 2;
        state.cr2 = 0;
        state.interrupt_shadow = 0;
        state.run_state = RunState::Runnable.raw();
        let segment = |selector, attributes, limit| Segment {
            selector,
            attributes,
            limit,
            base: 0,
        };
        let code = match *self {
            Self::Linux64 { rip, boot_params } => {
                state.rip = rip;
                state.gpr[6] = boot_params;
                state.cr0 = CR0_PE | CR0_ET | CR0_PG;
                state.cr3 = layout::PAGE_TABLES;
                state.cr4 = CR4_PAE;
                state.efer = EFER_LME | EFER_LMA;
                attributes::CODE_64
            }
            Self::Flat32 { eip, eax, ebx } => {
                state.rip = u64::from(eip);
                state.gpr[0] = u64::from(eax);
                state.gpr[3] = u64::from(ebx);
                state.cr0 = CR0_PE | CR0_ET;
                state.cr3 = 0;
                state.cr4 = 0;
                state.efer = 0;
                attributes::CODE_32
            }
        };
        state.segment = [segment(DATA, attributes::DATA, u32::MAX); 6];
        state.segment[1] = segment(CODE, code, u32::MAX);
        state.tr = segment(TASK, attributes::TASK, 0x67);
        state.ldtr = segment(0, attributes::LDT, 0);
        state.gdtr = Segment {
            base: layout::GDT,
            limit: 6 * 8 - 1,
            ..Segment::default()
        };
        state.idtr = Segment::default();
    }
}

/// A descriptor with base 0.
fn descriptor(attributes: u16, limit: u64) -> u64 {
    let attributes = u64::from(attributes);
    (limit & 0xffff) | (attributes & 0xff) << 40 | (limit >> 16) << 48 | (attributes >> 8) << 52
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_the_manuals() {
        assert_eq!(
            descriptor(attributes::CODE_64, 0xf_ffff),
            0x00af_9b00_0000_ffff
        );
        assert_eq!(
            descriptor(attributes::DATA, 0xf_ffff),
            0x00cf_9300_0000_ffff
        );
    }

    #[test]
    fn linux_is_entered_on_an_identity_map() {
        let ram = Ram::new(4 << 20).unwrap();
        let entry = Entry::Linux64 {
            rip: 0x100_0200,
            boot_params: layout::BOOT_PARAMS,
        };
        entry.write_tables(&ram).unwrap();
        let mut state = VcpuState::default();
        entry.apply(&mut state);
        let read = |at| ram.mapping().read_obj::<u64>(GuestAddress(at)).unwrap();
        let address: u64 = 0xfee0_0000;
        let pdpt = read(state.cr3) & !0xfff;
        let directory = read(pdpt + 8 * (address >> 30)) & !0xfff;
        let leaf = read(directory + 8 * ((address >> 21) & 511));
        assert_eq!(leaf, address | 0x83);
        assert_eq!(state.gpr[6], layout::BOOT_PARAMS);
    }
}
