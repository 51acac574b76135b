//! A machine of a few MiB in host memory, for tests.
#![allow(unsafe_code, reason = "PhysMap over host memory")]

use std::ops::Range;
use std::vec;
use std::vec::Vec;

use super::epoch::Epochs;
use super::frame_table::{FrameTable, PartitionId};
use super::nested::root::RootLayout;
use super::nested::verify::{Map, check_frame, check_page};
use super::nested::{GuestMap, RootMap, boot};
use super::{Frame, GuestPage, Memory, PhysMap};
use guest_proto::limits::PAGE_SIZE;
use spin::Mutex;

#[derive(Clone)]
#[repr(C, align(4096))]
struct Page([u8; 4096]);

/// Memory with RAM of root's from frame 1 on, the microvisor's own region at the top, and frame 0
/// and what lies above 3/4 of the RAM's end a hole.
pub(crate) struct Fake {
    pub(crate) memory: Memory,
    /// Root's frames: from 1 to this.
    pub(crate) ram_end: u64,
    /// All frames.
    pub(crate) frames: u64,
    /// What the map points into.
    pub(crate) storage: Storage,
}

/// Keeps the memory of a fake machine.
pub(crate) struct Storage {
    _pages: Vec<Page>,
}

/// Frames that CPUs of root reach before it has started them.
pub(crate) const WAITING: Range<u64> = 3..5;

/// Frames of the hole between root's RAM and the microvisor's region.
pub(crate) const HOLE: u64 = 3;

impl Fake {
    /// A machine of `frames` frames, with CPU 0 online.
    pub(crate) fn new(frames: u64) -> Self {
        let mut storage = vec![Page([0xa5; 4096]); frames as usize];
        let base = storage.as_mut_ptr() as usize;
        // SAFETY: the vector lives as long as the map, and is not touched otherwise.
        let map = unsafe { PhysMap::new(base, frames * PAGE_SIZE) };
        let layout = RootLayout {
            frames,
            limit: frames,
            gib_pages: true,
        };
        let table_frames = FrameTable::bytes(frames).div_ceil(PAGE_SIZE);
        let reserved = layout.table_frames() + boot::WAITING_TABLES + table_frames;
        let first = frames - reserved;
        let table = FrameTable::new(map, Frame::new(first).base(), frames);
        let ram_end = first - HOLE;
        table.boot_root(1..ram_end);
        table.boot_reserve(first..frames);
        let mut root = RootMap::new(&map, Frame::new(first + table_frames), layout);
        (first..frames).for_each(|n| root.unmap(&map, Frame::new(n)));
        let first_waiting = Frame::new(frames - boot::WAITING_TABLES);
        let waiting = boot::build_waiting(&map, first_waiting, WAITING);
        let epochs = Epochs::new();
        epochs.online(0);
        Self {
            memory: Memory {
                map,
                frames: table,
                epochs,
                root: Mutex::new(root),
                waiting,
            },
            ram_end,
            frames,
            storage: Storage { _pages: storage },
        }
    }

    /// Every CPU goes through VM 0 once.
    pub(crate) fn pass(&self) {
        let _ = self.memory.epochs.pass(0);
    }
}

/// The nested maps, root's and `maps`, say exactly what the frame table says.
pub(crate) fn check_maps(memory: &Memory, maps: &[(PartitionId, &GuestMap)]) {
    let root = memory.root.lock();
    let mut tops = vec![(Map::Root, root.top()), (Map::Waiting, memory.waiting)];
    tops.extend(
        maps.iter()
            .filter_map(|(id, map)| Some((Map::Partition(*id), map.top()?))),
    );
    for (which, top) in tops {
        let mut page = 0;
        while page < GuestPage::COUNT {
            let (moved, _) = check_page(memory, which, top, page).unwrap();
            page += moved;
        }
    }
    for n in 0..memory.frames.frames() {
        let frame = Frame::new(n);
        let owner = memory.frames.owner(frame);
        let map = maps.iter().find(|(id, _)| Some(*id) == owner.partition());
        check_frame(memory, &root, map.map(|(_, map)| *map), frame, owner).unwrap();
    }
}
