//! The microvisor's messages: they go into the log's buffer, and at boot to COM1, too.
//!
//! A message of crate `log` passes if its level is that of its module, or more severe ([`Levels`]). COM1 is VM 0's once
//! it runs; the microvisor then writes there only to say why it stops.

use core::fmt::{self, Arguments, Write};
use core::sync::atomic::{AtomicBool, Ordering};

use heapless::Vec;
use log::{Level, LevelFilter, Log, Metadata, Record};
use spin::Once;

use crate::arch::{read_port, write_port};
use crate::log_buffer::LOG_BUFFER;

const COM1: u16 = 0x3f8;
const LINE_STATUS: u16 = COM1 + 5;
const TRANSMITTER_EMPTY: u8 = 1 << 5;

static COM1_IS_ROOTS: AtomicBool = AtomicBool::new(false);

/// Modules with messages.
const MODULES: [&str; 3] = ["boot", "hypercall", "root"];

/// The levels of messages that pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Levels {
    /// Of modules that have no level of their own.
    default: LevelFilter,
    modules: [Option<LevelFilter>; MODULES.len()],
}

impl Levels {
    /// Levels for which every message up to information passes.
    pub const fn new() -> Self {
        Self {
            default: LevelFilter::Info,
            modules: [None; MODULES.len()],
        }
    }

    /// Sets the level of all modules that have no level of their own.
    pub fn set_default(&mut self, level: LevelFilter) {
        self.default = level;
    }

    /// Sets the level of a module. Returns false if there is no such module.
    #[must_use]
    pub fn set(&mut self, module: &[u8], level: LevelFilter) -> bool {
        let Some(index) = index_of(module) else {
            return false;
        };
        self.modules[index] = Some(level);
        true
    }

    /// Returns the least severe level of a module's messages that pass.
    fn of(&self, module: &[u8]) -> LevelFilter {
        let own = index_of(module).and_then(|index| self.modules[index]);
        own.unwrap_or(self.default)
    }

    /// Returns the least severe level of any message that passes.
    fn most(&self) -> LevelFilter {
        let levels = self.modules.iter().flatten().copied();
        levels.fold(self.default, Ord::max)
    }
}

fn index_of(module: &[u8]) -> Option<usize> {
    MODULES.iter().position(|name| name.as_bytes() == module)
}

/// The sink of crate `log`.
struct Console {
    levels: Once<Levels>,
}

static CONSOLE: Console = Console {
    levels: Once::new(),
};

impl Log for Console {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let levels = self.levels.get().copied().unwrap_or(Levels::new());
        metadata.level() <= levels.of(module(metadata).as_bytes())
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let (level, text) = (record.level(), record.args());
        let serial = !COM1_IS_ROOTS.load(Ordering::Relaxed);
        if level <= Level::Info {
            write(level, format_args!("microvisor: {text}\n"), serial);
        } else {
            let module = module(record.metadata());
            let text = format_args!("microvisor: {module}: {text}\n");
            write(level, text, serial);
        }
    }

    fn flush(&self) {}
}

/// Returns the module of a message: the second name of its path.
fn module<'a>(metadata: &Metadata<'a>) -> &'a str {
    let rest = metadata.target().strip_prefix("microvisor::");
    let rest = rest.unwrap_or("");
    let end = rest.bytes().position(|byte| byte == b':');
    rest.get(..end.unwrap_or(rest.len())).unwrap_or("")
}

/// Returns the digit by which a line of the buffer begins: the severity of RFC 5424, and 8 for a trace.
fn severity(level: Level) -> u8 {
    match level {
        Level::Error => b'3',
        Level::Warn => b'4',
        Level::Info => b'6',
        Level::Debug => b'7',
        Level::Trace => b'8',
    }
}

/// Makes this the sink of crate `log`. Messages up to information pass.
pub fn begin() {
    // It fails if a sink is set, which is this one.
    let _ = log::set_logger(&CONSOLE);
    log::set_max_level(Levels::new().most());
}

/// Sets the levels that pass, once.
pub fn set_levels(levels: Levels) {
    CONSOLE.levels.call_once(|| levels);
    log::set_max_level(levels.most());
}

/// Collects text, so that lines of several CPUs do not mix and nothing that formats holds a lock.
struct Line {
    text: Vec<u8, 256>,
    serial: bool,
}

impl Line {
    fn flush(&mut self) {
        LOG_BUFFER.append(&self.text);
        self.text.clear();
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if self.text.is_full() {
                self.flush();
            }
            // There is room.
            let _ = self.text.push(byte);
            if self.serial {
                put(byte);
            }
        }
        Ok(())
    }
}

fn put(byte: u8) {
    if byte == b'\n' {
        put(b'\r');
    }
    // Bounded: a machine without COM1 reads all-ones, one with a stuck one must still boot.
    for _ in 0..100_000 {
        if read_port(LINE_STATUS) & TRANSMITTER_EMPTY != 0 {
            break;
        }
    }
    write_port(COM1, byte);
}

/// Writes lines. In the buffer `<N>` stands before them, which is their severity.
fn write(level: Level, text: Arguments<'_>, serial: bool) {
    let mut line = Line {
        text: Vec::new(),
        serial,
    };
    line.text.extend([b'<', severity(level), b'>']);
    // A `Display` that fails loses the rest of its text, which is no reason to stop.
    let _ = line.write_fmt(text);
    line.flush();
}

/// Leaves COM1 to VM 0.
pub fn leave_serial() {
    COM1_IS_ROOTS.store(true, Ordering::Relaxed);
}

/// Ends a line that VM 0 may have begun on COM1.
pub fn end_line() {
    put(b'\n');
}

/// Writes to the log and on COM1: why the microvisor stops.
pub fn last_words(text: Arguments<'_>) {
    write(Level::Error, text, true);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_has_its_own_level_or_the_default() {
        let mut levels = Levels::new();
        assert!(levels.set(b"boot", LevelFilter::Trace));
        assert!(levels.set(b"root", LevelFilter::Off));
        levels.set_default(LevelFilter::Debug);
        assert_eq!(levels.of(b"boot"), LevelFilter::Trace);
        assert_eq!(levels.of(b"root"), LevelFilter::Off);
        assert_eq!(levels.of(b"hypercall"), LevelFilter::Debug);
        assert_eq!(levels.of(b"memory"), LevelFilter::Debug);
        assert_eq!(levels.most(), LevelFilter::Trace);
        assert!(!levels.set(b"memory", LevelFilter::Off));
        let mut levels = Levels::new();
        assert!(levels.set(b"boot", LevelFilter::Warn));
        assert_eq!(levels.most(), LevelFilter::Info);
    }

    #[test]
    fn the_second_name_of_a_path_is_the_module() {
        let of = |target| module(&Metadata::builder().target(target).build());
        assert_eq!(of("microvisor::boot::own"), "boot");
        assert_eq!(of("microvisor::root"), "root");
        assert_eq!(of("microvisor"), "");
    }
}
