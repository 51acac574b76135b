//! The CMOS real-time clock (Motorola MC146818): the host's UTC date, read-only, without alarms.
//!
//! An update is never seen in progress: a reader that finds UIP clear may read all registers, and
//! what it reads is latched with the seconds.

use std::time::{SystemTime, UNIX_EPOCH};

/// Registers.
mod register {
    pub(super) const SECONDS: u8 = 0x00;
    pub(super) const MINUTES: u8 = 0x02;
    pub(super) const HOURS: u8 = 0x04;
    pub(super) const WEEKDAY: u8 = 0x06;
    pub(super) const DAY: u8 = 0x07;
    pub(super) const MONTH: u8 = 0x08;
    pub(super) const YEAR: u8 = 0x09;
    pub(super) const A: u8 = 0x0a;
    pub(super) const B: u8 = 0x0b;
    pub(super) const C: u8 = 0x0c;
    pub(super) const D: u8 = 0x0d;
    pub(super) const CENTURY: u8 = 0x32;
}

/// Register A: the divider of a running clock at 32,768 Hz, the usual rate.
const RUNNING: u8 = 0x26;
/// Register B: 24 hours.
const HOURS_24: u8 = 1 << 1;
/// Register B: binary instead of BCD.
const BINARY: u8 = 1 << 2;
/// Register B: updates are halted while the clock is set.
const SET: u8 = 1 << 7;
/// Register D: the battery is good.
const VALID: u8 = 1 << 7;
const PM: u8 = 1 << 7;

/// The clock and its 128 bytes.
#[derive(Debug)]
pub(super) struct Rtc {
    index: u8,
    ram: [u8; 128],
    /// Seconds since 1970 that the date registers show.
    shown: u64,
}

impl Rtc {
    pub(super) fn new() -> Self {
        let mut ram = [0; 128];
        ram[usize::from(register::A)] = RUNNING;
        ram[usize::from(register::B)] = HOURS_24;
        Self {
            index: 0,
            ram,
            shown: now(),
        }
    }

    pub(super) fn select(&mut self, index: u8) {
        // Bit 7 is the NMI mask.
        self.index = index & 0x7f;
    }

    pub(super) fn read(&mut self) -> u8 {
        if matches!(self.index, register::SECONDS | register::A) && self.mode() & SET == 0 {
            self.shown = now();
        }
        self.value()
    }

    fn mode(&self) -> u8 {
        self.ram[usize::from(register::B)]
    }

    fn value(&self) -> u8 {
        let date = Date::from_unix(self.shown);
        match self.index {
            register::SECONDS => self.encode(date.second),
            register::MINUTES => self.encode(date.minute),
            register::HOURS => self.hours(date.hour),
            register::WEEKDAY => self.encode(date.weekday),
            register::DAY => self.encode(date.day),
            register::MONTH => self.encode(date.month),
            register::YEAR => self.encode((date.year % 100) as u8),
            register::CENTURY => self.encode((date.year / 100) as u8),
            // No interrupt is pending.
            register::C => 0,
            register::D => VALID,
            index => self.ram[usize::from(index)],
        }
    }

    pub(super) fn write(&mut self, value: u8) {
        match self.index {
            register::SECONDS
            | register::MINUTES
            | register::HOURS
            | register::WEEKDAY..=register::YEAR
            | register::CENTURY
            | register::C
            | register::D => {}
            // UIP is read-only.
            register::A => self.ram[usize::from(register::A)] = value & 0x7f,
            index => self.ram[usize::from(index)] = value,
        }
    }

    fn encode(&self, value: u8) -> u8 {
        if self.mode() & BINARY != 0 {
            value
        } else {
            ((value / 10) << 4) | (value % 10)
        }
    }

    fn hours(&self, hour: u8) -> u8 {
        if self.mode() & HOURS_24 != 0 {
            return self.encode(hour);
        }
        let half = if hour >= 12 { PM } else { 0 };
        self.encode((hour + 11) % 12 + 1) | half
    }
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// A UTC date in the Gregorian calendar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Date {
    year: u64,
    month: u8,
    day: u8,
    /// 1 is Sunday.
    weekday: u8,
    hour: u8,
    minute: u8,
    second: u8,
}

impl Date {
    fn from_unix(seconds: u64) -> Self {
        let (days, rest) = (seconds / 86_400, seconds % 86_400);
        // Years that start in March put the leap day last; eras of 400 years repeat. 719,468 days
        // lie between 0000-03-01 and 1970-01-01.
        let shifted = days + 719_468;
        let (era, day) = (shifted / 146_097, shifted % 146_097);
        let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
        let day = day - (365 * year + year / 4 - year / 100);
        let month = (5 * day + 2) / 153;
        let day_of_month = day - (153 * month + 2) / 5 + 1;
        let (month, carry) = if month < 10 {
            (month + 3, 0)
        } else {
            (month - 9, 1)
        };
        Self {
            year: era * 400 + year + carry,
            month: month as u8,
            day: day_of_month as u8,
            weekday: ((days + 4) % 7 + 1) as u8,
            hour: (rest / 3600) as u8,
            minute: (rest / 60 % 60) as u8,
            second: (rest % 60) as u8,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_of_the_calendar() {
        let date = |seconds| {
            let d = Date::from_unix(seconds);
            (
                d.year, d.month, d.day, d.weekday, d.hour, d.minute, d.second,
            )
        };
        assert_eq!(date(0), (1970, 1, 1, 5, 0, 0, 0));
        assert_eq!(date(951_782_400), (2000, 2, 29, 3, 0, 0, 0));
        assert_eq!(date(1_767_225_599), (2025, 12, 31, 4, 23, 59, 59));
        assert_eq!(date(4_107_542_400), (2100, 3, 1, 2, 0, 0, 0));
    }

    #[test]
    fn modes() {
        let mut rtc = Rtc::new();
        rtc.shown = 1_767_225_599;
        rtc.select(register::MINUTES);
        assert_eq!(rtc.read(), 0x59);
        rtc.select(register::B);
        rtc.write(BINARY);
        rtc.select(register::MINUTES);
        assert_eq!(rtc.read(), 59);
        rtc.select(register::HOURS);
        assert_eq!(rtc.read(), 11 | PM);
        rtc.select(register::CENTURY);
        assert_eq!(rtc.read(), 20);
    }

    #[test]
    fn an_update_is_never_in_progress_and_ram_is_kept() {
        let mut rtc = Rtc::new();
        rtc.select(register::A | 0x80);
        rtc.write(0xff);
        assert_eq!(rtc.read() & 0x80, 0);
        rtc.select(0x40);
        rtc.write(7);
        assert_eq!(rtc.read(), 7);
    }
}
