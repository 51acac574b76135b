//! A check of the microvisor's image: once VM 0 runs, its start-up code is gone, so nothing in the resident part may
//! refer to it.
//!
//! The linker keeps the relocations in the image (`--emit-relocs`). Each of them names a place and the address that
//! stands there.

use std::fs;
use std::ops::Range;
use std::path::Path;

use elf::ElfBytes;
use elf::abi::{R_X86_64_32, R_X86_64_32S, R_X86_64_64, SHF_ALLOC, SHT_RELA, STT_FUNC};
use elf::endian::LittleEndian;
use elf::parse::ParsingTable;
use elf::string_table::StringTable;
use elf::symbol::Symbol;

use crate::Result;
use crate::files::context;

/// Sections of the start-up code.
const STARTUP: [&str; 2] = [".boot", ".boot.text"];

type Image<'a> = ElfBytes<'a, LittleEndian>;
type Symbols<'a> = (ParsingTable<'a, LittleEndian, Symbol>, StringTable<'a>);

/// Checks an image.
///
/// # Errors
///
/// Fails with a line that names the places that refer to start-up code.
pub(crate) fn check(image: &Path) -> Result<()> {
    let bytes = fs::read(image).map_err(context(image))?;
    let in_image = |why: String| format!("{}: {why}", image.display());
    match references(&bytes) {
        Err(error) => Err(in_image(error.to_string())),
        Ok(None) => Err(in_image(
            "it has no start-up code, or keeps no relocations".into(),
        )),
        Ok(Some(places)) if places.is_empty() => Ok(()),
        Ok(Some(places)) => Err(in_image(format!(
            "resident code refers to start-up code (modules named `boot`), which is gone once VM 0 runs: {}",
            places.join(", ")
        ))),
    }
}

/// The places outside of the start-up code that refer to it, each once. `None` if the image has nothing to tell them by.
fn references(bytes: &[u8]) -> std::result::Result<Option<Vec<String>>, elf::ParseError> {
    let image = Image::minimal_parse(bytes)?;
    let (Some(sections), Some(names)) = image.section_headers_with_strtab()? else {
        return Ok(None);
    };
    let Some(symbols) = image.symbol_table()? else {
        return Ok(None);
    };
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for section in sections.iter() {
        if STARTUP.contains(&names.get(section.sh_name as usize)?) {
            ranges.push(section.sh_addr..section.sh_addr + section.sh_size);
        }
    }
    if ranges.len() < STARTUP.len() {
        return Ok(None);
    }
    let is_inside = |address: u64| ranges.iter().any(|range| range.contains(&address));
    let mut places = Vec::new();
    let mut has_relocations = false;
    for section in sections
        .iter()
        .filter(|section| section.sh_type == SHT_RELA)
    {
        let changed = sections.get(section.sh_info as usize)?;
        if changed.sh_flags & u64::from(SHF_ALLOC) == 0 {
            continue;
        }
        for relocation in image.section_data_as_relas(&section)? {
            has_relocations = true;
            let symbol = symbols.0.get(relocation.r_sym as usize)?;
            // A relative address counts from the end of its field.
            let end = match relocation.r_type {
                R_X86_64_64 | R_X86_64_32 | R_X86_64_32S => 0,
                _ => 4,
            };
            let target = symbol
                .st_value
                .wrapping_add_signed(relocation.r_addend + end);
            if is_inside(target) && !is_inside(relocation.r_offset) {
                let from = name(&symbols, relocation.r_offset)?;
                let to = name(&symbols, target)?;
                places.push(format!("{from} to {to}"));
            }
        }
    }
    places.sort();
    places.dedup();
    Ok(has_relocations.then_some(places))
}

/// The function at an address, or the address.
fn name(
    (symbols, names): &Symbols<'_>,
    address: u64,
) -> std::result::Result<String, elf::ParseError> {
    let covers = |symbol: &Symbol| {
        let range = symbol.st_value..symbol.st_value + symbol.st_size;
        symbol.st_symtype() == STT_FUNC && range.contains(&address)
    };
    match symbols.iter().find(covers) {
        Some(symbol) => Ok(names.get(symbol.st_name as usize)?.into()),
        None => Ok(format!("{address:#x}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_without_anything_to_check_does_not_pass() {
        let image = std::env::current_exe().unwrap();
        let why = check(&image).unwrap_err();
        assert!(why.contains("no start-up code"), "{why}");
    }
}
