//! `verify` checks the nested maps and the frame table against each other, a batch at a time.
//!
//! A position has a stage in bits 63:36, and a page or a frame in the bits below. The stages are the nested maps, by
//! partition, and then all frames. Each page and each frame is checked under the locks that keep both sides
//! from changing. So other CPUs cannot make a difference appear, and no other call waits for long.

use guest_proto::Status;
use guest_proto::hypercall::{VerifyReport, verify_maps};
use guest_proto::limits::ROOT_PARTITION;
use spin::MutexGuard;
use zerocopy::IntoBytes;

use super::args::{RootPage, take};
use super::{Context, Outcome};
use crate::machine::Machine;
use crate::memory::frame_table::PartitionId;
use crate::memory::nested::GuestMap;
use crate::memory::nested::verify::{Map, check_frame, check_page};
use crate::memory::{Frame, GuestPage};
use crate::partition::{Control, Life, Partition};

/// Steps of one call. A step is a page or a frame. A large page of a guest counts as its pages.
const BATCH: u64 = 2048;
/// The stage of all frames, after those of the maps.
const FRAMES: u64 = verify_maps::WAITING + 1;

pub(super) fn verify(cx: &Context<'_>, args: [u64; 5]) -> Outcome {
    let [pfn, position] = take(args)?;
    let (mut stage, mut at) = (position / GuestPage::COUNT, position % GuestPage::COUNT);
    if stage > FRAMES {
        return Err(Status::OutOfRange.into());
    }
    let page = RootPage::new(cx.machine, pfn)?;
    let mut report = VerifyReport::default();
    let mut left = BATCH;
    while left > 0 && stage <= FRAMES && report.difference == 0 {
        let step = if stage == FRAMES {
            frame_step(cx.machine, at, &mut report)
        } else {
            map_step(cx.machine, stage, at, &mut report)
        };
        match step {
            Ok((moved, looked_up)) => {
                at += moved;
                left = left.saturating_sub(looked_up.max(1));
            }
            Err(found) => {
                report = VerifyReport {
                    frames: report.frames,
                    pages: report.pages,
                    ..found
                };
            }
        }
        if at >= GuestPage::COUNT {
            (stage, at) = (stage + 1, 0);
        }
    }
    page.write(cx.machine, report.as_bytes())?;
    if report.difference != 0 || stage > FRAMES {
        return Ok(0);
    }
    Ok(stage * GuestPage::COUNT + at)
}

/// The count of pages or frames by which a step has moved, and the count of mapped pages that it looked up.
type Step = Result<(u64, u64), VerifyReport>;

/// Checks a page of a map, and the pages behind it that the same entry covers.
fn map_step(machine: &Machine, map: u64, page: u64, report: &mut VerifyReport) -> Step {
    let memory = &machine.memory;
    let step = match map {
        ROOT_PARTITION => {
            let top = memory.root.lock().top();
            check_page(memory, Map::Root, top, page)?
        }
        verify_maps::WAITING => check_page(memory, Map::Waiting, memory.waiting, page)?,
        id => {
            let locked = machine.partitions.slot(id).map(Partition::lock);
            let top = map_of(locked.as_ref()).and_then(GuestMap::top);
            let which = Map::Partition(PartitionId(id as u8));
            match top {
                Some(top) => check_page(memory, which, top, page)?,
                None => (GuestPage::COUNT, 0),
            }
        }
    };
    report.pages += step.1;
    Ok(step)
}

/// Checks a frame. The position does not move if the frame has just got another owner.
fn frame_step(machine: &Machine, number: u64, report: &mut VerifyReport) -> Step {
    let memory = &machine.memory;
    if number >= memory.frames.frames() {
        return Ok((GuestPage::COUNT, 0));
    }
    let frame = Frame::new(number);
    let id = memory.frames.owner(frame).partition();
    let slot = id.and_then(|id| machine.partitions.slot(id.0.into()));
    let locked = slot.map(Partition::lock);
    let root = memory.root.lock();
    // A frame without a partition may still get one now, but leaves root's map under its lock alone.
    let owner = memory.frames.owner(frame);
    if owner.partition() != id {
        return Ok((0, 0));
    }
    check_frame(memory, &root, map_of(locked.as_ref()), frame, owner)?;
    report.frames += 1;
    Ok((1, 0))
}

/// Returns the map of a locked partition, if the partition exists.
fn map_of<'a>(locked: Option<&'a (MutexGuard<'_, Control>, Life)>) -> Option<&'a GuestMap> {
    let (control, life) = locked?;
    (*life != Life::Free).then_some(&control.map)
}
