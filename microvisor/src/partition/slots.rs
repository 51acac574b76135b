//! The virtual CPUs of a partition, by index.
//!
//! A slot's lock is held for writing only to make a virtual CPU and to end it. It is held for reading while the
//! virtual CPU runs, or while another call reads its state; taking it for reading never waits. So a virtual CPU can
//! post to another one of its partition while either runs, and a partition ends only when no slot is held. Code that
//! holds a slot without running the virtual CPU has the control lock, or a claim ([`Vcpu::claim`]).

use core::sync::atomic::{AtomicU64, Ordering};

use guest_proto::limits::MAX_VCPUS;
use spin::RwLock;

use super::PartitionError;
use crate::memory::Memory;
use crate::memory::physmap::Placed;
use crate::memory::pool::Pool;
use crate::vcpu::Vcpu;

const SLOTS: usize = MAX_VCPUS as usize;

/// The slots of a partition.
#[derive(Debug)]
pub struct VcpuSlots {
    slots: [RwLock<Option<Placed<Vcpu>>>; SLOTS],
    /// Set of the indices that have a virtual CPU.
    present: AtomicU64,
}

impl VcpuSlots {
    /// Slots without any virtual CPU.
    pub const fn new() -> Self {
        Self {
            slots: [const { RwLock::new(None) }; SLOTS],
            present: AtomicU64::new(0),
        }
    }

    /// Calls `then` with the virtual CPU of this index, if there is one.
    pub fn with<R>(&self, index: u64, then: impl FnOnce(&Vcpu) -> R) -> Option<R> {
        let slot = self.slots.get(usize::try_from(index).ok()?)?.read();
        slot.as_deref().map(then)
    }

    /// Returns whether there is a virtual CPU of this index.
    pub fn exists(&self, index: u64) -> bool {
        self.with(index, |_| ()).is_some()
    }

    /// Returns the set of the indices that have a virtual CPU.
    pub fn present(&self) -> u64 {
        self.present.load(Ordering::Acquire)
    }

    /// Puts a virtual CPU into its slot. The caller holds the partition's control lock, and the slot is empty.
    pub fn insert(&self, index: u64, vcpu: Placed<Vcpu>) {
        let slot = usize::try_from(index).ok().and_then(|n| self.slots.get(n));
        if let Some(slot) = slot {
            *slot.write() = Some(vcpu);
            self.present.fetch_or(1 << index, Ordering::Release);
        }
    }

    /// Calls `then` while no virtual CPU is in use.
    ///
    /// # Errors
    ///
    /// Fails with [`PartitionError::Busy`] if one is in use, and does not call `then`.
    pub fn stop_for_good(&self, then: impl FnOnce()) -> Result<(), PartitionError> {
        let mut held = [const { None }; SLOTS];
        for (guard, slot) in held.iter_mut().zip(&self.slots) {
            *guard = Some(slot.try_write().ok_or(PartitionError::Busy)?);
        }
        then();
        Ok(())
    }

    /// Ends every virtual CPU: its frames go to the pool, its page goes to root. Returns the count of these
    /// pages. [`VcpuSlots::stop_for_good`] came before.
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
