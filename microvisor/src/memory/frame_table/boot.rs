//! Fills in the frame table.

use core::ops::Range;
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
        table.boot(0..frames, Owner::Absent);
        table
    }

    /// Gives frames to root at boot, by their numbers.
    pub fn boot_root(&self, frames: Range<u64>) {
        self.boot(frames, Owner::Root);
    }

    /// Gives frames to the microvisor at boot, by their numbers.
    pub fn boot_reserve(&self, frames: Range<u64>) {
        self.boot(frames, Owner::Reserved);
    }

    /// Sets entries all at once: a machine has millions.
    fn boot(&self, frames: Range<u64>, owner: Owner) {
        let end = frames.end.min(self.frames);
        let count = end.saturating_sub(frames.start);
        let value = word(owner, PAYLOAD_NONE);
        let entries = self.entries(Frame::new(frames.start), count);
        for entry in entries.unwrap_or_default() {
            entry.store(value, Ordering::Release);
        }
    }
}
