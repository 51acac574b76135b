//! COM1.

use core::fmt::{self, Write};

use crate::cpu;

/// The data register of COM1.
pub const COM1: u16 = 0x3f8;
/// A register of COM1 that keeps what is written to it, without any effect.
pub const SCRATCH: u16 = COM1 + 7;
const LINE_STATUS: u16 = COM1 + 5;
const TRANSMITTER_EMPTY: u8 = 1 << 5;

struct Serial;

impl Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            while cpu::read_port(LINE_STATUS) & TRANSMITTER_EMPTY == 0 {}
            cpu::write_port(COM1, byte);
        }
        Ok(())
    }
}

/// Prints one line.
pub fn line(text: fmt::Arguments<'_>) {
    // `Serial` never fails.
    let _ = Serial.write_fmt(format_args!("{text}\n"));
}
