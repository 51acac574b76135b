//! Checks that a nested map and the frame table agree on a page and on a frame.
//!
//! Both directions are checked, because neither side alone shows its errors. The frame table must give a map
//! each frame that the map has, and a map must have each frame that the frame table gives it. The caller holds the
//! locks that keep both sides from changing.

use guest_proto::hypercall::{VerifyDifference, VerifyReport, verify_maps};
use guest_proto::limits::ROOT_PARTITION;

use super::entry::Entry;
use super::{GuestMap, LEVELS, RootMap, mapped, maps_page, span, walk};
use crate::memory::frame_table::{Owner, PartitionId};
use crate::memory::{Frame, GuestPage, Memory};

/// A nested map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Map {
    /// Root's map.
    Root,
    /// The map of the CPUs that root has not started.
    Waiting,
    /// The map of a partition.
    Partition(PartitionId),
}

impl Map {
    /// Returns the number of the map in a report.
    fn number(self) -> u64 {
        match self {
            Self::Root => ROOT_PARTITION,
            Self::Waiting => verify_maps::WAITING,
            Self::Partition(id) => id.0.into(),
        }
    }
}

/// Checks the way to `page` in `which`, the map of top table `top`. Returns how many pages from `page` on this
/// checks, and how many mapped pages it looked up in the frame table.
///
/// It looks up no page of root's maps: [`check_frame`] checks them from the other side.
pub fn check_page(
    memory: &Memory,
    which: Map,
    top: Frame,
    page: u64,
) -> Result<(u64, u64), VerifyReport> {
    let tables_are = match which {
        Map::Root | Map::Waiting => Owner::Reserved,
        Map::Partition(id) => Owner::Metadata(id),
    };
    let enter = |table| memory.frames.owner(table) == tables_are;
    let end = walk(&memory.map, top, page, enter);
    let (entry, level) = end;
    let differs = |kind, page, frame| report(memory, kind, which, page, end, frame);
    if entry.is_present() && !maps_page(entry, level) {
        return Err(differs(VerifyDifference::Table, page, entry.frame()));
    }
    let rest = span(level) - page % span(level);
    let Some((first, _)) = mapped(end, page) else {
        return Ok((rest, 0));
    };
    match which {
        // The pages of a large page are in order: the first one speaks for all.
        Map::Root | Map::Waiting if first.number() == page => Ok((rest, 0)),
        Map::Root | Map::Waiting => Err(differs(VerifyDifference::Page, page, first)),
        Map::Partition(id) => {
            for n in 0..rest {
                let frame = first.offset(n);
                let owner = memory.frames.owner(frame).partition();
                let at = GuestPage::new(page + n);
                // Only RAM of a guest's has a guest page.
                if owner != Some(id) || memory.frames.guest_page(frame) != Some(at) {
                    return Err(differs(VerifyDifference::Page, page + n, frame));
                }
            }
            Ok((rest, rest))
        }
    }
}

/// Checks that root's map, and `map`, have `frame` where the frame table says. `map` is that of the partition that
/// `owner` names; it is `None` where `owner` names no partition, or one that does not exist.
pub fn check_frame(
    memory: &Memory,
    root: &RootMap,
    map: Option<&GuestMap>,
    frame: Frame,
    owner: Owner,
) -> Result<(), VerifyReport> {
    let differs = |kind, which, page, end| Err(report(memory, kind, which, page, end, frame));
    let end_of = |top: Option<Frame>, page| {
        top.map_or(NOWHERE, |top| walk(&memory.map, top, page, |_| true))
    };
    let page = frame.number();
    let end = end_of(Some(root.top()), page);
    if mapped(end, page) != owner.is_in_roots_map().then_some((frame, true)) {
        return differs(VerifyDifference::Frame, Map::Root, page, end);
    }
    let Some(id) = owner.partition() else {
        return Ok(());
    };
    let which = Map::Partition(id);
    let Some(map) = map else {
        return differs(VerifyDifference::Owner, which, 0, NOWHERE);
    };
    let Some(page) = memory.frames.guest_page(frame).map(GuestPage::number) else {
        return Ok(());
    };
    let end = end_of(map.top(), page);
    match mapped(end, page) {
        Some((to, _)) if to == frame => Ok(()),
        _ => differs(VerifyDifference::Frame, which, page, end),
    }
}

/// The end of the way to a page in a map without a table.
const NOWHERE: (Entry, u32) = (Entry::ABSENT, LEVELS);

/// Makes the report of a difference in `which` at `page`, to which the way ends at `entry`.
fn report(
    memory: &Memory,
    kind: VerifyDifference,
    which: Map,
    page: u64,
    (entry, level): (Entry, u32),
    frame: Frame,
) -> VerifyReport {
    VerifyReport {
        difference: kind.raw(),
        level,
        map: which.number(),
        page,
        entry: entry.raw(),
        frame: frame.number(),
        owner: memory.frames.raw(frame),
        ..VerifyReport::default()
    }
}
