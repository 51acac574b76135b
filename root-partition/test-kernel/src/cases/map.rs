//! Guest RAM: donated, shared, taken back.

use guest_proto::Status;
use guest_proto::hypercall::{Hypercall, MapFlags, MapRange};

use super::FOREIGN_PAGES;
use crate::hv;
use crate::memory::Pages;
use crate::report::{Outcome, cases, ensure, equal};

cases![
    a_call_says_how_many_pages_it_needs,
    guest_ram_stays_roots_too,
    a_frame_is_ram_of_one_guest,
    a_guest_page_is_mapped_once,
    entries_before_an_error_stay,
    bad_entries_have_names,
    bad_lists_have_names,
    long_lists_take_several_calls,
    unmapped_frames_are_roots_alone,
    bad_ranges_are_not_unmapped,
    verify_looks_at_every_frame_and_page,
];

/// First guest page of the maps here.
const GPA: u64 = 0x100;

fn range(gpa_pfn: u64, frames: Pages) -> MapRange {
    MapRange {
        gpa_pfn,
        pfn: frames.pfn(),
        pages: frames.count() as u32,
        flags: 0,
    }
}

/// Calls with these entries in the list page.
fn map(partition: u64, entries: &[MapRange]) -> hv::Answer {
    let list = Pages::scratch();
    list.store(0, entries);
    hv::call(
        Hypercall::MemoryMap,
        [partition, list.pfn(), 0, entries.len() as u64],
    )
}

fn unmap(partition: u64, gpa_pfn: u64, count: u64) -> hv::Answer {
    hv::call(Hypercall::MemoryUnmap, [partition, gpa_pfn, count])
}

/// A partition with metadata enough for the maps here.
fn partition() -> Outcome<u64> {
    let partition = hv::create()?;
    hv::deposit(partition, 16)?;
    Ok(partition)
}

fn a_call_says_how_many_pages_it_needs() -> Outcome {
    let id = hv::create()?;
    let ram = range(GPA, Pages::take(4));
    let needed = map(id, &[ram]).is(Status::NeedPages)?;
    ensure("a few tables are needed", (1..=4).contains(&needed))?;
    equal("nothing changed", hv::machine_info()?.guest_frames, 0)?;
    if needed > 1 {
        hv::deposit(id, needed - 1)?;
        equal("one is lacking", map(id, &[ram]).is(Status::NeedPages)?, 1)?;
        hv::deposit(id, 1)?;
    } else {
        hv::deposit(id, 1)?;
    }
    equal("pages mapped", map(id, &[ram]).ok()?, 4)?;
    equal("guest frames", hv::machine_info()?.guest_frames, 4)?;
    equal("frames given back", hv::destroy(id)?, needed + 4)
}

fn guest_ram_stays_roots_too() -> Outcome {
    let (id, ram) = (partition()?, Pages::take(2));
    map(id, &[range(GPA, ram)]).ok()?;
    equal("as it was", ram.holds(Pages::PATTERN), true)?;
    ram.fill(7);
    equal("frames given back", hv::destroy(id)?, 18)?;
    // Shared RAM is root's own data: it is not scrubbed.
    equal("as root left it", ram.holds(7), true)
}

fn a_frame_is_ram_of_one_guest() -> Outcome {
    let (id, other, ram) = (partition()?, partition()?, Pages::take(2));
    map(id, &[range(GPA, ram)]).ok()?;
    map(id, &[range(GPA + 0x100, ram)]).is(Status::NotOwner)?;
    map(other, &[range(GPA, ram.page(1))]).is(Status::NotOwner)?;
    let again = hv::call(Hypercall::Deposit, [other, ram.pfn(), 1]);
    again.is(Status::NotOwner)?;
    let fill = hv::call(Hypercall::MachineInfo, [ram.pfn()]);
    fill.is(Status::NotOwner)?;
    hv::destroy(id)?;
    map(other, &[range(GPA, ram)]).ok()?;
    equal("frames given back", hv::destroy(other)?, 18)
}

fn a_guest_page_is_mapped_once() -> Outcome {
    let (id, ram) = (partition()?, Pages::take(4));
    map(id, &[range(GPA, ram.page(0))]).ok()?;
    map(id, &[range(GPA, ram.page(1))]).is(Status::Overlap)?;
    equal("guest frames", hv::machine_info()?.guest_frames, 1)?;
    map(id, &[range(GPA + 1, ram.page(1))]).ok()?;
    equal("frames given back", hv::destroy(id)?, 18)
}

fn entries_before_an_error_stay() -> Outcome {
    let (id, ram) = (partition()?, Pages::take(4));
    let list = [
        range(GPA, ram.page(0)),
        range(GPA + 1, ram.page(1)),
        range(GPA, ram.page(2)),
        range(GPA + 3, ram.page(3)),
    ];
    equal("done", map(id, &list).is(Status::Overlap)?, 2)?;
    equal("guest frames", hv::machine_info()?.guest_frames, 2)?;
    // With the third entry mended, the call goes on where it stopped.
    let mended = [list[0], list[1], range(GPA + 2, ram.page(2)), list[3]];
    let page = Pages::scratch();
    page.store(0, &mended[..]);
    let rest = hv::call(Hypercall::MemoryMap, [id, page.pfn(), 2, 4]);
    equal("done", rest.ok()?, 4)?;
    equal("frames given back", hv::destroy(id)?, 20)
}

