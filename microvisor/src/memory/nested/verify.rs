//! Whether a nested map and the frame table say the same of a page and of a frame.
//!
//! Both directions are checked, as neither side alone shows what is wrong with it: what a map has must be
//! its own by the frame table, and what the frame table gives to a map must be there. The caller holds the
//! locks that keep both sides from moving.

use guest_proto::hypercall::{VerifyDifference, VerifyReport, verify_maps};
use guest_proto::limits::ROOT_PARTITION;

use super::{GuestMap, LEVELS, RootMap, lookup, maps_page, span, walk};
use crate::memory::frame_table::{Owner, PartitionId};
use crate::memory::{Frame, Memory};

/// A nested map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Map {
    /// Root's.
    Root,
    /// That of root's CPUs that wait.
    Waiting,
    /// A partition's.
    Partition(PartitionId),
}

impl Map {
    /// Its number in a report.
    pub fn number(self) -> u64 {
        match self {
            Self::Root => ROOT_PARTITION,
            Self::Waiting => verify_maps::WAITING,
            Self::Partition(id) => id.0.into(),
        }
    }
}

/// Checks the way to `page` in `which`, the map of top table `top`. Answers how many pages from `page` on are
/// thereby settled, and how many mapped pages were looked up in the frame table.
///
/// Of root's maps none are: [`check_frame`] does that from the other side.
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
    let (entry, level) = walk(&memory.map, top, page, enter);
    let differs = |kind: VerifyDifference, page, frame: Frame| VerifyReport {
        difference: kind.raw(),
        level,
        map: which.number(),
        page,
        entry: entry.raw(),
        frame: frame.number(),
        owner: memory.frames.raw(frame),
        ..VerifyReport::default()
    };
    let rest = span(level) - page % span(level);
    if !entry.is_present() {
        return Ok((rest, 0));
    }
    if !maps_page(entry, level) {
        return Err(differs(VerifyDifference::Table, page, entry.frame()));
    }
    let first = entry.frame().number() + page % span(level);
    match which {
        // The pages of a large page are in order: the first one speaks for all.
        Map::Root | Map::Waiting if first == page => Ok((rest, 0)),
        Map::Root | Map::Waiting => Err(differs(VerifyDifference::Page, page, Frame::new(first))),
        Map::Partition(id) => {
            for n in 0..rest {
                let frame = Frame::new(first + n);
                let owner = memory.frames.owner(frame);
                let is_guests = owner == Owner::Shared(id) || owner == Owner::Guest(id);
                if !is_guests || memory.frames.guest_page(frame) != Some(page + n) {
                    return Err(differs(VerifyDifference::Page, page + n, frame));
                }
            }
            Ok((rest, rest))
        }
    }
}

/// Checks that root's map and `map`, the map of the partition that `owner` names, have `frame` where the
/// frame table says. `map` is `None` where `owner` names no partition, or one that does not exist.
pub fn check_frame(
    memory: &Memory,
    root: &RootMap,
    map: Option<&GuestMap>,
    frame: Frame,
    owner: Owner,
) -> Result<(), VerifyReport> {
    let differs = |kind: VerifyDifference, which: Map, top: Option<Frame>, page| {
        let end = top.map(|top| walk(&memory.map, top, page, |_| true));
        Err(VerifyReport {
            difference: kind.raw(),
            level: end.map_or(LEVELS, |(_, level)| level),
            map: which.number(),
            page,
            entry: end.map_or(0, |(entry, _)| entry.raw()),
            frame: frame.number(),
            owner: memory.frames.raw(frame),
            ..VerifyReport::default()
        })
    };
    let reached = lookup(&memory.map, root.top(), frame.number());
    if reached != owner.is_in_roots_map().then_some((frame, true)) {
        let top = Some(root.top());
        return differs(VerifyDifference::Frame, Map::Root, top, frame.number());
    }
    let Some(id) = owner.partition() else {
        return Ok(());
    };
    let which = Map::Partition(id);
    let Some(map) = map else {
        return differs(VerifyDifference::Owner, which, None, 0);
    };
    match memory.frames.guest_page(frame) {
        Some(page) if map.lookup(&memory.map, page).map(|(to, _)| to) != Some(frame) => {
            differs(VerifyDifference::Frame, which, map.top(), page)
        }
        _ => Ok(()),
    }
}
