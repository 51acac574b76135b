//! Fills in the frame table.

use core::sync::atomic::{AtomicU64, Ordering};

use super::{FrameTable, Owner, PAYLOAD_NONE, word};
use crate::memory::{Frame, Hpa, PhysMap};

impl FrameTable {
    /// Returns the bytes that a table for `frames` frames takes.
    pub const fn bytes(frames: u64) -> u64 {
        frames * size_of::<u64>() as u64
    }

    /// Makes a table at `base` for the frames below `frames`, all `Absent`. The table's memory must be inside of
    /// `map`, and the microvisor's alone. A frame whose entry would lie outside of `map` is `NotRam`.
    pub fn new(map: PhysMap, base: Hpa, frames: u64) -> Self {
        let table = Self {
            map,
            base,
            frames,
            deposited: AtomicU64::new(0),
            guest: AtomicU64::new(0),
        };
        for n in 0..frames {
            if let Some(entry) = table.entry(Frame::new(n)) {
                entry.store(word(Owner::Absent, PAYLOAD_NONE), Ordering::Relaxed);
            }
        }
        table
    }

    /// Gives a frame to root at boot.
    pub fn boot_root(&self, frame: Frame) {
        self.boot(frame, Owner::Root);
    }

    /// Gives a frame to the microvisor at boot.
    pub fn boot_reserve(&self, frame: Frame) {
        self.boot(frame, Owner::Reserved);
    }

    fn boot(&self, frame: Frame, owner: Owner) {
        if let Some(entry) = self.entry(frame) {
            entry.store(word(owner, PAYLOAD_NONE), Ordering::Release);
        }
    }
}
