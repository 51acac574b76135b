//! Memory: the owner of each frame, and the nested maps of root and of the guests.
//!
//! Invariants: nothing here allocates; a frame is mapped only after `frame_table` agreed; every
//! function is pure over [`PhysMap`], so that the host tests it on a `Vec`. `memory` knows nothing
//! of virtual CPUs.
//!
//! Locks: [`Memory::root`] is the innermost lock of all; nothing else is taken under it.

pub mod addr;
pub mod epoch;
pub mod frame_table;
pub mod nested;
pub mod physmap;
pub mod pool;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use addr::{Frame, Gpa, GuestPage, Hpa};
pub use physmap::PhysMap;

use epoch::Epochs;
use frame_table::FrameTable;
use nested::RootMap;
use spin::Mutex;

/// The machine's memory.
#[derive(Debug)]
pub struct Memory {
    /// Physical memory.
    pub map: PhysMap,
    /// Owners of frames.
    pub frames: FrameTable,
    /// TLB epochs.
    pub epochs: Epochs,
    /// Root's nested map.
    pub root: Mutex<RootMap>,
    /// Top table of the nested map of CPUs that root has not started.
    pub waiting: Frame,
}