fn bad_entries_have_names() -> Outcome {
    let (id, ram) = (partition()?, Pages::take(1));
    let good = range(GPA, ram);
    let bad = [
        (MapRange { flags: 2, ..good }, Status::InvalidArgument),
        (
            MapRange {
                flags: 1 << 31,
                ..good
            },
            Status::InvalidArgument,
        ),
        (MapRange { pages: 0, ..good }, Status::OutOfRange),
        (
            MapRange {
                gpa_pfn: 1 << 36,
                ..good
            },
            Status::OutOfRange,
        ),
        (
            MapRange {
                gpa_pfn: u64::MAX,
                ..good
            },
            Status::OutOfRange,
        ),
        (
            MapRange {
                pages: u32::MAX,
                ..good
            },
            Status::BadAddress,
        ),
        (
            MapRange {
                pfn: u64::MAX,
                pages: 2,
                ..good
            },
            Status::BadAddress,
        ),
    ];
    for (entry, status) in bad {
        map(id, &[entry]).is(status)?;
    }
    for (pfn, status) in FOREIGN_PAGES {
        map(id, &[MapRange { pfn, ..good }]).is(status)?;
    }
    equal("guest frames", hv::machine_info()?.guest_frames, 0)?;
    map(
        id,
        &[MapRange {
            flags: MapFlags::READ_ONLY.bits(),
            ..good
        }],
    )
    .ok()?;
    equal("frames given back", hv::destroy(id)?, 17)
}

fn bad_lists_have_names() -> Outcome {
    let (id, list) = (partition()?, Pages::scratch());
    list.store(0, &range(GPA, Pages::take(1)));
    let call = |pfn, start, count| hv::call(Hypercall::MemoryMap, [id, pfn, start, count]);
    for count in [0, 171, u64::MAX] {
        call(list.pfn(), 0, count).is(Status::OutOfRange)?;
    }
    for start in [2, u64::MAX] {
        call(list.pfn(), start, 1).is(Status::OutOfRange)?;
    }
    for (pfn, status) in FOREIGN_PAGES {
        call(pfn, 0, 1).is(status)?;
    }
    equal("guest frames", hv::machine_info()?.guest_frames, 0)?;
    hv::destroy(id)?;
    Ok(())
}

fn long_lists_take_several_calls() -> Outcome {
    let id = hv::create()?;
    hv::deposit(id, 64)?;
    let ram = Pages::take(10_000);
    let list = Pages::take(1);
    list.store(0, &range(GPA, ram));
    let (mut start, mut calls) = (0, 0);
    loop {
        calls += 1;
        let answer = hv::call(Hypercall::MemoryMap, [id, list.pfn(), start, 1]);
        if answer.status() != Some(Status::TryAgain) {
            equal("done", answer.ok()?, ram.count())?;
            break;
        }
        ensure("each call does something", answer.value > start)?;
        start = answer.value;
    }
    ensure("one call is bounded", calls > 1)?;
    equal(
        "guest frames",
        hv::machine_info()?.guest_frames,
        ram.count(),
    )?;
    let once = unmap(id, GPA, ram.count());
    let done = once.is(Status::TryAgain)?;
    ensure("one call is bounded", (1..ram.count()).contains(&done))?;
    equal(
        "guest frames",
        hv::machine_info()?.guest_frames,
        ram.count() - done,
    )?;
    equal(
        "frames given back",
        hv::destroy(id)?,
        64 + ram.count() - done,
    )
}

fn unmapped_frames_are_roots_alone() -> Outcome {
    let (id, ram) = (partition()?, Pages::take(3));
    map(id, &[range(GPA, ram)]).ok()?;
    equal("pages", unmap(id, GPA + 1, 1).ok()?, 1)?;
    equal("guest frames", hv::machine_info()?.guest_frames, 2)?;
    hv::pass_epoch_everywhere()?;
    hv::call(Hypercall::Deposit, [id, ram.page(1).pfn(), 1]).ok()?;
    hv::call(Hypercall::Deposit, [id, ram.page(0).pfn(), 1]).is(Status::NotOwner)?;
    map(id, &[range(GPA + 1, Pages::take(1))]).ok()?;
    equal("frames given back", hv::destroy(id)?, 20)
}

fn bad_ranges_are_not_unmapped() -> Outcome {
    let (id, ram) = (partition()?, Pages::take(2));
    unmap(id, GPA, 1).is(Status::BadAddress)?;
    map(id, &[range(GPA, ram)]).ok()?;
    unmap(id, GPA, 0).is(Status::InvalidArgument)?;
    for (page, count) in [
        (1 << 36, 1),
        ((1 << 36) - 1, 2),
        (u64::MAX, 1),
        (GPA, u64::MAX),
    ] {
        unmap(id, page, count).is(Status::BadAddress)?;
    }
    equal("done", unmap(id, GPA, 3).is(Status::BadAddress)?, 2)?;
    unmap(id, GPA, 1).is(Status::BadAddress)?;
    hv::destroy(id)?;
    Ok(())
}

fn verify_looks_at_every_frame_and_page() -> Outcome {
    let id = hv::create()?;
    hv::deposit(id, 32)?;
    let large = Pages::take_aligned(512, 512);
    let small = MapRange {
        flags: MapFlags::READ_ONLY.bits(),
        ..range(1 << 20, Pages::take(3))
    };
    map(id, &[range(0, large), small]).ok()?;
    let seen = hv::verify()?;
    ensure(
        "all of RAM is looked at",
        seen.frames >= hv::machine_info()?.frames,
    )?;
    equal("pages of the guest", seen.pages, 515)?;
    // Splits the large page.
    unmap(id, 7, 1).ok()?;
    equal("pages of the guest", hv::verify()?.pages, 514)?;
    hv::destroy(id)?;
    equal("pages of guests", hv::verify()?.pages, 0)
}
