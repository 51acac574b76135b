//! The microvisor's messages: they go into the in-memory log, and at boot to COM1, too.
//!
//! COM1 is VM 0's once it runs; the microvisor then writes there only to say why it stops.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, Ordering};

use crate::arch::{read_port, write_port};
use crate::log::LOG;

const COM1: u16 = 0x3f8;
const LINE_STATUS: u16 = COM1 + 5;
const TRANSMITTER_EMPTY: u8 = 1 << 5;

static COM1_IS_ROOTS: AtomicBool = AtomicBool::new(false);

/// Collects text, so that lines of several CPUs do not mix and nothing that formats holds a lock.
struct Line {
    text: [u8; 256],
    len: usize,
    serial: bool,
}

impl Line {
    fn flush(&mut self) {
        let text = self.text.get(..self.len).unwrap_or(&[]);
        LOG.append(text);
        if self.serial {
            text.iter().for_each(|&byte| put(byte));
        }
        self.len = 0;
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if self.len == self.text.len() {
                self.flush();
            }
            self.text[self.len] = byte;
            self.len += 1;
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

fn write(text: fmt::Arguments<'_>, serial: bool) {
    let mut line = Line {
        text: [0; 256],
        len: 0,
        serial,
    };
    // A `Display` that fails loses the rest of its text, which is no reason to stop.
    let _ = line.write_fmt(text);
    line.flush();
}

/// Leaves COM1 to VM 0.
pub fn leave_serial() {
    COM1_IS_ROOTS.store(true, Ordering::Relaxed);
}

/// Writes to the log, and on COM1 until VM 0 has it.
pub fn log(text: fmt::Arguments<'_>) {
    write(text, !COM1_IS_ROOTS.load(Ordering::Relaxed));
}

/// Writes to the log and on COM1: why the microvisor stops.
pub fn last_words(text: fmt::Arguments<'_>) {
    write(text, true);
}

/// Writes one line of the log.
#[macro_export]
macro_rules! boot_log {
    ($($text:tt)*) => {
        $crate::console::log(format_args!("microvisor: {}\n", format_args!($($text)*)))
    };
}
