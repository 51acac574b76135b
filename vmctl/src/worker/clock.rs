//! KVM's paravirtual clock, which Linux and the BSDs know.
//!
//! Source: Linux `Documentation/virt/kvm/x86/msr.rst`. A VM has one [`Clock`]: the guest's TSC runs at a constant rate
//! on every CPU, so the same parameters serve every virtual CPU for good (`FLAG_TSC_STABLE`), and are written once,
//! when the guest asks for them.

use std::sync::atomic::Ordering;

use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryError, Permissions};

use super::memory::Memory;

/// Time is the same on all virtual CPUs: the guest need not compare it among them.
const FLAG_TSC_STABLE: u8 = 1 << 0;

/// Nanoseconds from TSC ticks: `(ticks << shift) * mul >> 32`. A negative shift goes right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Scale {
    mul: u32,
    shift: i8,
}

impl Scale {
    /// Returns the scale for a TSC of `khz`; 0 counts as 1. `mul` keeps at least 31 significant bits.
    fn from_khz(khz: u64) -> Self {
        const SECOND: u128 = 1_000_000_000 << 32;
        let hz = u128::from(khz.max(1)) * 1000;
        // The shift that brings the frequency into (1 GHz, 2 GHz], as KVM chooses it.
        let mut shift = 0_i8;
        while hz << (32 + shift) <= SECOND {
            shift += 1;
        }
        while hz << (32 + shift) > SECOND << 1 && shift > -32 {
            shift -= 1;
        }
        let mul = ((SECOND << 32) / (hz << (32 + shift))) as u32;
        Self { mul, shift }
    }
}

/// A VM's clock. System time 0 is guest TSC 0.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    scale: Scale,
    /// Nanoseconds since 1970 at system time 0.
    boot: u64,
}

impl Clock {
    /// Makes the clock of a VM whose TSC has `tsc_khz`, and was 0 at `boot` nanoseconds since 1970.
    pub(super) fn new(tsc_khz: u64, boot: u64) -> Self {
        Self {
            scale: Scale::from_khz(tsc_khz),
            boot,
        }
    }

    /// Writes `struct pvclock_vcpu_time_info` to guest memory.
    ///
    /// # Errors
    ///
    /// Fails, with nothing written, if the address is misaligned or there is no RAM.
    pub(super) fn write_system_time(&self, ram: &Memory, at: u64) -> Result<(), GuestMemoryError> {
        // After the version: padding, the TSC (64 bits) and the system time (64 bits) at which the parameters begin,
        // which are both 0; the scale; flags.
        let flags = u32::from_le_bytes([self.scale.shift as u8, FLAG_TSC_STABLE, 0, 0]);
        write(ram, at, &[0, 0, 0, 0, 0, self.scale.mul, flags])
    }

    /// Writes `struct pvclock_wall_clock` to guest memory: the time at system time 0.
    ///
    /// # Errors
    ///
    /// Fails, with nothing written, if the address is misaligned or there is no RAM.
    pub(super) fn write_wall_clock(&self, ram: &Memory, at: u64) -> Result<(), GuestMemoryError> {
        let seconds = (self.boot / 1_000_000_000) as u32;
        let nanoseconds = (self.boot % 1_000_000_000) as u32;
        write(ram, at, &[seconds, nanoseconds])
    }
}

/// Writes a record in the order in which the guest must see it: an odd version, the body, the next even version.
fn write(ram: &Memory, at: u64, body: &[u32]) -> Result<(), GuestMemoryError> {
    let base = GuestAddress(at);
    if !ram.check_range(base, 4 * (body.len() + 1), Permissions::Write) {
        return Err(GuestMemoryError::InvalidGuestAddress(base));
    }
    let odd = ram.load::<u32>(base, Ordering::Relaxed)?.wrapping_add(1) | 1;
    ram.store(odd, base, Ordering::SeqCst)?;
    for (place, word) in (1..).zip(body) {
        ram.store(*word, GuestAddress(at + 4 * place), Ordering::SeqCst)?;
    }
    ram.store(odd.wrapping_add(1), base, Ordering::SeqCst)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ram() -> Memory {
        Memory::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap()
    }

    /// The nanoseconds that a guest computes (`pvclock_scale_delta`).
    fn guest(ram: &Memory, at: u64, tsc: u64) -> u64 {
        let mul: u32 = ram.read_obj(GuestAddress(at + 24)).unwrap();
        let shift: i8 = ram.read_obj(GuestAddress(at + 28)).unwrap();
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
            let (ram, clock) = (ram(), Clock::new(khz, 0));
            clock.write_system_time(&ram, 0x100).unwrap();
            let got = guest(&ram, 0x100, khz * 1000 * seconds);
            let wanted = seconds * 1_000_000_000;
            prop_assert!(got.abs_diff(wanted) <= 2 + (wanted >> 30), "{got} {wanted}");
            prop_assert!(clock.scale.mul >= 1 << 31);
        }
    }

    #[test]
    fn records_have_kvms_form() {
        let ram = ram();
        let clock = Clock::new(1_000_000, 1_700_000_000_000_000_123);
        for (before, after) in [(0_u32, 2_u32), (7, 10), (u32::MAX, 2)] {
            ram.write_obj(before, GuestAddress(0x20)).unwrap();
            clock.write_wall_clock(&ram, 0x20).unwrap();
            let record: [u32; 3] = ram.read_obj(GuestAddress(0x20)).unwrap();
            assert_eq!(record, [after, 1_700_000_000, 123]);
        }
        clock.write_system_time(&ram, 0x40).unwrap();
        let record: [u32; 8] = ram.read_obj(GuestAddress(0x40)).unwrap();
        assert_eq!(record, [2, 0, 0, 0, 0, 0, 0x8000_0000, 0x0101]);
    }

    #[test]
    fn a_place_that_is_no_ram_is_an_error() {
        let (ram, clock) = (ram(), Clock::new(1_000_000, 0));
        for at in [0x1000, 0xff0, 0x102, u64::MAX] {
            assert!(clock.write_system_time(&ram, at).is_err(), "{at:#x}");
        }
        let byte: u8 = ram.read_obj(GuestAddress(0xff0)).unwrap();
        assert_eq!(byte, 0);
    }
}
