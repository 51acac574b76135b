//! The information of a Multiboot loader. `one` and `two` read its two versions.

use core::ops::Range;

use heapless::Vec;

use super::Error;
use super::acpi::Rsdp;
use super::map::Map;
use super::memory::BootMemory;
use crate::memory::Hpa;

mod one;
mod two;

/// Count of modules that are used: kernel and initrd.
const MODULES: usize = 2;
/// Longest command line, its NUL included (Linux' own limit).
const COMMAND_LINE: usize = 2048;

/// The place of a module in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Module {
    pub(super) start: Hpa,
    pub(super) len: u64,
}

impl Module {
    /// Returns its place.
    pub(super) fn range(&self) -> Range<Hpa> {
        self.start..self.start.offset(self.len)
    }
}

/// A copy of the loader's information, which later changes of memory do not touch.
#[derive(Clone, Debug)]
pub(super) struct Info {
    pub(super) map: Map,
    /// ACPI's root pointer, if the loader passes it.
    pub(super) rsdp: Option<Rsdp>,
    modules: Vec<Module, MODULES>,
    /// VM 0's command line.
    command_line: Line,
    /// The microvisor's own command line.
    own_line: Line,
}

/// A string of the loader's, without its NUL.
type Line = Vec<u8, { COMMAND_LINE - 1 }>;

/// Sets `line` to `text` up to its first NUL, and up to the room for it.
fn set(line: &mut Line, text: &[u8]) {
    let text = text.split(|&byte| byte == 0).next().unwrap_or(&[]);
    line.clear();
    line.extend(text.iter().copied().take(COMMAND_LINE - 1));
}

impl Info {
    pub(super) const fn new() -> Self {
        Self {
            map: Map::new(),
            rsdp: None,
            modules: Vec::new(),
            command_line: Vec::new(),
            own_line: Vec::new(),
        }
    }

    /// Returns the modules: kernel, initrd.
    pub(super) fn modules(&self) -> &[Module] {
        &self.modules
    }

    /// Returns VM 0's command line: the words after the first one, by which the loader names the kernel. QEMU puts
    /// the file name there, Debian's GRUB entries for Multiboot kernels put the word `placeholder`.
    pub(super) fn command_line(&self) -> &[u8] {
        let space = self.command_line.iter().position(|&byte| byte == b' ');
        let words = space.and_then(|space| self.command_line.get(space + 1..));
        words.unwrap_or(&[])
    }

    /// Returns the microvisor's own command line, as the loader passes it.
    pub(super) fn own_line(&self) -> &[u8] {
        &self.own_line
    }

    /// Adds a module with its string, which ends at its first NUL. The kernel's string is the command line. Modules
    /// after the initrd are not used.
    fn add_module(&mut self, start: u32, end: u32, text: &[u8]) -> Result<(), Error> {
        if start >= end {
            return Err(Error::BadInfo);
        }
        if self.modules.is_empty() {
            set(&mut self.command_line, text);
        }
        let module = Module {
            start: Hpa::new(start.into()),
            len: (end - start).into(),
        };
        // A third module is nobody's.
        let _ = self.modules.push(module);
        Ok(())
    }
}

/// Reads the information of a loader with this magic number, which lies at physical address `at`, into `info`. An
/// [`Info`] is too large for the stack to hold it twice.
pub(super) fn parse(
    memory: &BootMemory,
    (magic, at): (u32, u32),
    info: &mut Info,
) -> Result<(), Error> {
    match magic {
        one::MAGIC => one::parse(memory, Hpa::new(at.into()), info),
        two::MAGIC => two::parse(memory, Hpa::new(at.into()), info),
        _ => Err(Error::NotMultiboot),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_loader_is_an_error() {
        let memory = BootMemory::fake(0x2000);
        let parsed = parse(&memory, (0x1234, 0x1000), &mut Info::new());
        assert_eq!(parsed, Err(Error::NotMultiboot));
    }

    #[test]
    fn the_kernels_string_less_its_first_word_is_the_command_line() {
        let line = |text: &[u8]| {
            let mut info = Info::new();
            info.add_module(1, 2, text).unwrap();
            info.add_module(3, 4, b"initrd other").unwrap();
            std::string::String::from_utf8(info.command_line().to_vec()).unwrap()
        };
        assert_eq!(
            line(b"/vmlinuz console=ttyS0 quiet\0garbage"),
            "console=ttyS0 quiet"
        );
        assert_eq!(line(b"placeholder"), "");
        assert_eq!(line(b""), "");
        assert_eq!(line(&[b' '; 4000]).len(), COMMAND_LINE - 2);
    }

    #[test]
    fn the_third_module_is_nobodys_and_an_empty_one_an_error() {
        let mut info = Info::new();
        for n in 0..3 {
            info.add_module(n, n + 1, b"").unwrap();
        }
        let module = |start| Module {
            start: Hpa::new(start),
            len: 1,
        };
        assert_eq!(info.modules(), [module(0), module(1)]);
        assert_eq!(info.add_module(5, 5, b""), Err(Error::BadInfo));
    }
}
