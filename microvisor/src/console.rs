//! The serial log at boot, and of a panic.
//!
//! COM1 is VM 0's once it runs; the microvisor then writes there only to say why it stops.

use core::fmt::{self, Write};

use crate::arch::port;

const COM1: u16 = 0x3f8;
const LINE_STATUS: u16 = COM1 + 5;
const TRANSMITTER_EMPTY: u8 = 1 << 5;

struct Serial;

impl Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                put(b'\r');
            }
            put(byte);
        }
        Ok(())
    }
}

fn put(byte: u8) {
    // Bounded: a machine without COM1 reads all-ones, one with a stuck one must still boot.
    for _ in 0..100_000 {
        if port::read_u8(LINE_STATUS) & TRANSMITTER_EMPTY != 0 {
            break;
        }
    }
    port::write_u8(COM1, byte);
}

/// Writes to COM1.
pub fn print(text: fmt::Arguments<'_>) {
    // `Serial` never fails.
    let _ = Serial.write_fmt(text);
}

/// Writes one line of the boot log.
#[macro_export]
macro_rules! boot_log {
    ($($text:tt)*) => {
        $crate::console::print(format_args!("microvisor: {}\n", format_args!($($text)*)))
    };
}
