//! bzImage: Linux's 64-bit boot protocol (`Documentation/arch/x86/boot.rst`).

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::{KernelLoader, bzimage};
use vm_memory::{Bytes, GuestAddress, ReadVolatile, VolatileSlice};

use super::super::memory::{Ram, layout};
use super::{Boot, Entry, LoadError, Source};

/// Offset of the header in the file.
const HEADER: u64 = 0x1f1;
/// 2.12, the first version with `xloadflags`.
const MIN_VERSION: u16 = 0x20c;
const XLF_KERNEL_64: u16 = 1 << 0;
const LOADED_HIGH: u8 = 1 << 0;
/// "Undefined" boot loader.
const LOADER: u8 = 0xff;
const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;

/// A bzImage whose file is whole.
#[derive(Debug)]
pub(super) struct BzImage {
    header: setup_header,
}

impl BzImage {
    /// Reads the header; `None` if it is no bzImage.
    pub(super) fn probe(source: &mut Source, head: &[u8]) -> Result<Option<Self>, LoadError> {
        let Some(fields) = head.get(HEADER as usize..) else {
            return Ok(None);
        };
        if fields.get(0x11..0x15) != Some(b"HdrS") {
            return Ok(None);
        }
        let mut header = setup_header::default();
        let mut from = fields;
        if from
            .read_exact_volatile(&mut VolatileSlice::from(
                vm_memory::ByteValued::as_mut_slice(&mut header),
            ))
            .is_err()
        {
            return Err(source.error("truncated: its setup header is not whole"));
        }
        if header.version < MIN_VERSION
            || header.loadflags & LOADED_HIGH == 0
            || header.xloadflags & XLF_KERNEL_64 == 0
        {
            return Err(source.error("a bzImage without a 64-bit entry point"));
        }
        let image = Self { header };
        let syssize = image.header.syssize;
        source.check_extent(image.setup_size(), u64::from(syssize) * 16)?;
        Ok(Some(image))
    }

    /// Bytes that run in real mode, with which the file begins.
    pub(super) fn setup_size(&self) -> u64 {
        let sectors = match self.header.setup_sects {
            0 => 4,
            n => u64::from(n),
        };
        (sectors + 1) * 512
    }

    pub(super) fn load(
        &self,
        source: &mut Source,
        ram: &Ram,
        boot: &mut Boot<'_>,
    ) -> Result<Entry, LoadError> {
        let mut header = self.header;
        let base = header.pref_address;
        let room = u64::from(header.init_size).max(u64::from(header.syssize) * 16);
        let end = base
            .checked_add(room)
            .filter(|&end| base >= layout::HIGH && end <= ram.low_end());
        let Some(end) = end else {
            let need = base.saturating_add(room).div_ceil(1 << 20);
            return Err(source.error(format_args!(
                "this kernel needs {need}M of memory to start, and the VM has {}M",
                ram.size() >> 20
            )));
        };
        bzimage::BzImage::load(
            ram.mapping(),
            Some(GuestAddress(base)),
            &mut source.file,
            None,
        )
        .map_err(|e| source.error(e))?;

        header.type_of_loader = LOADER;
        header.code32_start = base as u32;
        header.cmd_line_ptr = layout::CMDLINE as u32;
        if let Some(initrd) = &mut boot.initrd {
            let ceiling = u64::from(header.initrd_addr_max) + 1;
            let at = initrd.load_high(ram, end, ceiling)?;
            // Below 4 GiB, as the ceiling is.
            header.ramdisk_image = at as u32;
            header.ramdisk_size = initrd.source.size as u32;
        }
        let mut params = boot_params {
            hdr: header,
            acpi_rsdp_addr: boot.rsdp,
            ..boot_params::default()
        };
        let reserved = (layout::LOW_END, layout::HIGH - layout::LOW_END);
        let entries = ram
            .usable()
            .map(|range| (range, E820_RAM))
            .chain([(reserved, E820_RESERVED)]);
        for (slot, ((addr, size), kind)) in params.e820_table.iter_mut().zip(entries) {
            *slot = boot_e820_entry {
                addr,
                size,
                r#type: kind,
            };
            params.e820_entries += 1;
        }
        ram.mapping()
            .write_obj(params, GuestAddress(layout::BOOT_PARAMS))
            .map_err(|e| source.error(e))?;
        Ok(Entry::Linux64 {
            rip: base + 0x200,
            boot_params: layout::BOOT_PARAMS,
        })
    }
}
