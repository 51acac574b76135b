//! The virtual CPUs of a partition, by index.
//!
//! A slot's lock is written only to make a virtual CPU and to end it, and held for reading while
//! one runs or is looked at, which never waits on the way in. So a virtual CPU can post to another
//! of its partition while either runs, and the object stays; and a partition ends only when no
//! slot is held. Who holds one without running it has the control lock, or a claim on it
//! ([`Vcpu::claim`]).

use core::sync::atomic::{AtomicU64, Ordering};

use guest_proto::limits::MAX_VCPUS;
use spin::RwLock;

use super::PartitionError;
use crate::memory::Memory;
use crate::memory::physmap::Placed;
use crate::memory::pool::Pool;
use crate::vcpu::Vcpu;

const SLOTS: usize = MAX_VCPUS as usize;

/// The slots.
#[derive(Debug)]
pub struct VcpuSlots {
    slots: [RwLock<Option<Placed<Vcpu>>>; SLOTS],
    /// The indices that have one.
    present: AtomicU64,
}

impl VcpuSlots {
    /// No virtual CPU.
    pub const fn new() -> Self {
        Self {
            slots: [const { RwLock::new(None) }; SLOTS],
            present: AtomicU64::new(0),
        }
    }

    /// Does something with a virtual CPU, if there is one of this index.
    pub fn with<R>(&self, index: u64, then: impl FnOnce(&Vcpu) -> R) -> Option<R> {
        let slot = self.slots.get(usize::try_from(index).ok()?)?.read();
        slot.as_deref().map(then)
    }

    /// Whether there is one of this index.
    pub fn exists(&self, index: u64) -> bool {
        self.with(index, |_| ()).is_some()
    }

    /// The indices that have one, as a set.
    pub fn present(&self) -> u64 {
        self.present.load(Ordering::Acquire)
    }

    /// Puts one in its slot. The caller holds the partition's control lock and has made sure that
    /// the slot is empty.
    pub fn insert(&self, index: u64, vcpu: Placed<Vcpu>) {
        let slot = usize::try_from(index).ok().and_then(|n| self.slots.get(n));
        if let Some(slot) = slot {
            *slot.write() = Some(vcpu);
            self.present.fetch_or(1 << index, Ordering::Release);
        }
    }

    /// Makes sure that no virtual CPU is in use, then does `then` before one can be used again.
    pub fn stop_for_good(&self, then: impl FnOnce()) -> Result<(), PartitionError> {
        let mut held = [const { None }; SLOTS];
        for (guard, slot) in held.iter_mut().zip(&self.slots) {
            *guard = Some(slot.try_write().ok_or(PartitionError::Busy)?);
        }
        then();
        Ok(())
    }

    /// Ends every virtual CPU: its frames go to the pool, its page to root. Answers how many
    /// pages those were. [`VcpuSlots::stop_for_good`] came before.
    pub fn remove_all(&self, memory: &Memory, pool: &mut Pool) -> u64 {
        let mut pages = 0;
        self.present.store(0, Ordering::Release);
        for slot in &self.slots {
            // Readers look, see that the partition ends, and leave: this does not wait long.
            let Some(placed) = slot.write().take() else {
                continue;
            };
            let (vcpu, frame) = placed.into_parts();
            pages += u64::from(vcpu.end(memory, pool));
            pool.put(memory, frame);
        }
        pool.seal(&memory.epochs);
        pages
    }
}

impl Default for VcpuSlots {
    fn default() -> Self {
        Self::new()
    }
}
