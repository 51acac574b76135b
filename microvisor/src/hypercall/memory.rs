//! Calls about memory: metadata deposits, guest RAM.

use guest_proto::Status;
use guest_proto::hypercall::{MapFlags, MapRange};
use guest_proto::limits::MAX_MAP_RANGES;

use super::args::{RootPage, control, frame, take};
use super::{Context, Failure, Outcome};
use crate::machine::Machine;
use crate::memory::nested::guest::{MapError, Run};
use crate::memory::{Frame, GuestPage};
use crate::partition::Control;

/// The most pages that one call maps or unmaps.
const BATCH: u64 = 4096;
/// The most frames of one deposit.
const MAX_DEPOSIT: u64 = 512;

pub(super) fn deposit(cx: &Context<'_>, args: [u64; 5]) -> Outcome {
    let [partition, pfn, count] = take(args)?;
    let machine = cx.machine;
    let (_, mut control) = control(machine, partition)?;
    if !(1..=MAX_DEPOSIT).contains(&count) {
        return Err(Status::OutOfRange.into());
    }
    let first = run_of_frames(machine, pfn, count)?;
    Ok(control.pool.deposit(&machine.memory, first, count)?)
}

/// `memory_map` copies the list, then maps it entry by entry, up to a batch.
// The list is on the stack: it is not to be in the frame that every call has.
#[inline(never)]
pub(super) fn map(cx: &Context<'_>, args: [u64; 5]) -> Outcome {
    let [partition, pfn, start, count] = take(args)?;
    let machine = cx.machine;
    let (partition, mut control) = control(machine, partition)?;
    if !(1..=MAX_MAP_RANGES).contains(&count) {
        return Err(Status::OutOfRange.into());
    }
    let mut list = [[0; size_of::<MapRange>()]; MAX_MAP_RANGES as usize];
    let list = list.get_mut(..count as usize).unwrap_or_default();
    RootPage::new(machine, pfn)?.read(machine, list.as_flattened_mut())?;
    let Control { pool, map } = &mut *control;
    let (mut skip, mut done) = (start, start);
    for entry in list {
        let entry: MapRange = zerocopy::transmute!(*entry);
        let run = check(machine, &entry).map_err(|status| Failure::new(status, done))?;
        if skip >= run.pages {
            skip -= run.pages;
            continue;
        }
        let room = BATCH - (done - start);
        if room == 0 {
            return Err(Failure::new(Status::TryAgain, done));
        }
        let rest = run.after(core::mem::take(&mut skip));
        let part = rest.first(room);
        let (pages, result) = map.map(&machine.memory, pool, part, || partition.flush_all());
        partition.publish_top(map);
        done += pages;
        result.map_err(|error| failure(error, start, done))?;
        if part.pages < rest.pages {
            return Err(Failure::new(Status::TryAgain, done));
        }
    }
    if skip > 0 {
        // A start beyond the list is not a former value.
        return Err(Failure::new(Status::OutOfRange, done));
    }
    Ok(done)
}

/// Returns the failure of a call that began at page `start` and has done the pages up to `done`. A count of pages to
/// deposit would hide how many are done, so the next call tells it.
fn failure(error: MapError, start: u64, done: u64) -> Failure {
    match error {
        MapError::Shortage(_) if done > start => Failure::new(Status::TryAgain, done),
        error => Failure::from(error).at(done),
    }
}

pub(super) fn unmap(cx: &Context<'_>, args: [u64; 5]) -> Outcome {
    let [partition, page, count] = take(args)?;
    let machine = cx.machine;
    let (partition, mut control) = control(machine, partition)?;
    if count == 0 {
        return Err(Status::InvalidArgument.into());
    }
    let page = GuestPage::first_of(page, count).ok_or(Status::BadAddress)?;
    let Control { pool, map } = &mut *control;
    let flush = || partition.flush_all();
    let (done, result) = map.unmap(&machine.memory, pool, page, count.min(BATCH), flush);
    match result {
        Ok(()) if done == count => Ok(done),
        Ok(()) => Err(Failure::new(Status::TryAgain, done)),
        Err(error) => Err(failure(error, 0, done)),
    }
}

/// Returns the run of an entry of the list, if its pages and frames can exist.
fn check(machine: &Machine, entry: &MapRange) -> Result<Run, Status> {
    let flags = MapFlags::from_bits(entry.flags).ok_or(Status::InvalidArgument)?;
    let pages = u64::from(entry.pages);
    let page = GuestPage::first_of(entry.gpa_pfn, pages).ok_or(Status::OutOfRange)?;
    let frame = run_of_frames(machine, entry.pfn, pages).map_err(|_| Status::BadAddress)?;
    Ok(Run {
        page,
        frame,
        pages,
        writable: !flags.contains(MapFlags::READ_ONLY),
    })
}

/// Returns the first of `count` frames, if the frame table covers all of them.
fn run_of_frames(machine: &Machine, pfn: u64, count: u64) -> Result<Frame, Failure> {
    let first = frame(machine, pfn)?;
    let last = pfn
        .checked_add(count - count.min(1))
        .ok_or(Status::BadAddress)?;
    frame(machine, last)?;
    Ok(first)
}
