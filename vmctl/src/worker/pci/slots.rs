//! The registers by which a guest learns which slots have a new device, and gives up the device of a
//! slot. ACPI methods of the host bridge use them (`acpi::pci`).
//!
//! | offset | access | meaning of bit *n* |
//! |---|---|---|
//! | 0 to 3 | read | slot *n* has a new device; reading takes the bit |
//! | 4 to 7 | read | the guest is asked to give up the device in slot *n*; reading takes the bit |
//! | 8 to 11 | write | the guest gives up the device in slot *n* |

/// Bytes of the registers.
pub const LENGTH: u16 = 12;
/// Offsets of the registers.
const CAME: u16 = 0;
const ASKED: u16 = 4;
const EJECT: u16 = 8;

/// The registers.
#[derive(Debug, Default)]
pub struct SlotRegisters {
    came: u32,
    asked: u32,
    /// Slots whose device the guest may give up: it was asked to, and did not yet.
    may_eject: u32,
}

impl SlotRegisters {
    /// Notes that a slot has a new device.
    pub fn came(&mut self, slot: u8) {
        self.came |= bit(slot);
        self.asked &= !bit(slot);
        self.may_eject &= !bit(slot);
    }

    /// Notes that the guest is asked to give up the device in a slot.
    pub fn ask(&mut self, slot: u8) {
        self.asked |= bit(slot);
        self.may_eject |= bit(slot);
    }

    /// Reads a byte.
    pub fn read(&mut self, at: u16) -> u8 {
        let register = match at & !3 {
            CAME => &mut self.came,
            ASKED => &mut self.asked,
            _ => return 0,
        };
        let shift = 8 * (at & 3);
        let byte = (*register >> shift) as u8;
        *register &= !(0xff << shift);
        byte
    }

    /// Writes a byte. Returns the slots, as bits, whose device the guest gives up. A device that it was not
    /// asked for stays.
    pub fn write(&mut self, at: u16, value: u8) -> u32 {
        if at & !3 != EJECT {
            return 0;
        }
        let slots = u32::from(value) << (8 * (at & 3)) & self.may_eject;
        self.may_eject &= !slots;
        self.asked &= !slots;
        self.came &= !slots;
        slots
    }
}

fn bit(slot: u8) -> u32 {
    1u32.checked_shl(slot.into()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_told_once() {
        let mut registers = SlotRegisters::default();
        registers.came(1);
        registers.came(31);
        registers.ask(9);
        assert_eq!((registers.read(0), registers.read(0)), (0b10, 0));
        assert_eq!((registers.read(3), registers.read(3)), (0x80, 0));
        assert_eq!(registers.read(4), 0);
        assert_eq!((registers.read(5), registers.read(5)), (0b10, 0));
        assert_eq!((registers.read(8), registers.read(12)), (0, 0));
    }

    #[test]
    fn only_what_was_asked_for_goes_and_only_once() {
        let mut registers = SlotRegisters::default();
        registers.came(3);
        assert_eq!(registers.write(EJECT, 0xff), 0);
        registers.ask(3);
        registers.ask(12);
        assert_eq!(registers.write(CAME, 0xff), 0);
        assert_eq!(registers.write(EJECT, 0xff), 1 << 3);
        assert_eq!(registers.write(EJECT, 0xff), 0);
        assert_eq!(registers.write(EJECT + 1, 0xff), 1 << 12);
        assert_eq!((registers.read(CAME), registers.read(ASKED)), (0, 0));
    }

    #[test]
    fn a_new_device_was_not_asked_for() {
        let mut registers = SlotRegisters::default();
        registers.ask(3);
        registers.came(3);
        assert_eq!(registers.read(ASKED), 0);
        assert_eq!(registers.write(EJECT, 0xff), 0);
    }
}
