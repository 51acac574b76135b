//! Guest time: its TSC, and kvmclock's records in its memory.

use super::Partition;
use crate::memory::nested::lookup;
use crate::memory::{Gpa, Hpa, Memory};
use crate::vcpu::Local;
use crate::vcpu::pvclock::{PvClock, Record};

/// Why a record was not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClockError {
    /// Misaligned: #GP.
    BadAddress,
    /// There is no RAM there, or not yet.
    NotMapped(u64),
}

impl Partition {
    /// What to add to this CPU's time-stamp counter to have a virtual CPU's.
    pub fn tsc_offset(&self, local: &Local) -> u64 {
        local.tsc_adjust.wrapping_sub(self.properties.tsc_zero())
    }

    /// The clock that the properties describe.
    pub(super) fn clock(&self) -> PvClock {
        let (wall, at) = self.properties.wall();
        let guest_at = at.wrapping_sub(self.properties.tsc_zero());
        PvClock::new(self.properties.tsc_khz(), wall, guest_at)
    }

    /// Writes a record into guest memory at `address`.
    pub(super) fn write_record<const N: usize>(
        &self,
        memory: &Memory,
        address: u64,
        record: &Record<N>,
    ) -> Result<(), ClockError> {
        if !address.is_multiple_of(4) {
            return Err(ClockError::BadAddress);
        }
        // Every word is looked up before the first is written.
        let words = Record::<N>::SIZE as u64 / 4;
        for n in 0..words {
            self.word(memory, address + 4 * n)?;
        }
        let version = self
            .word(memory, address)?
            .load(core::sync::atomic::Ordering::Relaxed);
        record.write(version, |offset, bytes| {
            for (n, word) in bytes.as_chunks::<4>().0.iter().enumerate() {
                if let Ok(place) = self.word(memory, address + offset + 4 * n as u64) {
                    place.store(
                        u32::from_le_bytes(*word),
                        core::sync::atomic::Ordering::Release,
                    );
                }
            }
        });
        Ok(())
    }

    fn word<'a>(
        &self,
        memory: &'a Memory,
        address: u64,
    ) -> Result<&'a core::sync::atomic::AtomicU32, ClockError> {
        let missing = ClockError::NotMapped(address);
        let gpa = Gpa::new(address);
        let (frame, writable) = self
            .top()
            .and_then(|top| lookup(&memory.map, top, gpa.page()))
            .ok_or(missing)?;
        if gpa.as_u64() != address || !writable {
            return Err(missing);
        }
        let at = Hpa::new(frame.base().as_u64() + gpa.page_offset());
        memory.map.atomic32(at).ok_or(missing)
    }
}
