//! ELF files, 32-bit and 64-bit, as far as a boot loader needs them.
//!
//! Header and program headers are read once and checked against the file's size; what is kept are
//! plain numbers.

use super::super::memory::{Ram, layout};
use super::{LoadError, Source};

const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const EM_386: u16 = 3;
const EM_X86_64: u16 = 62;
/// Type of the note that holds PVH's 32-bit entry (Xen's `elfnote.h`).
const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;
/// Notes longer than this are no kernel's.
const MAX_NOTES: u64 = 1 << 20;

/// The parts of the file to load, and the place of the others.
#[derive(Debug)]
pub(super) struct Elf {
    /// Entry point, as the header gives it.
    pub(super) entry: u64,
    segments: Vec<Segment>,
    notes: Vec<Segment>,
}

#[derive(Clone, Copy, Debug)]
struct Segment {
    offset: u64,
    file_size: u64,
    address: u64,
    virtual_address: u64,
    memory_size: u64,
    align: u64,
}

impl Elf {
    /// Reads the headers; `None` if it is no ELF file.
    pub(super) fn probe(source: &mut Source, head: &[u8]) -> Result<Option<Self>, LoadError> {
        if !head.starts_with(b"\x7fELF") {
            return Ok(None);
        }
        let wrong =
            |source: &Source, why: &str| Err(source.error(format_args!("not a kernel: {why}")));
        let wide = match head.get(4..6) {
            Some([1, 1]) => false,
            Some([2, 1]) => true,
            _ => return wrong(source, "an ELF file that is not little-endian"),
        };
        let header_size = if wide { 64 } else { 52 };
        if head.len() < header_size {
            return Err(source.error("truncated: its ELF header is not whole"));
        }
        let machine = word(head, 18, 2) as u16;
        if ![EM_386, EM_X86_64].contains(&machine) {
            return wrong(source, "an ELF file for another machine");
        }
        let (entry, table, entry_size, count) = if wide {
            (
                word(head, 24, 8),
                word(head, 32, 8),
                word(head, 54, 2),
                word(head, 56, 2),
            )
        } else {
            (
                word(head, 24, 4),
                word(head, 28, 4),
                word(head, 42, 2),
                word(head, 44, 2),
            )
        };
        if entry_size < if wide { 56 } else { 32 } || count == 0 {
            return wrong(source, "an ELF file without program headers");
        }
        source.check_extent(table, entry_size * count)?;
        let bytes = source.bytes(table, entry_size * count)?;
        let mut elf = Self {
            entry,
            segments: Vec::new(),
            notes: Vec::new(),
        };
        for header in bytes.chunks_exact(entry_size as usize) {
            let field = |narrow: usize, at: usize| {
                if wide {
                    word(header, at, 8)
                } else {
                    word(header, narrow, 4)
                }
            };
            let segment = Segment {
                offset: field(4, 8),
                virtual_address: field(8, 16),
                address: field(12, 24),
                file_size: field(16, 32),
                memory_size: field(20, 40),
                align: field(28, 48),
            };
            let list = match word(header, 0, 4) as u32 {
                PT_LOAD if segment.memory_size > 0 => &mut elf.segments,
                PT_NOTE => &mut elf.notes,
                _ => continue,
            };
            list.push(segment);
            source.check_extent(segment.offset, segment.file_size)?;
            if segment.file_size > segment.memory_size && word(header, 0, 4) as u32 == PT_LOAD {
                return Err(source.error("its program headers are malformed"));
            }
        }
        if elf.segments.is_empty() {
            return wrong(source, "an ELF file with nothing to load");
        }
        Ok(Some(elf))
    }

    /// PVH's entry, if a note has one.
    pub(super) fn pvh_entry(&self, source: &mut Source) -> Result<Option<u32>, LoadError> {
        for note in self.notes.iter().filter(|n| n.file_size <= MAX_NOTES) {
            let bytes = source.bytes(note.offset, note.file_size)?;
            let align = if note.align == 8 { 8 } else { 4 };
            if let Some(entry) = find_note(&bytes, align) {
                return Ok(Some(entry));
            }
        }
        Ok(None)
    }

    /// Physical address of the entry point: some linkers give a virtual one.
    pub(super) fn physical_entry(&self) -> u64 {
        let holds = |from: u64, s: &Segment| self.entry.wrapping_sub(from) < s.memory_size;
        if self.segments.iter().any(|s| holds(s.address, s)) {
            return self.entry;
        }
        self.segments
            .iter()
            .find(|s| holds(s.virtual_address, s))
            .map_or(self.entry, |s| self.entry - s.virtual_address + s.address)
    }

    /// Copies the segments; answers the first address behind them.
    pub(super) fn load(&self, source: &mut Source, ram: &Ram) -> Result<u64, LoadError> {
        let mut top = layout::HIGH;
        for segment in &self.segments {
            let end = segment.address.checked_add(segment.memory_size);
            let end = match end {
                Some(end) if segment.address >= layout::HIGH && end <= ram.low_end() => end,
                _ => {
                    return Err(source.error(format_args!(
                        "it loads {} bytes at {:#x}, and the VM has memory from {:#x} to {:#x} for it",
                        segment.memory_size,
                        segment.address,
                        layout::HIGH,
                        ram.low_end()
                    )));
                }
            };
            // Bytes that are not in the file are zero, as fresh memory is.
            source.copy(segment.offset, segment.file_size, ram, segment.address)?;
            top = top.max(end);
        }
        Ok(top)
    }
}

/// Little-endian number of `len` bytes; missing ones are 0 (the callers have checked lengths).
fn word(bytes: &[u8], at: usize, len: usize) -> u64 {
    bytes
        .iter()
        .skip(at)
        .take(len)
        .rev()
        .fold(0, |value, &byte| value << 8 | u64::from(byte))
}

fn find_note(mut bytes: &[u8], align: usize) -> Option<u32> {
    while bytes.len() >= 12 {
        let name_len = word(bytes, 0, 4) as usize;
        let value_len = word(bytes, 4, 4) as usize;
        let kind = word(bytes, 8, 4) as u32;
        let value_at = 12usize
            .checked_add(name_len)?
            .checked_next_multiple_of(align)?;
        let end = value_at.checked_add(value_len)?;
        let name = bytes.get(12..12 + name_len)?;
        let value = bytes.get(value_at..end)?;
        if kind == XEN_ELFNOTE_PHYS32_ENTRY && name == b"Xen\0" && matches!(value_len, 4 | 8) {
            return u32::try_from(word(value, 0, value_len)).ok();
        }
        bytes = bytes.get(end.checked_next_multiple_of(align)?..)?;
    }
    None
}
