//! Partitions: their table, their parts, and the turns of their virtual CPUs.
//!
//! A partition is a pool of metadata frames, a nested map, doorbells, properties and virtual CPUs.
//! It is *free*, *live* or *ending*. It becomes free, and its number can be used again, when its last frame is
//! root's again.
//!
//! Locks, in order: [`Partition::control`], then a virtual CPU's claim, then `Memory::root`. A
//! claim is tried for, and never waited for. Running a virtual CPU takes its claim and
//! reads atomics; it never takes `control`.

mod answer;
pub mod doorbell;
mod interrupts;
mod msr;
pub mod properties;
pub mod run;
pub mod slots;

pub use answer::host_cpuid;

use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use spin::{Mutex, MutexGuard};

use crate::memory::frame_table::PartitionId;
use crate::memory::nested::GuestMap;
use crate::memory::pool::Pool;
use crate::memory::{Frame, Memory};
use crate::vcpu::Local;
use doorbell::Doorbells;
use properties::Properties;
use slots::VcpuSlots;

/// The stage of a partition's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// No partition has this number.
    Free,
    /// The partition can be used.
    Live,
    /// The partition is being destroyed. Only its destruction can go on.
    Ending,
}

/// Error: a partition cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartitionError {
    /// No partition has this number.
    NoSuchPartition,
    /// The partition is being destroyed.
    Ending,
    /// All partition numbers are in use.
    Full,
    /// A virtual CPU of the partition is in use.
    Busy,
}

/// The parts of a partition that one CPU at a time works on.
#[derive(Debug)]
pub struct Control {
    /// Metadata frames.
    pub pool: Pool,
    /// RAM.
    pub map: GuestMap,
}

/// One partition, or the room for one.
#[derive(Debug)]
pub struct Partition {
    /// Number of the partition, once the room was used.
    id: AtomicU8,
    life: AtomicU8,
    control: Mutex<Control>,
    /// Top nested table as a frame number plus 1, or 0 for none. Entry reads it without a lock.
    top: AtomicU64,
    /// Generation of the nested map, unique in the machine's life. A TLB must hold no translation of an older one.
    flush: AtomicU64,
    /// A number that no other partition has or had, not even one with the same partition number.
    serial: AtomicU64,
    /// Ranges whose writes are posted.
    pub doorbells: Doorbells,
    /// Properties, which `partition_set` sets.
    pub properties: Properties,
    /// Virtual CPUs.
    pub vcpus: VcpuSlots,
}

/// The next value for [`Partition::flush`] of any partition. So a CPU that gives an address space identifier to
/// another partition flushes it, too.
static NEXT_FLUSH: AtomicU64 = AtomicU64::new(1);

impl Partition {
    /// Makes the room for one. It is all zeros, so that 255 of them take no room in the image.
    pub const fn new() -> Self {
        const NOBODY: PartitionId = PartitionId(0);
        Self {
            id: AtomicU8::new(0),
            life: AtomicU8::new(0),
            control: Mutex::new(Control {
                pool: Pool::new(NOBODY),
                map: GuestMap::new(NOBODY),
            }),
            top: AtomicU64::new(0),
            flush: AtomicU64::new(0),
            serial: AtomicU64::new(0),
            doorbells: Doorbells::new(),
            properties: Properties::new(),
            vcpus: VcpuSlots::new(),
        }
    }

    /// Returns the partition's number.
    pub fn id(&self) -> PartitionId {
        PartitionId(self.id.load(Ordering::Relaxed))
    }

    /// Returns the stage of the partition's life, which may change unless it is locked.
    pub fn life(&self) -> Life {
        match self.life.load(Ordering::Acquire) {
            1 => Life::Live,
            2 => Life::Ending,
            _ => Life::Free,
        }
    }

    /// Locks the partition. The stage of its life does not change before it is unlocked.
    pub fn lock(&self) -> (MutexGuard<'_, Control>, Life) {
        let control = self.control.lock();
        (control, self.life())
    }

