//! `cargo xtask size`: how large the microvisor is.
//!
//! A line of code is a line that is neither blank nor a comment. Tests do not count: they are the files named
//! `tests` or `testing`, and what stands behind `#[cfg(test)]`. Start-up code is the files and folders named `boot`; all
//! other code is resident.

use std::fs;
use std::path::Path;

use elf::ElfBytes;
use elf::endian::LittleEndian;

use crate::files::context;
use crate::{Result, freestanding, root};

/// The sources that count.
const SOURCES: &str = "microvisor/src";
/// Files and folders with start-up code.
const STARTUP: &str = "boot";
/// Sections of the image that are in memory.
const SECTIONS: [&str; 7] = [
    ".boot",
    ".boot.text",
    ".text",
    ".rodata",
    ".data",
    ".protected",
    ".bss",
];

/// Lines of code and unsafe blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    lines: usize,
    resident: usize,
    unsafe_blocks: usize,
}

impl Count {
    fn add(&mut self, other: Self) {
        self.lines += other.lines;
        self.resident += other.resident;
        self.unsafe_blocks += other.unsafe_blocks;
    }
}

/// Prints the sizes of the sources and of the image.
pub(crate) fn print() -> Result<()> {
    let mut total = Count::default();
    println!(
        "{:<12} {:>6} {:>9} {:>14}",
        "part", "lines", "resident", "unsafe blocks"
    );
    let row = |part: &str, count: Count| {
        println!(
            "{part:<12} {:>6} {:>9} {:>14}",
            count.lines, count.resident, count.unsafe_blocks
        );
    };
    for (part, count) in parts()? {
        total.add(count);
        row(&part, count);
    }
    row("total", total);
    println!();

    let image = freestanding::build()?;
    let bytes = fs::read(&image).map_err(context(&image))?;
    println!("{:<12} {:>9}", "section", "bytes");
    for (name, size) in sections(&bytes).map_err(|error| format!("{}: {error}", image.display()))? {
        println!("{name:<12} {size:>9}");
    }
    Ok(())
}

/// The parts of the microvisor, largest first: a folder with the file of its name, or the files of the top folder.
fn parts() -> Result<Vec<(String, Count)>> {
    let mut parts: Vec<(String, Count)> = Vec::new();
    let folder = root().join(SOURCES);
    for entry in fs::read_dir(&folder).map_err(context(&folder))? {
        let path = entry.map_err(context(&folder))?.path();
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        let has_folder = path.is_dir() || folder.join(&*name).is_dir();
        let name = if has_folder { &name } else { "others" };
        let count = count(&path)?;
        match parts.iter_mut().find(|(part, _)| part == name) {
            Some((_, sum)) => sum.add(count),
            None => parts.push((name.to_string(), count)),
        }
    }
    parts.sort_by_key(|(name, count)| (std::cmp::Reverse(count.lines), name.clone()));
    Ok(parts)
}

/// Counts a file, or all files of a folder.
fn count(path: &Path) -> Result<Count> {
    let name = path.file_stem().unwrap_or_default();
    if name == "tests" || name == "testing" {
        return Ok(Count::default());
    }
    if !path.is_dir() {
        let text = fs::read_to_string(path).map_err(context(path))?;
        let mut count = count_text(&text);
        if name == STARTUP {
            count.resident = 0;
        }
        return Ok(count);
    }
    let mut sum = Count::default();
    for entry in fs::read_dir(path).map_err(context(path))? {
        sum.add(count(&entry.map_err(context(path))?.path())?);
    }
    if name == STARTUP {
        sum.resident = 0;
    }
    Ok(sum)
}

/// Counts the lines of a resident file.
fn count_text(text: &str) -> Count {
    let mut sum = Count::default();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let line = line.trim();
        if line == "#[cfg(test)]" {
            skip_item(&mut lines);
        } else if !line.is_empty() && !line.starts_with("//") {
            sum.lines += 1;
            sum.unsafe_blocks += line.matches("unsafe {").count();
        }
    }
    sum.resident = sum.lines;
    sum
}

/// Skips the lines of the item that follows an attribute: up to its closing brace, or to a semicolon.
fn skip_item<'a>(lines: &mut impl Iterator<Item = &'a str>) {
    let mut depth = 0_usize;
    let mut has_body = false;
    for line in lines {
        let opened = line.matches('{').count();
        has_body |= opened > 0;
        depth = (depth + opened).saturating_sub(line.matches('}').count());
        if (has_body && depth == 0) || (!has_body && line.trim_end().ends_with(';')) {
            return;
        }
    }
}

/// Sizes in memory of the image's sections.
fn sections(image: &[u8]) -> std::result::Result<Vec<(&'static str, u64)>, elf::ParseError> {
    let image = ElfBytes::<LittleEndian>::minimal_parse(image)?;
    let mut found = Vec::new();
    for name in SECTIONS {
        if let Some(header) = image.section_header_by_name(name)? {
            found.push((name, header.sh_size));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readme_has_the_size() {
        let readme = fs::read_to_string(root().join("README.md")).unwrap();
        let row = readme
            .lines()
            .find_map(|line| line.strip_prefix("| total | "));
        let mut total = Count::default();
        for (_, count) in parts().unwrap() {
            total.add(count);
        }
        let told = row.unwrap().split(" | ");
        for (told, counted) in told.zip([total.lines, total.resident]) {
            let told: usize = told.replace(',', "").parse().unwrap();
            let is_near = told.abs_diff(counted) * 50 <= counted;
            assert!(is_near, "README.md says {told} lines, not {counted}");
        }
    }

    #[test]
    fn tests_and_comments_do_not_count() {
        let text = "//! It.\n\n/// One.\nfn one() {\n    // SAFETY: none.\n    unsafe { two() }\n}\n\
                    #[cfg(test)]\nmod tests;\n#[cfg(test)]\nfn three() {\n    unsafe { two() };\n}\nstatic X: u8 = 1;\n";
        let expected = Count {
            lines: 4,
            resident: 4,
            unsafe_blocks: 1,
        };
        assert_eq!(count_text(text), expected);
    }
}
