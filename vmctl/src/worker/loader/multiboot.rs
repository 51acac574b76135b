//! Multiboot 1: an ELF kernel, or a flat one whose header says where it goes (the specification's
//! "a.out kludge").

use vm_memory::{Bytes, GuestAddress};

use super::super::memory::{Ram, layout};
use super::elf::Elf;
use super::{Boot, Entry, LoadError, Source};

const HEADER_MAGIC: u32 = 0x1bad_b002;
const LOADER_MAGIC: u32 = 0x2bad_b002;

/// Required features that are provided: modules on pages, memory information.
const PROVIDED: u32 = 0b11;
/// The header has addresses.
const ADDRESSES: u32 = 1 << 16;

/// Flags of the information structure: memory, command line, modules, memory map.
mod info_flags {
    pub(super) const MEMORY: u32 = 1 << 0;
    pub(super) const CMDLINE: u32 = 1 << 2;
    pub(super) const MODULES: u32 = 1 << 3;
    pub(super) const MEMORY_MAP: u32 = 1 << 6;
}

const MODULES: u64 = layout::START_INFO + 0x80;
const MEMORY_MAP: u64 = layout::START_INFO + 0x100;

/// A Multiboot header.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    /// Offset of the header in the file.
    offset: u64,
    flags: u32,
    /// header, load, load end, bss end and entry address; valid with [`ADDRESSES`].
    addresses: [u32; 5],
}

impl Header {
    /// Finds it in the first bytes of a file.
    pub(super) fn find(head: &[u8]) -> Option<Self> {
        let word = |at: usize| {
            head.get(at..)
                .and_then(|rest| rest.first_chunk::<4>())
                .map(|bytes| u32::from_le_bytes(*bytes))
        };
        (0..head.len()).step_by(4).find_map(|at| {
            let (magic, flags, sum) = (word(at)?, word(at + 4)?, word(at + 8)?);
            if magic != HEADER_MAGIC || magic.wrapping_add(flags).wrapping_add(sum) != 0 {
                return None;
            }
            let mut addresses = [0; 5];
            if flags & ADDRESSES != 0 {
                for (i, address) in addresses.iter_mut().enumerate() {
                    *address = word(at + 12 + 4 * i)?;
                }
            }
            Some(Self {
                offset: at as u64,
                flags,
                addresses,
            })
        })
    }

    fn check(&self, source: &Source) -> Result<(), LoadError> {
        match self.flags & 0xffff & !PROVIDED {
            0 => Ok(()),
            unknown => Err(source.error(format_args!(
                "its Multiboot header requires features that are not provided: {unknown:#x}"
            ))),
        }
    }
}

/// A Multiboot kernel whose file is whole.
#[derive(Debug)]
pub(super) struct Multiboot {
    image: Image,
    entry: u32,
}

#[derive(Debug)]
enum Image {
    Elf(Elf),
    Flat {
        offset: u64,
        file_size: u64,
        address: u64,
        end: u64,
    },
}

impl Multiboot {
    /// One in an ELF file.
    pub(super) fn elf(source: &Source, header: Header, elf: Elf) -> Result<Self, LoadError> {
        if header.flags & ADDRESSES != 0 {
            return Self::flat(source, header);
        }
        header.check(source)?;
        let entry = u32::try_from(elf.physical_entry())
            .map_err(|_| source.error("its entry point lies above 4 GiB"))?;
        Ok(Self {
            image: Image::Elf(elf),
            entry,
        })
    }

    /// One whose header has addresses.
    pub(super) fn flat(source: &Source, header: Header) -> Result<Self, LoadError> {
        header.check(source)?;
        if header.flags & ADDRESSES == 0 {
            return Err(source.error("a Multiboot image that is no ELF file and has no addresses"));
        }
        let nonsense =
            || source.error("the addresses in its Multiboot header contradict each other");
        let [header_at, load, load_end, bss_end, entry] = header.addresses.map(u64::from);
        // load_addr is what lies as far before the header in memory as in the file.
        let before = header_at.checked_sub(load).ok_or_else(nonsense)?;
        let offset = header.offset.checked_sub(before).ok_or_else(nonsense)?;
        let file_size = match load_end {
            0 => source.size.checked_sub(offset),
            end => end.checked_sub(load),
        }
        .ok_or_else(nonsense)?;
        source.check_extent(offset, file_size)?;
        let end = bss_end.max(load + file_size);
        if !(load..end).contains(&entry) {
            return Err(nonsense());
        }
        Ok(Self {
            image: Image::Flat {
                offset,
                file_size,
                address: load,
                end,
            },
            entry: header.addresses[4],
        })
    }

    pub(super) fn load(
        &self,
        source: &mut Source,
        ram: &Ram,
        boot: &mut Boot<'_>,
    ) -> Result<Entry, LoadError> {
        let end = match &self.image {
            Image::Elf(elf) => elf.load(source, ram)?,
            &Image::Flat {
                offset,
                file_size,
                address,
                end,
            } => {
                if address < layout::HIGH || end > ram.low_end() {
                    return Err(source.error(format_args!(
                        "it loads at {address:#x} to {end:#x}, and the VM has memory from {:#x} to {:#x} for it",
                        layout::HIGH,
                        ram.low_end()
                    )));
                }
                source.copy(offset, file_size, ram, address)?;
                end
            }
        };
        // Fields of the information structure by their index; see the specification, §3.3.
        let mut info = [0u32; 29];
        info[0] = info_flags::MEMORY | info_flags::CMDLINE | info_flags::MEMORY_MAP;
        info[1] = (layout::LOW_END >> 10) as u32;
        info[2] = ((ram.low_end() - layout::HIGH) >> 10) as u32;
        info[4] = layout::CMDLINE as u32;
        let memory = ram.mapping();
        let write = |words: &[u32], at: u64| {
            let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
            memory.write_slice(&bytes, GuestAddress(at))
        };
        if let Some(initrd) = &mut boot.initrd {
            let at = initrd.load_at(ram, end.next_multiple_of(0x1000))?;
            // Below 4 GiB: `load_at` stays in low memory.
            let module = [at as u32, (at + initrd.source.size) as u32, 0, 0];
            write(&module, MODULES).map_err(|e| source.error(e))?;
            info[0] |= info_flags::MODULES;
            info[5] = 1;
            info[6] = MODULES as u32;
        }
        let mut map = Vec::new();
        for (address, size) in ram.usable() {
            // Size of the rest of the entry, base, length, type 1: usable.
            map.push(20);
            for value in [address, size] {
                map.extend([value as u32, (value >> 32) as u32]);
            }
            map.push(1);
        }
        info[11] = 4 * map.len() as u32;
        info[12] = MEMORY_MAP as u32;
        write(&map, MEMORY_MAP)
            .and_then(|()| write(&info, layout::START_INFO))
            .map_err(|e| source.error(e))?;
        Ok(Entry::Flat32 {
            eip: self.entry,
            eax: LOADER_MAGIC,
            ebx: layout::START_INFO as u32,
        })
    }
}
