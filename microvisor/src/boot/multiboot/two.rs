//! Multiboot 2 (specification 2.0 §3.6): a run of tags.

use super::{Info, set};
use crate::boot::Error;
use crate::boot::bytes::{u32_at, u64_at};
use crate::boot::map::{Map, Range};
use crate::boot::memory::BootMemory;
use crate::memory::Hpa;

pub(super) const MAGIC: u32 = 0x36d7_6289;

const END: u32 = 0;
const COMMAND_LINE: u32 = 1;
const MODULE: u32 = 3;
const MEMORY_MAP: u32 = 6;
const ACPI_1: u32 = 14;
const ACPI_2: u32 = 15;
/// Bytes of a tag's type and size.
const TAG: usize = 8;

pub(super) fn parse(memory: &BootMemory, at: Hpa, info: &mut Info) -> Result<(), Error> {
    let size = memory.bytes(at, 8).and_then(|head| u32_at(head, 0));
    let tags = memory.bytes(at, size.ok_or(Error::BadInfo)?.into());
    let tags = tags.and_then(|all| all.get(8..));
    parse_tags(tags.ok_or(Error::BadInfo)?, info)
}

fn parse_tags(mut rest: &[u8], info: &mut Info) -> Result<(), Error> {
    loop {
        let kind = u32_at(rest, 0).ok_or(Error::BadInfo)?;
        let size = u32_at(rest, 4).ok_or(Error::BadInfo)? as usize;
        let body = rest.get(TAG..size).ok_or(Error::BadInfo)?;
        let field = |at| u32_at(body, at).ok_or(Error::BadInfo);
        match kind {
            END => break,
            COMMAND_LINE => set(&mut info.own_line, body),
            MODULE => {
                let text = body.get(8..).ok_or(Error::BadInfo)?;
                info.add_module(field(0)?, field(4)?, text)?;
            }
            MEMORY_MAP => {
                let entries = body.get(8..).ok_or(Error::BadInfo)?;
                parse_map(&mut info.map, entries, field(0)? as usize)?;
            }
            // A copy of the pointer: of revision 0 it has 20 bytes. The newer one is preferred.
            ACPI_1 | ACPI_2 if kind == ACPI_2 || info.rsdp.is_none() => {
                let mut rsdp = [0; 36];
                let len = body.len().min(rsdp.len());
                rsdp[..len].copy_from_slice(&body[..len]);
                info.rsdp = Some(rsdp);
            }
            _ => {}
        }
        rest = rest.get(size.next_multiple_of(8)..).ok_or(Error::BadInfo)?;
    }
    if info.map.len() == 0 {
        return Err(Error::BadInfo);
    }
    Ok(())
}

/// Entries are (base, length, type, reserved).
fn parse_map(map: &mut Map, entries: &[u8], size: usize) -> Result<(), Error> {
    if size < 24 {
        return Err(Error::BadInfo);
    }
    for entry in entries.chunks(size) {
        let base = u64_at(entry, 0).ok_or(Error::BadInfo)?;
        let len = u64_at(entry, 8).ok_or(Error::BadInfo)?;
        let kind = u32_at(entry, 16).ok_or(Error::BadInfo)?;
        map.add(Range::new(base, len, kind)?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    fn tag(kind: u32, body: &[u8]) -> Vec<u8> {
        let mut tag = Vec::new();
        tag.extend(kind.to_le_bytes());
        tag.extend((TAG as u32 + body.len() as u32).to_le_bytes());
        tag.extend(body);
        tag.resize(tag.len().next_multiple_of(8), 0);
        tag
    }

    fn map() -> Vec<u8> {
        let mut body = Vec::from([24, 0, 0, 0, 0, 0, 0, 0]);
        for (base, len, kind) in [(0_u64, 0x9f000_u64, 1_u64), (0x10_0000, 0x1000, 2)] {
            body.extend([base, len, kind].iter().flat_map(|word| word.to_le_bytes()));
        }
        tag(MEMORY_MAP, &body)
    }

    fn module(start: u32, end: u32, text: &[u8]) -> Vec<u8> {
        let ends = [start, end].map(u32::to_le_bytes).concat();
        tag(MODULE, &[&ends, text].concat())
    }

    fn whole() -> Vec<u8> {
        [
            tag(21, &[1, 2, 3]),
            tag(COMMAND_LINE, b"key=value\0"),
            map(),
            module(0x10_0000, 0x20_0000, b"placeholder a b\0"),
            tag(ACPI_2, &[2; 36]),
            tag(ACPI_1, &[1; 20]),
            module(0x30_0000, 0x30_1000, b"\0"),
            tag(END, &[]),
        ]
        .concat()
    }

    fn read(tags: &[u8]) -> Result<Info, Error> {
        let mut info = Info::new();
        parse_tags(tags, &mut info).map(|()| info)
    }

    #[test]
    fn tags_are_read_and_unknown_ones_skipped() {
        let info = read(&whole()).unwrap();
        assert_eq!(info.map.usable_bytes(), 0x9f000);
        assert_eq!(info.own_line(), b"key=value");
        assert_eq!(info.map.len(), 2);
        assert_eq!(info.modules()[1].start, Hpa::new(0x30_0000));
        assert_eq!(info.command_line(), b"a b");
        assert_eq!(info.rsdp, Some([2; 36]));
    }

    #[test]
    fn an_old_root_pointer_is_filled_up() {
        let tags = [map(), tag(ACPI_1, &[1; 20]), tag(END, &[])].concat();
        let rsdp = read(&tags).unwrap().rsdp.unwrap();
        assert_eq!(rsdp[..20], [1; 20]);
        assert_eq!(rsdp[20..], [0; 16]);
    }

    #[test]
    fn the_size_in_front_bounds_the_tags() {
        let mut memory = BootMemory::fake(0x4000);
        let whole = whole();
        let size = whole.len() as u32 + 8;
        assert!(memory.write(Hpa::new(0x1008), &whole));
        assert!(memory.write(Hpa::new(0x1000), &size.to_le_bytes()));
        let parse = |memory: &BootMemory| parse(memory, Hpa::new(0x1000), &mut Info::new());
        assert_eq!(parse(&memory), Ok(()));
        assert!(memory.write(Hpa::new(0x1000), &(size - 8).to_le_bytes()));
        assert_eq!(parse(&memory), Err(Error::BadInfo));
        assert!(memory.write(Hpa::new(0x1000), &u32::MAX.to_le_bytes()));
        assert_eq!(parse(&memory), Err(Error::BadInfo));
    }

    #[test]
    fn each_damage_is_an_error() {
        let bad = |tags: &[Vec<u8>]| {
            let parsed = read(&tags.concat());
            assert!(matches!(parsed, Err(Error::BadInfo)), "{parsed:?}");
        };
        bad(&[tag(END, &[])]);
        bad(&[map()]);
        bad(&[map(), module(2, 1, b""), tag(END, &[])]);
        bad(&[map(), tag(MODULE, &[0; 4]), tag(END, &[])]);
        bad(&[tag(MEMORY_MAP, &[0; 32]), tag(END, &[])]);
        bad(&[map(), Vec::from([9, 0, 0, 0, 7, 0, 0, 0])]);
    }

    proptest! {
        #[test]
        fn no_bytes_are_a_panic(at in 0_usize..200, byte: u8, end in 0_usize..300) {
            let mut tags = whole();
            if let Some(place) = tags.get_mut(at) {
                *place = byte;
            }
            tags.truncate(end);
            let _ = read(&tags);
        }
    }
}