    /// Locks the partition for a change, if it is live.
    pub fn control(&self) -> Result<MutexGuard<'_, Control>, PartitionError> {
        let (control, life) = self.lock();
        match life {
            Life::Live => Ok(control),
            Life::Ending => Err(PartitionError::Ending),
            Life::Free => Err(PartitionError::NoSuchPartition),
        }
    }

    /// Returns the value to add to this CPU's time-stamp counter to have a virtual CPU's.
    pub fn tsc_offset(&self, local: &Local) -> u64 {
        local.tsc_adjust.wrapping_sub(self.properties.tsc_zero())
    }

    /// Returns a number that no other partition has or had, not even one with the same partition number.
    pub fn serial(&self) -> u64 {
        self.serial.load(Ordering::Relaxed)
    }

    /// Returns the top nested table, once there is one.
    pub fn top(&self) -> Option<Frame> {
        self.top
            .load(Ordering::Acquire)
            .checked_sub(1)
            .map(Frame::new)
    }

    /// Returns the generation of the nested map. A TLB must hold no translation of an older one.
    pub fn flush(&self) -> u64 {
        self.flush.load(Ordering::Acquire)
    }

    /// Lets entries find the top table of `map`, which does not change while there is one.
    pub fn publish_top(&self, map: &GuestMap) {
        let top = map.top().map_or(0, |frame| frame.number() + 1);
        self.top.store(top, Ordering::Release);
    }

    /// Makes each CPU flush this partition's translations before it enters it again.
    pub fn flush_all(&self) {
        let next = NEXT_FLUSH.fetch_add(1, Ordering::AcqRel);
        self.flush.store(next, Ordering::Release);
    }

    fn set_life(&self, life: Life) {
        let life = match life {
            Life::Free => 0,
            Life::Live => 1,
            Life::Ending => 2,
        };
        self.life.store(life, Ordering::Release);
    }

    /// Makes the room live as partition `id`, if it is free. Returns whether it did.
    fn start(&self, id: PartitionId, now_tsc: u64) -> bool {
        let Some(mut control) = self.control.try_lock() else {
            return false;
        };
        if self.life() != Life::Free {
            return false;
        }
        self.id.store(id.0, Ordering::Relaxed);
        *control = Control {
            pool: Pool::new(id),
            map: GuestMap::new(id),
        };
        self.publish_top(&control.map);
        self.flush_all();
        self.serial.store(self.flush(), Ordering::Relaxed);
        self.doorbells.clear();
        self.properties.reset(now_tsc);
        self.set_life(Life::Live);
        true
    }

    /// Gives back about `budget` frames. Returns how many frames it gave back, and whether the partition is free now.
    /// Call it again until it is: a destruction that has begun cannot be undone.
    pub fn destroy(&self, memory: &Memory, budget: u64) -> Result<(u64, bool), PartitionError> {
        let (mut control, life) = self.lock();
        match life {
            Life::Free => return Err(PartitionError::NoSuchPartition),
            Life::Live => self.vcpus.stop_for_good(|| self.set_life(Life::Ending))?,
            Life::Ending => {}
        }
        let Control { pool, map } = &mut *control;
        let mut given = self.vcpus.remove_all(memory, pool);
        self.top.store(0, Ordering::Release);
        if given < budget {
            given += map.tear_down(memory, pool, budget - given);
        }
        // Scrubbing costs more than a change in a table.
        const SCRUB_COST: u64 = 8;
        let mut spent = given;
        while map.top().is_none() && spent < budget && pool.give_back(memory) {
            given += 1;
            spent += SCRUB_COST;
        }
        let over = map.top().is_none() && pool.is_empty();
        if over {
            self.set_life(Life::Free);
        }
        Ok((given, over))
    }
}

/// All partitions but root, by number from 1 on.
#[derive(Clone, Copy, Debug)]
pub struct Partitions {
    slots: &'static [Partition],
}

impl Partitions {
    /// Makes the table of the partitions that `slots` has room for. Entry `n` is number `n + 1`.
    pub const fn new(slots: &'static [Partition]) -> Self {
        Self { slots }
    }

    /// Makes a partition.
    pub fn create(&self, now_tsc: u64) -> Result<PartitionId, PartitionError> {
        (1..=u8::MAX)
            .map(PartitionId)
            .zip(self.slots)
            .find(|(id, slot)| slot.start(*id, now_tsc))
            .map(|(id, _)| id)
            .ok_or(PartitionError::Full)
    }

    /// Returns the partition with this number, live or ending.
    pub fn find(&self, number: u64) -> Result<&'static Partition, PartitionError> {
        self.slot(number)
            .filter(|slot| slot.life() != Life::Free)
            .ok_or(PartitionError::NoSuchPartition)
    }

    /// Returns the partition with this number, or the room for it.
    pub fn slot(&self, number: u64) -> Option<&'static Partition> {
        let index = usize::try_from(number.checked_sub(1)?).ok()?;
        self.slots.get(index)
    }

    /// Returns the count of partitions that are live or ending.
    pub fn count(&self) -> usize {
        let used = |slot: &&Partition| slot.life() != Life::Free;
        self.slots.iter().filter(used).count()
    }
}
