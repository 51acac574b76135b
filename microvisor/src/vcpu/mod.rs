//! Virtual CPUs: their state, what a guest sees of its CPU, and their turns.

pub mod cpuid;
pub mod msr;

use spin::{Mutex, MutexGuard};

use crate::counters::ExitCounters;
use crate::memory::frame_table::PartitionId;
use crate::memory::pool::Pool;
use crate::memory::{Frame, Memory};

/// A virtual CPU. Lives in a frame of its partition's pool.
#[derive(Debug)]
pub struct Vcpu {
    partition: PartitionId,
    /// Root's frame that is its `VcpuPage`.
    page: Frame,
    /// Its exits.
    pub counters: ExitCounters,
    local: Mutex<Local>,
}

/// What only the holder of the claim works on.
#[derive(Debug, Default)]
pub struct Local {}

impl Vcpu {
    /// A virtual CPU after INIT whose `VcpuPage` is `page`, which is shared with `partition`.
    pub fn new(partition: PartitionId, page: Frame) -> Self {
        Self {
            partition,
            page,
            counters: ExitCounters::new(),
            local: Mutex::new(Local::default()),
        }
    }

    /// Takes it for this CPU alone, if nobody else has it.
    pub fn claim(&self) -> Option<MutexGuard<'_, Local>> {
        self.local.try_lock()
    }

    /// Ends it: its page goes back to root, its frames to the pool. Answers whether the page did.
    pub fn end(self, memory: &Memory, _pool: &mut Pool) -> bool {
        memory
            .frames
            .page_unshare(self.page, self.partition)
            .is_ok()
    }
}
