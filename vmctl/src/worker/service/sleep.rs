//! A guest's sleep, as the device thread tells of it, and what wakes the guest.
//!
//! Pure: the caller gives the time.

use std::time::{Duration, Instant};

/// The least time between two changes that are told: a guest changes its mind as often as it likes.
const GAP: Duration = Duration::from_secs(1);
/// Time after a guest's wake-up at which the power button is pressed: the guest's driver ignores the button until the
/// guest's devices are back (Linux `drivers/acpi/button.c`).
const WAKING: Duration = Duration::from_secs(2);

/// The daemon's knowledge of a guest's sleep.
#[derive(Debug, Default)]
pub(super) struct Sleep {
    /// The guest sleeps, as far as was told.
    is_asleep: bool,
    told_at: Option<Instant>,
    /// The power button is to be pressed once the guest is awake.
    owes_press: bool,
    press_at: Option<Instant>,
}

impl Sleep {
    /// Notes whether the guest sleeps now. Returns what is to be told, if that is something new.
    pub(super) fn look(&mut self, is_asleep: bool, now: Instant) -> Option<&'static str> {
        if is_asleep == self.is_asleep || self.told_at.is_some_and(|at| now < at + GAP) {
            return None;
        }
        self.is_asleep = is_asleep;
        self.told_at = Some(now);
        if !is_asleep && std::mem::take(&mut self.owes_press) {
            self.press_at = Some(now + WAKING);
        }
        Some(if is_asleep {
            "guest asleep"
        } else {
            "guest woke up"
        })
    }

    /// The power button is to be pressed once the guest is awake.
    pub(super) fn press_when_awake(&mut self) {
        self.owes_press = true;
    }

    /// Whether the power button is to be pressed now, which is so once.
    pub(super) fn presses(&mut self, now: Instant) -> bool {
        self.press_at.take_if(|at| *at <= now).is_some()
    }

    /// When to look again.
    pub(super) fn next_look(&self, is_asleep: bool) -> Option<Instant> {
        let change = self.told_at.filter(|_| is_asleep != self.is_asleep);
        change
            .map(|at| at + GAP)
            .into_iter()
            .chain(self.press_at)
            .min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_told_at_most_once_a_second() {
        let mut sleep = Sleep::default();
        let start = Instant::now();
        assert_eq!(sleep.look(false, start), None);
        assert_eq!(sleep.look(true, start), Some("guest asleep"));
        assert_eq!(sleep.look(false, start + GAP / 2), None);
        assert_eq!(sleep.next_look(false), Some(start + GAP));
        assert_eq!(sleep.next_look(true), None, "it sleeps again");
        assert_eq!(sleep.look(false, start + GAP), Some("guest woke up"));
        assert_eq!(sleep.next_look(false), None);
    }

    #[test]
    fn the_button_is_pressed_when_the_guest_is_awake() {
        let mut sleep = Sleep::default();
        let start = Instant::now();
        sleep.look(true, start);
        sleep.press_when_awake();
        assert!(!sleep.presses(start + 10 * WAKING), "it sleeps");
        let awake = start + 20 * WAKING;
        sleep.look(false, awake);
        assert_eq!(sleep.next_look(false), Some(awake + WAKING));
        assert!(!sleep.presses(awake));
        assert!(sleep.presses(awake + WAKING));
        assert!(!sleep.presses(awake + 2 * WAKING), "once");
    }
}
