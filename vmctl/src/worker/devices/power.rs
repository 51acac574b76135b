//! ACPI's fixed hardware: power button, power-off, and what the guest tells of its sleep.
//!
//! Sources: ACPI 6.5 §4.8.3.1 (PM1 event registers), §4.8.3.2 (PM1 control registers). A guest with this hardware has an
//! interrupt (SCI) that ends suspend-to-idle, which a Generic Event Device does not.

/// Bits of the PM1 event registers: firmware has released the global lock.
const GLOBAL_LOCK: u16 = 1 << 5;
/// The power button.
const POWER_BUTTON: u16 = 1 << 8;
/// The alarm of the real-time clock, which never comes. Linux enables it for a moment, though the FADT says that it is
/// not there, and prints an error if the enable bit does not stay (`acpi_rtc_event_setup` in `drivers/rtc/rtc-cmos.c`).
const RTC_ALARM: u16 = 1 << 10;
/// Events with an enable bit.
const EVENTS: u16 = GLOBAL_LOCK | POWER_BUTTON | RTC_ALARM;
/// PM1 control: events make the SCI, not an SMI. It is always so.
const SCI_ENABLE: u8 = 1 << 0;
/// PM1 control, upper byte: `SLP_EN`.
const SLEEP_ENABLE: u8 = 1 << 5;
/// PM1 control, upper byte: lowest bit of `SLP_TYP`.
const SLEEP_TYPE_SHIFT: u8 = 2;

/// State of the fixed hardware.
#[derive(Debug, Default)]
pub(super) struct Power {
    /// PM1 status: events that the guest has not seen.
    status: u16,
    /// PM1 enable.
    enabled: u16,
    is_asleep: bool,
    /// `is_asleep` has changed since [`Self::take_change`].
    has_changed: bool,
}

impl Power {
    /// The state of the SCI's line.
    pub(super) fn line(&self) -> bool {
        self.status & self.enabled != 0
    }

    /// Presses the power button.
    pub(super) fn press(&mut self) {
        self.status |= POWER_BUTTON;
    }

    /// Wakes a guest that sleeps. Any event that is enabled does; this one means nothing to a kernel that waits for no lock, while the
    /// power button, which wakes too, may be seen again after the sleep and power the guest off.
    pub(super) fn wake(&mut self) {
        self.status |= GLOBAL_LOCK;
    }

    /// Reads a byte of the PM1 event registers: two of status, two of enable.
    pub(super) fn read_event(&self, offset: u16) -> u8 {
        let registers = u32::from(self.enabled) << 16 | u32::from(self.status);
        registers.to_le_bytes()[usize::from(offset & 3)]
    }

    /// Writes a byte of the PM1 event registers.
    pub(super) fn write_event(&mut self, offset: u16, value: u8) {
        let shift = 8 * (offset & 1);
        let (bits, byte) = (u16::from(value) << shift, 0xff << shift);
        if offset & 2 == 0 {
            // A kernel clears an event before it enables it: a press from before that time stays, so that its driver sees it.
            let early = POWER_BUTTON & !self.enabled;
            self.status &= !bits | early;
        } else {
            self.enabled = (self.enabled & !byte | bits) & EVENTS;
        }
    }

    /// Reads a byte of the PM1 control register.
    pub(super) fn read_control(offset: u16) -> u8 {
        if offset == 0 { SCI_ENABLE } else { 0 }
    }

    /// Returns the sleep type that a write to a byte of the PM1 control register starts.
    pub(super) fn sleep_type(offset: u16, value: u8) -> Option<u8> {
        let starts = offset == 1 && value & SLEEP_ENABLE != 0;
        starts.then_some(value >> SLEEP_TYPE_SHIFT & 0x7)
    }

    /// The guest says whether it sleeps.
    pub(super) fn set_asleep(&mut self, is_asleep: bool) {
        self.has_changed |= self.is_asleep != is_asleep;
        self.is_asleep = is_asleep;
    }

    /// Whether the guest has gone to sleep or woken up since [`Self::take_change`].
    pub(super) fn has_changed(&self) -> bool {
        self.has_changed
    }

    /// Whether the guest has gone to sleep or woken up since the last call.
    pub(super) fn take_change(&mut self) -> bool {
        std::mem::take(&mut self.has_changed)
    }

    pub(super) fn is_asleep(&self) -> bool {
        self.is_asleep
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: u16 = 1;
    const ENABLE: u16 = 3;
    const BUTTON: u8 = 1;
    const RTC: u8 = 1 << 2;

    #[test]
    fn a_press_is_seen_once() {
        let mut power = Power::default();
        power.write_event(ENABLE, 0xff);
        assert_eq!(
            power.read_event(ENABLE),
            BUTTON | RTC,
            "others are not there"
        );
        assert!(!power.line());
        power.press();
        assert!(power.line());
        assert_eq!((power.read_event(0), power.read_event(STATUS)), (0, BUTTON));
        power.write_event(0, 0xff);
        assert!(power.line(), "another event was cleared");
        power.write_event(STATUS, BUTTON);
        assert!(!power.line());
        assert_eq!(power.read_event(STATUS), 0);
    }

    #[test]
    fn a_press_waits_for_the_guests_driver() {
        let mut power = Power::default();
        power.press();
        assert!(!power.line());
        // ACPICA clears the bit, then enables the event, then reads the bit.
        power.write_event(STATUS, BUTTON);
        power.write_event(2, 0);
        power.write_event(ENABLE, BUTTON);
        assert_eq!(power.read_event(ENABLE), BUTTON);
        assert!(power.line());
    }

    #[test]
    fn a_guest_is_woken_without_a_press() {
        const GLOBAL: u8 = 1 << 5;
        let mut power = Power::default();
        power.wake();
        power.write_event(0, GLOBAL);
        power.write_event(2, GLOBAL);
        assert!(!power.line(), "it was cleared before");
        power.wake();
        assert!(power.line());
        assert_eq!((power.read_event(0), power.read_event(STATUS)), (GLOBAL, 0));
        power.write_event(0, GLOBAL);
        assert!(!power.line());
    }

    #[test]
    fn only_the_enable_bit_starts_a_sleep() {
        assert_eq!(Power::sleep_type(1, 5 << 2), None);
        assert_eq!(Power::sleep_type(1, 5 << 2 | SLEEP_ENABLE), Some(5));
        assert_eq!(Power::sleep_type(0, 0xff), None);
    }
}
