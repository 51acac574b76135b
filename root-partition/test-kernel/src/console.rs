//! COM1, and the port that ends the emulated machine.

use core::fmt::{self, Write};

use crate::cpu;

/// The data register of COM1.
pub const COM1: u16 = 0x3f8;
const LINE_STATUS: u16 = COM1 + 5;
const TRANSMITTER_EMPTY: u8 = 1 << 5;
/// QEMU's `isa-debug-exit`: the machine ends with the status `value << 1 | 1`.
const DEBUG_EXIT: u16 = 0xf4;

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

/// Ends the machine: status 33 if all is well, 35 if not.
pub fn exit(well: bool) -> ! {
    cpu::write_port(DEBUG_EXIT, if well { 0x10 } else { 0x11 });
    // There is no such port on a machine that somebody boots by hand.
    cpu::halt()
}
