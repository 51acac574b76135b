//! KVM's paravirtual clock, which Linux and the BSDs know.
//!
//! Source: Linux `Documentation/virt/kvm/x86/msr.rst`. A partition has one [`PvClock`]: the guest's
//! TSC runs at a constant rate on every CPU, so the same parameters serve every virtual CPU for
//! good (`FLAG_TSC_STABLE`), and are written once, when the guest asks for them.

/// Time is the same on all virtual CPUs: no need to compare it among them.
const FLAG_TSC_STABLE: u8 = 1 << 0;

/// Nanoseconds from TSC ticks: `(ticks << shift) * mul >> 32` (a negative shift goes right).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale {
    mul: u32,
    shift: i8,
}

impl Scale {
    /// For a TSC of this many kHz; 0 counts as 1. `mul` keeps at least 31 significant bits.
    pub const fn from_khz(khz: u64) -> Self {
        let hz = if khz == 0 { 1000 } else { khz as u128 * 1000 };
        // The shift that brings the frequency into (1 GHz, 2 GHz], as KVM chooses it.
        const SECOND: u128 = 1_000_000_000 << 32;
        let mut shift = 0;
        while hz << (32 + shift) <= SECOND {
            shift += 1;
        }
        while hz << (32 + shift) > SECOND << 1 && shift > -32 {
            shift -= 1;
        }
        let mul = ((SECOND << 32) / (hz << (32 + shift))) as u32;
        Self {
            mul,
            shift: shift as i8,
        }
    }

    /// Nanoseconds of this many ticks.
    pub const fn nanoseconds(self, ticks: u64) -> u64 {
        let ticks = ticks as u128;
        let shifted = if self.shift < 0 {
            ticks >> -self.shift
        } else {
            ticks << self.shift
        };
        ((shifted * self.mul as u128) >> 32) as u64
    }
}

/// A partition's clock: guest TSC 0 is system time 0.
#[derive(Clone, Copy, Debug)]
pub struct PvClock {
    scale: Scale,
    /// Nanoseconds since 1970 at system time 0.
    boot: u64,
}

/// One of the two structures, and how it goes to memory.
#[derive(Clone, Copy, Debug)]
pub struct Record<const N: usize> {
    body: [u8; N],
}

/// System time as nanoseconds since the guest began to exist.
pub type SystemTime = Record<28>;
/// Wall clock time at system time 0.
pub type WallClock = Record<8>;

impl<const N: usize> Record<N> {
    /// Bytes in guest memory.
    pub const SIZE: usize = N + 4;

    /// Hands out offset and bytes of each write, in the order in which the guest must see them: an
    /// odd version, the rest, the next even version. `version` is what stands there now.
    pub fn write(&self, version: u32, mut to_guest: impl FnMut(u64, &[u8])) {
        let odd = version.wrapping_add(1) | 1;
        to_guest(0, &odd.to_le_bytes());
        to_guest(4, &self.body);
        to_guest(0, &odd.wrapping_add(1).to_le_bytes());
    }
}

impl PvClock {
    /// A clock that shows `wall` (nanoseconds since 1970) at guest TSC `now`.
    pub fn new(tsc_khz: u64, wall: u64, now: u64) -> Self {
        let scale = Scale::from_khz(tsc_khz);
        Self {
            scale,
            boot: wall.saturating_sub(scale.nanoseconds(now)),
        }
    }

    /// What MSR_SYSTEM_TIME asks for.
    pub fn system_time(&self) -> SystemTime {
        let mut body = [0; 28];
        // tsc_timestamp (at 8) and system_time (at 16) stay 0.
        body[20..24].copy_from_slice(&self.scale.mul.to_le_bytes());
        body[24] = self.scale.shift as u8;
        body[25] = FLAG_TSC_STABLE;
        Record { body }
    }

    /// What MSR_WALL_CLOCK asks for.
    pub fn wall_clock(&self) -> WallClock {
        let seconds = (self.boot / 1_000_000_000) as u32;
        let nanoseconds = (self.boot % 1_000_000_000) as u32;
        let mut body = [0; 8];
        body[..4].copy_from_slice(&seconds.to_le_bytes());
        body[4..].copy_from_slice(&nanoseconds.to_le_bytes());
        Record { body }
    }

    /// Nanoseconds since 1970 at guest TSC `now`.
    pub fn wall(&self, now: u64) -> u64 {
        self.boot.saturating_add(self.scale.nanoseconds(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    /// What a guest computes (`pvclock_scale_delta`).
    fn guest(record: &SystemTime, tsc: u64) -> u64 {
        let b = &record.body;
        let mul = u32::from_le_bytes([b[20], b[21], b[22], b[23]]);
        let shift = b[24] as i8;
        let delta = if shift < 0 {
            tsc >> -shift
        } else {
            tsc << shift
        };
        ((u128::from(delta) * u128::from(mul)) >> 32) as u64
    }

    proptest! {
        #[test]
        fn an_hour_is_an_hour(khz in 100_000_u64..=100_000_000, seconds in 1_u64..3600) {
            let clock = PvClock::new(khz, 0, 0);
            let got = guest(&clock.system_time(), khz * 1000 * seconds);
            let wanted = seconds * 1_000_000_000;
            prop_assert!(got.abs_diff(wanted) <= 2 + (wanted >> 30), "{got} {wanted}");
            prop_assert_eq!(clock.scale.nanoseconds(khz * 1000 * seconds), got);
            prop_assert!(clock.scale.mul >= 1 << 31);
        }
    }

    #[test]
    fn writes_are_framed_by_versions() {
        let clock = PvClock::new(1_000_000, 1_700_000_000_000_000_123, 0);
        for (before, odd, even) in [(0_u32, 1_u32, 2_u32), (7, 9, 10), (u32::MAX, 1, 2)] {
            let mut writes = Vec::new();
            clock
                .wall_clock()
                .write(before, |at, bytes| writes.push((at, bytes.to_vec())));
            let mut body = 1_700_000_000_u32.to_le_bytes().to_vec();
            body.extend(123_u32.to_le_bytes());
            assert_eq!(
                writes,
                [
                    (0, odd.to_le_bytes().to_vec()),
                    (4, body),
                    (0, even.to_le_bytes().to_vec())
                ]
            );
        }
    }

    #[test]
    fn wall_time_goes_on() {
        let clock = PvClock::new(2_000_000, 5_000_000_000, 4_000_000_000);
        assert_eq!(clock.wall(0) / 1_000_000, 3_000);
        assert_eq!((clock.wall(8_000_000_000) + 1_000) / 1_000_000_000, 7);
    }
}
