//! Calls about memory: metadata deposits, guest RAM.

use guest_proto::Status;
use guest_proto::hypercall::{MapFlags, MapRange};
use guest_proto::limits::MAX_MAP_RANGES;
use zerocopy::FromBytes;

use super::args::{RootPage, control, frame, take};
use super::{Context, Failure, Outcome};
use crate::machine::Machine;
use crate::memory::Frame;
use crate::memory::nested::GUEST_PAGES;
use crate::memory::nested::guest::{MapError, Run};
use crate::memory::physmap::FRAME_BYTES;

/// Pages that one call maps or unmaps at most.
const BATCH: u64 = 4096;
/// Frames of one deposit at most.
const MAX_DEPOSIT: u64 = 512;
const RANGES: usize = MAX_MAP_RANGES as usize;

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

/// `memory_map`: the list is copied, then read entry by entry up to the batch's end; the tables
/// that this takes are counted, and only then is anything changed.
pub(super) fn map(cx: &Context<'_>, args: [u64; 5]) -> Outcome {
    let [partition, pfn, start, count] = take(args)?;
    let machine = cx.machine;
    let memory = &machine.memory;
    let (partition, mut control) = control(machine, partition)?;
    if !(1..=MAX_MAP_RANGES).contains(&count) {
        return Err(Status::OutOfRange.into());
    }
    let list = RootPage::new(machine, pfn)?.read(machine)?;
    let mut runs = [EMPTY; RANGES];
    let plan = plan(machine, &list, count as usize, start, &mut runs);
    let runs = runs.get(..plan.runs).unwrap_or_default();

    let control = &mut *control;
    let (pool, map) = (&mut control.pool, &mut control.map);
    if !runs.is_empty() {
        let needed = map.tables_needed(&memory.map, runs);
        let short = |shortage| Failure::from(shortage).at(start);
        pool.check(memory, needed).map_err(short)?;
    }
    let mut done = start;
    for run in runs {
        let (pages, result) = map.map(memory, pool, *run, || partition.flush_all());
        done += pages;
        if let Err(error) = result {
            partition.publish_top(map);
            return Err(Failure::from(error).at(done));
        }
    }
    partition.publish_top(map);
    match plan.end {
        End::List => Ok(done),
        End::Batch => Err(Failure::new(Status::TryAgain, done)),
        End::Error(status) => Err(Failure::new(status, done)),
    }
}

pub(super) fn unmap(cx: &Context<'_>, args: [u64; 5]) -> Outcome {
    let [partition, page, count] = take(args)?;
    let machine = cx.machine;
    let (partition, mut control) = control(machine, partition)?;
    if count == 0 {
        return Err(Status::InvalidArgument.into());
    }
    let end = page.checked_add(count).filter(|end| *end <= GUEST_PAGES);
    if end.is_none() {
        return Err(Status::BadAddress.into());
    }
    let control = &mut *control;
    let (pool, map) = (&mut control.pool, &mut control.map);
    let flush = || partition.flush_all();
    let (done, result) = map.unmap(&machine.memory, pool, page, count.min(BATCH), flush);
    match result {
        Ok(()) if done == count => Ok(done),
        Ok(()) => Err(Failure::new(Status::TryAgain, done)),
        // A count of pages to deposit would hide how many are done.
        Err(MapError::Shortage(_)) if done > 0 => Err(Failure::new(Status::TryAgain, done)),
        Err(error) => Err(Failure::from(error).at(done)),
    }
}

/// Why a plan ends where it does.
enum End {
    /// The list ends.
    List,
    /// The batch is full.
    Batch,
    /// The next entry is wrong.
    Error(Status),
}

struct Plan {
    runs: usize,
    end: End,
}

const EMPTY: Run = Run {
    page: 0,
    frame: Frame::new(0),
    pages: 0,
    writable: false,
};

/// Fills `runs` with what the first `count` entries of the list say, less the first `skip` pages,
/// up to a batch.
fn plan(
    machine: &Machine,
    list: &[u8; FRAME_BYTES],
    count: usize,
    skip: u64,
    runs: &mut [Run; RANGES],
) -> Plan {
    let (mut skip, mut room, mut used) = (skip, BATCH, 0);
    let entries = list.chunks_exact(size_of::<MapRange>()).take(count);
    for entry in entries.filter_map(|bytes| MapRange::read_from_bytes(bytes).ok()) {
        let run = match check(machine, &entry) {
            Ok(run) => run,
            Err(end) => {
                return Plan {
                    runs: used,
                    end: End::Error(end),
                };
            }
        };
        if skip >= run.pages {
            skip -= run.pages;
            continue;
        }
        if room == 0 {
            return Plan {
                runs: used,
                end: End::Batch,
            };
        }
        let rest = Run {
            page: run.page + skip,
            frame: run.frame.offset(skip),
            pages: run.pages - skip,
            ..run
        };
        skip = 0;
        let part = rest.first(room);
        if let Some(slot) = runs.get_mut(used) {
            *slot = part;
            used += 1;
        }
        room -= part.pages;
        if part.pages < rest.pages {
            return Plan {
                runs: used,
                end: End::Batch,
            };
        }
    }
    // A start beyond the list is not a former value.
    let end = if skip > 0 {
        End::Error(Status::OutOfRange)
    } else {
        End::List
    };
    Plan { runs: used, end }
}

/// An entry of the list, if it names pages that there can be.
fn check(machine: &Machine, entry: &MapRange) -> Result<Run, Status> {
    let flags = MapFlags::from_bits(entry.flags).ok_or(Status::InvalidArgument)?;
    let pages = u64::from(entry.pages);
    let frame = run_of_frames(machine, entry.pfn, pages).map_err(|_| Status::BadAddress);
    let run = Run {
        page: entry.gpa_pfn,
        frame: Frame::new(entry.pfn),
        pages,
        writable: !flags.contains(MapFlags::READ_ONLY),
    };
    if !run.in_range() {
        return Err(Status::OutOfRange);
    }
    frame.map(|_| run)
}

/// The first of `count` frames that the frame table covers.
fn run_of_frames(machine: &Machine, pfn: u64, count: u64) -> Result<Frame, Failure> {
    let first = frame(machine, pfn)?;
    let last = pfn
        .checked_add(count - count.min(1))
        .ok_or(Status::BadAddress)?;
    frame(machine, last)?;
    Ok(first)
}
