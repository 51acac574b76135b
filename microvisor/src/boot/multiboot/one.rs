//! Multiboot 1 (specification 0.6.96 §3.3).

use super::{COMMAND_LINE, Info, MODULES, set};
use crate::boot::Error;
use crate::boot::bytes::{u32_at, u64_at};
use crate::boot::map::{Map, Range};
use crate::boot::memory::BootMemory;
use crate::memory::Hpa;

pub(super) const MAGIC: u32 = 0x2bad_b002;

const HAS_COMMAND_LINE: u32 = 1 << 2;
const HAS_MODULES: u32 = 1 << 3;
const HAS_MAP: u32 = 1 << 6;
/// Bytes of the information structure that are read.
const INFO: u64 = 52;
/// Bytes of an entry of the list of modules.
const MODULE: u64 = 16;

pub(super) fn parse(memory: &BootMemory, at: Hpa, info: &mut Info) -> Result<(), Error> {
    let table = memory.bytes(at, INFO).ok_or(Error::BadInfo)?;
    let field = |at| u32_at(table, at).ok_or(Error::BadInfo);
    let address = |at| field(at).map(|address| Hpa::new(address.into()));
    let flags = field(0)?;
    if flags & HAS_MAP == 0 {
        return Err(Error::BadInfo);
    }
    let map = memory.bytes(address(48)?, field(44)?.into());
    parse_map(&mut info.map, map.ok_or(Error::BadInfo)?)?;
    if flags & HAS_COMMAND_LINE != 0 {
        let text = memory.bytes(address(16)?, COMMAND_LINE as u64);
        set(&mut info.own_line, text.ok_or(Error::BadInfo)?);
    }
    let count = match flags & HAS_MODULES {
        0 => 0,
        _ => field(20)?.min(MODULES as u32),
    };
    let list = address(24)?;
    for n in 0..u64::from(count) {
        let entry = memory.bytes(list.offset(MODULE * n), MODULE);
        let entry = entry.ok_or(Error::BadInfo)?;
        let field = |at| u32_at(entry, at).ok_or(Error::BadInfo);
        let text = match field(8)? {
            0 => &[],
            text => memory
                .bytes(Hpa::new(text.into()), COMMAND_LINE as u64)
                .ok_or(Error::BadInfo)?,
        };
        info.add_module(field(0)?, field(4)?, text)?;
    }
    Ok(())
}

/// Entries are (size of the rest, base, length, type).
fn parse_map(map: &mut Map, table: &[u8]) -> Result<(), Error> {
    let mut at = 0;
    while at < table.len() {
        let size = u32_at(table, at).ok_or(Error::BadInfo)?;
        let base = u64_at(table, at + 4).ok_or(Error::BadInfo)?;
        let len = u64_at(table, at + 12).ok_or(Error::BadInfo)?;
        let kind = u32_at(table, at + 20).ok_or(Error::BadInfo)?;
        map.add(Range::new(base, len, kind)?)?;
        at += size as usize + 4;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map_table() -> std::vec::Vec<u8> {
        let mut table = std::vec::Vec::new();
        for (base, len, kind) in [(0_u64, 0x9f000_u64, 1_u32), (0x10_0000, 0x1000, 2)] {
            table.extend(20_u32.to_le_bytes());
            table.extend(base.to_le_bytes());
            table.extend(len.to_le_bytes());
            table.extend(kind.to_le_bytes());
        }
        table
    }

    #[test]
    fn map_entries_are_walked_by_their_size() {
        let mut table = map_table();
        let mut map = Map::new();
        parse_map(&mut map, &table).unwrap();
        assert_eq!(map.usable_bytes(), 0x9f000);
        assert_eq!(map.len(), 2);
        table.pop();
        assert_eq!(parse_map(&mut Map::new(), &table), Err(Error::BadInfo));
    }

    #[test]
    fn map_and_modules_are_found_by_their_addresses() {
        let mut memory = BootMemory::fake(0x8000);
        let table = map_table();
        let mut words = [0_u32; 13];
        words[0] = HAS_MAP | HAS_MODULES | HAS_COMMAND_LINE;
        words[4] = 0x5000;
        (words[5], words[6]) = (2, 0x2000);
        (words[11], words[12]) = (table.len() as u32, 0x3000);
        let modules = [
            0x10_0000, 0x20_0000, 0x4000, 0, 0x30_0000, 0x30_1000, 0, 0_u32,
        ];
        let bytes = |words: &[u32]| -> std::vec::Vec<u8> {
            words.iter().flat_map(|word| word.to_le_bytes()).collect()
        };
        assert!(memory.write(Hpa::new(0x1000), &bytes(&words)));
        assert!(memory.write(Hpa::new(0x2000), &bytes(&modules)));
        assert!(memory.write(Hpa::new(0x3000), &table));
        assert!(memory.write(Hpa::new(0x4000), b"kernel a b"));
        assert!(memory.write(Hpa::new(0x5000), b"image key=value"));
        let mut info = Info::new();
        parse(&memory, Hpa::new(0x1000), &mut info).unwrap();
        assert_eq!(info.modules()[1].start, Hpa::new(0x30_0000));
        assert_eq!(info.command_line(), b"a b");
        assert_eq!(info.own_line(), b"image key=value");
        assert_eq!(info.map.len(), 2);
        words[0] = HAS_MODULES;
        assert!(memory.write(Hpa::new(0x1000), &bytes(&words)));
        let parsed = parse(&memory, Hpa::new(0x1000), &mut Info::new());
        assert_eq!(parsed, Err(Error::BadInfo));
    }
}
