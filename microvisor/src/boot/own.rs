//! The microvisor's own memory, which is reserved before VM 0 is laid out, and the [`Machine`] in it.

use core::ops::Range;

use guest_proto::limits::{MAX_CPUS, MAX_PARTITIONS, PAGE_SIZE};
use spin::{Mutex, Once};

use super::map::Map;
use super::multiboot::Info;
use super::options::Options;
use super::{Error, low};
use crate::arch::{self, CpuFacts, cpuid, layout};
use crate::counters::ExitCounters;
use crate::log_buffer::LOG_BUFFER;
use crate::machine::{Machine, MachineFacts, MemoryTypes};
use crate::memory::epoch::Epochs;
use crate::memory::frame_table::FrameTable;
use crate::memory::nested::root::RootLayout;
use crate::memory::nested::{self, RootMap};
use crate::memory::{Frame, Hpa, Memory, PhysMap};
use crate::partition::{Partition, Partitions};

const GUESTS: usize = MAX_PARTITIONS as usize - 1;

static PARTITIONS: [Partition; GUESTS] = [const { Partition::new() }; GUESTS];

static ROOT_COUNTERS: [ExitCounters; MAX_CPUS as usize] =
    [const { ExitCounters::new() }; MAX_CPUS as usize];

static MACHINE: Once<Machine> = Once::new();

/// The block that holds the frame table and root's nested tables.
#[derive(Clone, Copy, Debug)]
pub(super) struct Own {
    start: Hpa,
    layout: RootLayout,
}

impl Own {
    /// Takes the block from the map: the highest place below 4 GiB where neither a module nor the start-up code is.
    #[inline(never)]
    pub(super) fn reserve(info: &mut Info, startup: Range<Hpa>) -> Result<Self, Error> {
        const BELOW: u64 = 1 << 32;
        let end = info.map.usable().map(|range| range.end.as_u64()).max();
        let layout = RootLayout {
            frames: end.unwrap_or(0).min(layout::SIZE) / PAGE_SIZE,
            limit: physical_pages(),
            gib_pages: cpuid(0x8000_0001, 0).edx & 1 << 26 != 0,
        };
        let size = Self::bytes(&layout);
        let mut free = info.map.clone();
        for module in info.modules() {
            free.reserve(module.range())?;
        }
        free.reserve(startup)?;
        let start = free.highest_room(size, BELOW);
        let start = start.ok_or(Error::NoRoomForTables)?;
        info.map.reserve(start..start.offset(size))?;
        Ok(Self { start, layout })
    }

    /// Returns the place of the block.
    pub(super) fn range(&self) -> Range<Hpa> {
        self.start..self.start.offset(Self::bytes(&self.layout))
    }

    /// Returns the end of the RAM that the microvisor can reach.
    pub(super) fn ram_end(&self) -> u64 {
        self.layout.frames * PAGE_SIZE
    }

    fn bytes(layout: &RootLayout) -> u64 {
        Self::table_bytes(layout)
            + (layout.table_frames() + nested::boot::WAITING_TABLES) * PAGE_SIZE
    }

    fn table_bytes(layout: &RootLayout) -> u64 {
        FrameTable::bytes(layout.frames).next_multiple_of(PAGE_SIZE)
    }

    fn memory_types(&self, map: &Map, image_end: Hpa) -> MemoryTypes {
        const BELOW: Hpa = Hpa::new(1 << 32);
        let usable = map.usable().filter(|range| range.start < BELOW);
        let low = usable.map(|range| range.end.min(BELOW));
        let low = low.chain([image_end, self.range().end]).max();
        let register = |msr| arch::try_read_msr(msr).unwrap_or(0);
        MemoryTypes {
            low: low.unwrap_or(BELOW),
            high: Hpa::new(self.ram_end()),
            end: Hpa::new(physical_pages() * PAGE_SIZE),
            variable: core::array::from_fn(|n| register(0x200 + n as u32)),
            default: register(0x2ff),
        }
    }

    /// Makes the machine. Root owns the usable memory of `map`; the microvisor owns `image` and the block.
    pub(super) fn machine(
        &self,
        physical: PhysMap,
        map: &Map,
        image: Range<Hpa>,
        cpus: u32,
        options: Options,
    ) -> &'static Machine {
        let image_end = image.end;
        MACHINE.call_once(|| {
            let frames = FrameTable::new(physical, self.start, self.layout.frames);
            for range in map.usable() {
                frames.boot_root(end_of(range.start)..range.end.frame().number());
            }
            let first_table = self.start.offset(Self::table_bytes(&self.layout)).frame();
            let mut root = RootMap::new(&physical, first_table, self.layout);
            let mut reserved = 0;
            for range in [image, self.range()] {
                let range = range.start.frame().number()..end_of(range.end);
                frames.boot_reserve(range.clone());
                reserved += range.end - range.start;
                range.for_each(|frame| root.unmap(&physical, Frame::new(frame)));
            }
            let waiting = nested::boot::build_waiting(
                &physical,
                first_table.offset(self.layout.table_frames()),
                low::START.frame().number()..low::END.frame().number(),
            );
            let memory = Memory {
                map: physical,
                frames,
                epochs: Epochs::new(),
                root: Mutex::new(root),
                waiting,
            };
            let facts = MachineFacts {
                cpu: CpuFacts {
                    features: arch::boot::features(),
                    tpr_window: options.tpr_window,
                    speculation: options.speculation,
                },
                cpus,
                frames: map.usable_bytes() / PAGE_SIZE + reserved,
                reserved_frames: reserved,
                types: self.memory_types(map, image_end),
            };
            let partitions = Partitions::new(&PARTITIONS);
            Machine::new(memory, partitions, facts, &ROOT_COUNTERS, &LOG_BUFFER)
        })
    }
}

/// Returns the machine, once it is complete.
pub(super) fn machine() -> Option<&'static Machine> {
    MACHINE.get()
}

/// Returns the number of the first frame that begins at `address` or later.
fn end_of(address: Hpa) -> u64 {
    address.as_u64().div_ceil(PAGE_SIZE)
}

/// Returns the count of pages in the CPU's physical address space.
fn physical_pages() -> u64 {
    let bits = cpuid(0x8000_0008, 0).eax & 0xff;
    1 << (bits.clamp(36, 52) - PAGE_SIZE.trailing_zeros())
}
