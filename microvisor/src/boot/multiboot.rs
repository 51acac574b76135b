//! What a Multiboot 1 loader leaves (Multiboot specification 0.6.96 §3.3).

use super::Error;
use super::bytes::{u32_at, u64_at};
use super::map::{Map, Range};
use crate::arch::memory;

const MAGIC: u32 = 0x2bad_b002;
const HAS_MODULES: u32 = 1 << 3;
const HAS_MAP: u32 = 1 << 6;
/// Bytes of the information structure that are read.
const INFO: u64 = 52;
/// Modules that are looked at: kernel and initrd.
const MODULES: usize = 2;
/// Longest command line, its NUL included (Linux' own limit).
const COMMAND_LINE: usize = 2048;

/// A module: where it was loaded.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Module {
    pub(super) start: u64,
    pub(super) end: u64,
}

impl Module {
    pub(super) fn len(&self) -> u64 {
        self.end - self.start
    }
}

/// Everything from the loader, copied: nothing moves under it.
#[derive(Clone, Debug)]
pub(super) struct Info {
    pub(super) map: Map,
    pub(super) modules: Modules,
    command_line: [u8; COMMAND_LINE],
    command_line_len: usize,
}

/// The modules there are.
#[derive(Clone, Debug, Default)]
pub(super) struct Modules {
    modules: [Module; MODULES],
    len: usize,
}

impl Modules {
    pub(super) fn first(&self) -> Option<&Module> {
        self.get(0)
    }

    pub(super) fn get(&self, index: usize) -> Option<&Module> {
        self.modules.get(..self.len)?.get(index)
    }
}

impl Info {
    /// The words after the kernel's file name.
    pub(super) fn command_line(&self) -> &[u8] {
        let line = self
            .command_line
            .get(..self.command_line_len)
            .unwrap_or(&[]);
        match line.iter().position(|&byte| byte == b' ') {
            Some(space) => line.get(space + 1..).unwrap_or(&[]),
            None => &[],
        }
    }
}

/// Reads the information at physical address `info`.
pub(super) fn parse(magic: u32, info: u32) -> Result<Info, Error> {
    if magic != MAGIC {
        return Err(Error::NotMultiboot);
    }
    let table = memory::bytes(info.into(), INFO).ok_or(Error::BadInfo)?;
    let field = |at| u32_at(table, at).ok_or(Error::BadInfo);
    let flags = field(0)?;
    if flags & HAS_MAP == 0 {
        return Err(Error::BadInfo);
    }
    let map = memory::bytes(field(48)?.into(), field(44)?.into()).ok_or(Error::BadInfo)?;
    let mut parsed = Info {
        map: parse_map(map)?,
        modules: Modules::default(),
        command_line: [0; COMMAND_LINE],
        command_line_len: 0,
    };
    let count = if flags & HAS_MODULES == 0 {
        0
    } else {
        field(20)?
    };
    for n in 0..count.min(MODULES as u32) {
        let entry = u64::from(field(24)?) + 16 * u64::from(n);
        let entry = memory::bytes(entry, 16).ok_or(Error::BadInfo)?;
        let field = |at| u32_at(entry, at).ok_or(Error::BadInfo);
        let (start, end) = (u64::from(field(0)?), u64::from(field(4)?));
        if start >= end {
            return Err(Error::BadInfo);
        }
        if let Some(module) = parsed.modules.modules.get_mut(n as usize) {
            *module = Module { start, end };
            parsed.modules.len += 1;
        }
        if n == 0 && field(8)? != 0 {
            let text = memory::bytes(field(8)?.into(), COMMAND_LINE as u64 - 1);
            let text = text.ok_or(Error::BadInfo)?;
            let len = text
                .iter()
                .position(|&byte| byte == 0)
                .unwrap_or(text.len());
            parsed.command_line[..len].copy_from_slice(&text[..len]);
            parsed.command_line_len = len;
        }
    }
    Ok(parsed)
}

/// Entries are (size of the rest, base, length, type).
fn parse_map(table: &[u8]) -> Result<Map, Error> {
    let mut map = Map::new();
    let mut at = 0;
    while at < table.len() {
        let size = u32_at(table, at).ok_or(Error::BadInfo)?;
        let base = u64_at(table, at + 4).ok_or(Error::BadInfo)?;
        let len = u64_at(table, at + 12).ok_or(Error::BadInfo)?;
        map.add(Range {
            start: base,
            end: base.checked_add(len).ok_or(Error::BadInfo)?,
            kind: u32_at(table, at + 20).ok_or(Error::BadInfo)?,
        })?;
        at += size as usize + 4;
    }
    Ok(map)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn map_entries_are_walked_by_their_size() {
        let mut table = std::vec::Vec::new();
        for (base, len, kind) in [(0_u64, 0x9f000_u64, 1_u32), (0x10_0000, 0x1000, 2)] {
            table.extend(20_u32.to_le_bytes());
            table.extend(base.to_le_bytes());
            table.extend(len.to_le_bytes());
            table.extend(kind.to_le_bytes());
        }
        let map = parse_map(&table).unwrap();
        assert_eq!(map.usable_bytes(), 0x9f000);
        assert_eq!(map.len(), 2);
        table.pop();
        assert!(matches!(parse_map(&table), Err(Error::BadInfo)));
    }

    #[test]
    fn another_loader_is_an_error() {
        assert!(matches!(
            parse(0x36d7_6289, 0x1000),
            Err(Error::NotMultiboot)
        ));
    }
}
