//! `cargo xtask bench --profile ROW`: in which functions the instructions of an operation are.
//!
//! A plugin of QEMU's, which is built here, counts each block of code that runs between the marks of the bench kernel.
//! Symbols come from the images, and from `/proc` of the Linux that the bench kernel runs above.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use elf::ElfBytes;
use elf::abi::STT_FUNC;
use elf::endian::LittleEndian;

use crate::files::{context, folder};
use crate::{Result, checked, root};

/// Where the microvisor's image is in its own address space, which VM 0's kernel leaves free.
const MICROVISOR: std::ops::Range<u64> = 0xffff_ffff_8000_0000..0xffff_ffff_8100_0000;
/// The lowest address of a kernel.
const KERNEL: u64 = 1 << 63;
/// Functions that are printed.
const MOST: usize = 40;

/// Builds the plugin.
fn plugin() -> Result<PathBuf> {
    let plugin = folder()?.join("profile.so");
    checked(
        Command::new("cc")
            .args(["-O2", "-fPIC", "-shared", "-fvisibility=hidden", "-o"])
            .arg(&plugin)
            .arg(root().join("xtask/src/bench/profile.c")),
    )?;
    Ok(plugin)
}

/// Returns QEMU's options for the plugin, which writes to `out`.
pub(super) fn options(out: &Path) -> Result<Vec<String>> {
    let plugin = plugin()?;
    let option = format!("file={},out={}", plugin.display(), out.display());
    Ok(vec!["-plugin".into(), option])
}

/// Returns the instructions between each begin and its end.
pub(super) fn segments(counted: &str) -> Vec<u64> {
    let lines = counted.lines();
    lines
        .filter_map(|line| line.strip_prefix("segment ")?.parse().ok())
        .collect()
}

/// Names of code by its address.
#[derive(Default)]
pub(super) struct Symbols {
    /// The part and the name of each function, by the address at which it begins.
    functions: BTreeMap<u64, (String, String)>,
}

impl Symbols {
    /// Adds the functions of an ELF file that is loaded `base` above its own addresses.
    pub(super) fn add_elf(&mut self, part: &str, file: &Path, base: u64) -> Result<()> {
        let bytes = fs::read(file).map_err(context(file))?;
        let failed = |error: elf::ParseError| format!("{}: {error}", file.display());
        let elf = ElfBytes::<LittleEndian>::minimal_parse(&bytes).map_err(failed)?;
        let Some((table, names)) = elf.symbol_table().map_err(failed)? else {
            return Ok(());
        };
        for symbol in table.iter() {
            if symbol.st_symtype() != STT_FUNC || symbol.st_value == 0 {
                continue;
            }
            let name = names.get(symbol.st_name as usize).map_err(failed)?;
            let name = format!("{:#}", rustc_demangle::demangle(name));
            self.functions
                .insert(base + symbol.st_value, (part.to_owned(), name));
        }
        Ok(())
    }

    /// Adds what the script wrote of `/proc`: the kernel's symbols, and the mapped files of processes. `vmctl` is the
    /// file that has the symbols of processes of that name.
    pub(super) fn add_linux(&mut self, proc: &str, vmctl: &Path) -> Result<()> {
        let mut vmctl_base = None;
        for line in proc.lines() {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let number = |text: &str| u64::from_str_radix(text, 16).ok();
            match fields[..] {
                // ffffffff81000000 T name [module]
                [address, "t" | "T" | "w" | "W", name, ..] => {
                    let module = fields.get(3).map(|module| module.trim_matches(['[', ']']));
                    let part = module.map_or("kernel".into(), |module| format!("module {module}"));
                    if let Some(address) = number(address) {
                        self.functions.insert(address, (part, name.to_owned()));
                    }
                }
                // 555555554000-555555600000 r-xp 00000000 00:02 123 /bin/vmctl
                [range, _, offset, _, _, file] => {
                    let start = range.split('-').next().and_then(number);
                    let (Some(start), Some(offset)) = (start, number(offset)) else {
                        continue;
                    };
                    if file.ends_with("/vmctl") {
                        vmctl_base.get_or_insert(start - offset);
                    } else {
                        let name = file.rsplit('/').next().unwrap_or(file);
                        self.functions
                            .insert(start, ("processes".into(), name.to_owned()));
                    }
                }
                _ => {}
            }
        }
        match vmctl_base {
            Some(base) => self.add_elf("vmctl", vmctl, base),
            None => Ok(()),
        }
    }

    /// Returns the part and the function of an address.
    fn find(&self, address: u64) -> (String, String) {
        let unknown = |part: &str| (part.to_owned(), format!("{:#x}", address & !0xfff));
        let Some((start, found)) = self.functions.range(..=address).next_back() else {
            return unknown("unknown");
        };
        if MICROVISOR.contains(&address) && !MICROVISOR.contains(start) {
            return unknown("microvisor");
        }
        if address < KERNEL || *start >= KERNEL {
            return found.clone();
        }
        unknown("kernel")
    }
}

/// Returns the table of a profile, in instructions for each of `operations` operations. A line of `counted` is an address, the
/// instructions of the block there, and how often the block ran.
pub(super) fn text(counted: &str, symbols: &Symbols, operations: u64) -> String {
    let mut parts: BTreeMap<String, u64> = BTreeMap::new();
    let mut functions: BTreeMap<(String, String), u64> = BTreeMap::new();
    for line in counted.lines() {
        let mut fields = line.split(' ');
        let address = fields.next().and_then(|a| u64::from_str_radix(a, 16).ok());
        let mut number = || fields.next().and_then(|number| number.parse::<u64>().ok());
        let (Some(address), Some(length), Some(runs)) = (address, number(), number()) else {
            continue;
        };
        let function = symbols.find(address);
        *parts.entry(function.0.clone()).or_default() += length * runs;
        *functions.entry(function).or_default() += length * runs;
    }
    let each = |count: u64| count as f64 / operations.max(1) as f64;
    let mut text = format!("{:>10.1}  all\n", each(parts.values().sum()));
    let mut parts: Vec<_> = parts.into_iter().collect();
    parts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    for (part, count) in parts {
        text += &format!("{:>10.1}  {part}\n", each(count));
    }
    text.push('\n');
    let mut functions: Vec<_> = functions.into_iter().collect();
    functions.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    for ((part, function), count) in functions.into_iter().take(MOST) {
        text += &format!("{:>10.1}  {part}: {function}\n", each(count));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_are_counted_by_part_and_function() {
        let mut symbols = Symbols::default();
        let proc =
            "ffffffff81000000 T one\nffffffff81000100 t two\nffffffffc0000000 t run [microvisor]\n";
        symbols.add_linux(proc, Path::new("none")).unwrap();
        let counted = "ffffffff81000010 3 20\nffffffff81000120 1 10\nffffffffc0000004 2 10\n";
        let table = text(counted, &symbols, 10);
        let lines: Vec<_> = table.lines().map(str::trim).collect();
        assert_eq!(
            lines,
            [
                "9.0  all",
                "7.0  kernel",
                "2.0  module microvisor",
                "",
                "6.0  kernel: one",
                "2.0  module microvisor: run",
                "1.0  kernel: two",
            ]
        );
    }
}
