//! The gate of address line 20.
//!
//! A PC can mask bit 20 of every physical address that its CPUs use, those of the microvisor included. Root has the
//! ports that do so, but cannot close the gate: not by bit 1 of the system control port 0x92, and not by commands of
//! the keyboard controller (Linux's `arch/x86/boot/a20.c`; IBM PS/2 technical reference). Kernels have no use for
//! that in 64-bit mode. All other bytes that root sends to the keyboard controller reach it.

use spin::Mutex;

/// Data of the keyboard controller.
const DATA: u16 = 0x60;
/// Its commands.
const COMMAND: u16 = 0x64;
/// The system control port.
const CONTROL: u16 = 0x92;

/// The state of root's dialogue with the keyboard controller, on any CPU.
#[derive(Debug)]
pub(super) struct Gate {
    /// The next byte of data is for the controller's output port.
    drops_data: bool,
}

/// The machine's gate.
pub(super) static GATE: Mutex<Gate> = Mutex::new(Gate { drops_data: false });

impl Gate {
    /// Returns the byte to write to `port` where root writes `byte`, or `None` to write no byte.
    pub(super) fn write(&mut self, port: u16, byte: u8) -> Option<u8> {
        const OPEN: u8 = 1 << 1;
        const WRITE_OUTPUT_PORT: u8 = 0xd1;
        const CLOSE: u8 = 0xdd;
        const PULSE_FIRST: u8 = 0xf0;
        match (port, byte) {
            (CONTROL, _) => Some(byte | OPEN),
            (COMMAND, WRITE_OUTPUT_PORT) => {
                self.drops_data = true;
                None
            }
            (COMMAND, CLOSE) => None,
            // The low bits that are 0 name the lines to pulse; line 0 is the CPU's reset.
            (COMMAND, PULSE_FIRST..) => Some(byte | OPEN),
            (DATA, _) if self.drops_data => {
                self.drops_data = false;
                None
            }
            _ => Some(byte),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_closes_the_gate() {
        let mut gate = Gate { drops_data: false };
        for byte in 0..=u8::MAX {
            let control = gate.write(0x92, byte).unwrap();
            assert_eq!(control, byte | 2);
            match gate.write(0x64, byte) {
                None => assert!(byte == 0xd1 || byte == 0xdd),
                Some(sent) => {
                    assert!(sent < 0xf0 || sent & 2 != 0, "{byte:#x}");
                    assert_eq!(sent & !2, byte & !2);
                }
            }
            gate.drops_data = false;
            assert_eq!(gate.write(0x60, byte), Some(byte));
        }
    }

    #[test]
    fn the_output_port_gets_nothing() {
        let mut gate = Gate { drops_data: false };
        assert_eq!(gate.write(0x64, 0xd1), None);
        assert_eq!(gate.write(0x64, 0xae), Some(0xae));
        assert_eq!(gate.write(0x60, 0xdd), None);
        assert_eq!(gate.write(0x60, 0xed), Some(0xed), "the keyboard's again");
    }

    #[test]
    fn the_machine_can_be_reset() {
        let mut gate = Gate { drops_data: false };
        assert_eq!(gate.write(0x64, 0xfe), Some(0xfe));
        assert_eq!(gate.write(0x92, 1), Some(3));
    }
}
