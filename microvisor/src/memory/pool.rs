//! A partition's metadata memory: frames that root deposited, until they are needed.
//!
//! Two lists, linked through the frame table. `free` frames can be used at once. `pending` ones
//! may still be written through a stale translation, and become free when every CPU has passed
//! the epoch that began after they left their last map. A frame is scrubbed when it is given out
//! and again when it goes back to root. In between, its contents mean nothing.

use super::epoch::Epochs;
use super::frame_table::{FrameError, OwnedFrame, PartitionId};
use super::{Frame, Memory};

/// Error: the pool lacks frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shortage {
    /// Root must deposit this many frames more.
    Deposit(u64),
    /// The pool has enough frames, but not every CPU has passed their epoch.
    Epoch,
}

/// The pool of one partition.
#[derive(Debug)]
pub struct Pool {
    id: PartitionId,
    free: Option<Frame>,
    free_count: u64,
    pending: Option<Frame>,
    pending_last: Option<Frame>,
    pending_count: u64,
    /// The epoch after which `pending` becomes free; [`UNSEALED`] until [`Pool::seal`].
    pending_epoch: u64,
}

/// No epoch: epochs count from 1. With 0 a pool that was never used is all zeros, and takes no room in
/// the image.
const UNSEALED: u64 = 0;

impl Pool {
    /// An empty pool.
    pub const fn new(id: PartitionId) -> Self {
        Self {
            id,
            free: None,
            free_count: 0,
            pending: None,
            pending_last: None,
            pending_count: 0,
            pending_epoch: UNSEALED,
        }
    }

    /// Returns the count of frames in the pool, usable or not.
    pub fn len(&self) -> u64 {
        self.free_count + self.pending_count
    }

    /// Returns whether the pool has no frame at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes a run of frames from root, all or none, out of root's nested map. Returns the epoch
    /// after which they are usable.
    pub fn deposit(
        &mut self,
        memory: &Memory,
        first: Frame,
        count: u64,
    ) -> Result<u64, FrameError> {
        self.settle(memory);
        let run = |n| (0..n).map(|n| first.offset(n));
        for (taken, frame) in run(count).enumerate() {
            if let Err(error) = memory.frames.root_deposit(frame, self.id, None) {
                for frame in run(taken as u64) {
                    // Deposited by this very loop, so this cannot fail.
                    let _ = memory.frames.pool_return(frame, self.id);
                }
                return Err(error);
            }
        }
        let mut root = memory.root.lock();
        for frame in run(count) {
            root.unmap(&memory.map, frame);
        }
        drop(root);
        for frame in run(count) {
            self.push_pending(memory, frame);
        }
        Ok(self.seal(&memory.epochs))
    }

    /// Starts a TLB epoch for the pending frames, which must be out of every nested map. They become free once
    /// every CPU has passed it. Returns the epoch.
    pub fn seal(&mut self, epochs: &Epochs) -> u64 {
        if self.pending_epoch == UNSEALED && self.pending.is_some() {
            self.pending_epoch = epochs.advance();
        }
        self.pending_epoch
    }

    /// Checks that `count` frames can be taken now.
    pub fn check(&mut self, memory: &Memory, count: u64) -> Result<(), Shortage> {
        if count > self.free_count {
            self.settle(memory);
        }
        if count <= self.free_count {
            Ok(())
        } else if count <= self.len() {
            Err(Shortage::Epoch)
        } else {
            Err(Shortage::Deposit(count - self.len()))
        }
    }

    /// Takes a frame and fills it with zeros. Returns `None` only if the pool was not checked for it
    /// ([`Pool::check`]).
    pub fn take(&mut self, memory: &Memory) -> Option<OwnedFrame> {
        let frame = self.free?;
        let (owned, next) = memory.frames.pool_take(frame, self.id).ok()?;
        self.free = next;
        self.free_count -= 1;
        memory.map.zero(frame);
        Some(owned)
    }

    /// Puts a frame back to which a TLB may still have a translation, such as a nested table. Call [`Pool::seal`]
    /// afterwards.
    pub fn put(&mut self, memory: &Memory, owned: OwnedFrame) {
        let frame = owned.frame();
        self.settle(memory);
        if memory.frames.pool_put(owned, None).is_ok() {
            self.push_pending(memory, frame);
        }
    }

    /// Gives one frame, usable or not, back to root: scrubs it, maps it in root's nested map, and makes root its
    /// owner. Returns false when no frame is left.
    pub fn give_back(&mut self, memory: &Memory) -> bool {
        let (list, count) = if self.free.is_some() {
            (&mut self.free, &mut self.free_count)
        } else {
            (&mut self.pending, &mut self.pending_count)
        };
        let Some(frame) = *list else {
            return false;
        };
        memory.map.zero(frame);
        memory.root.lock().restore(&memory.map, frame);
        let Ok(next) = memory.frames.pool_return(frame, self.id) else {
            return false;
        };
        *list = next;
        *count -= 1;
        if self.pending.is_none() {
            self.pending_last = None;
        }
        true
    }

    /// Moves the pending frames to the free list if every CPU has passed their epoch.
    fn settle(&mut self, memory: &Memory) {
        let Some(last) = self.pending_last else {
            return;
        };
        let sealed = self.pending_epoch != UNSEALED;
        if !sealed || memory.epochs.passed_by_all() < self.pending_epoch {
            return;
        }
        if memory.frames.pool_link(last, self.id, self.free).is_ok() {
            self.free = self.pending.take();
            self.free_count += self.pending_count;
            self.pending_last = None;
            self.pending_count = 0;
        }
    }

    fn push_pending(&mut self, memory: &Memory, frame: Frame) {
        self.pending_epoch = UNSEALED;
        if memory
            .frames
            .pool_link(frame, self.id, self.pending)
            .is_ok()
        {
            self.pending = Some(frame);
            self.pending_last = self.pending_last.or(Some(frame));
            self.pending_count += 1;
        }
    }
}
