//! `verify` finds each kind of difference, and none where there is none.

use std::thread;

use guest_proto::Status;
use guest_proto::hypercall::Hypercall::*;
use guest_proto::hypercall::{FrameOwner, VerifyDifference, VerifyReport, verify_maps};
use zerocopy::FromBytes;

use super::World;
use crate::arch::hw::Cpu;
use crate::hypercall::{Call, dispatch};
use crate::machine::Machine;
use crate::memory::frame_table::{Owner, PartitionId};
use crate::memory::nested::entry::Entry;
use crate::memory::{Frame, GuestPage, Hpa};

const PAGE: u64 = 1;

/// The guest's metadata, and the last frame of it, which becomes the top table.
const POOL: u64 = 10;
const TOP: u64 = POOL + 9;
/// Frames of the guest's RAM: a large page, and a small one.
const LARGE: u64 = 512;
const SMALL: u64 = 40;
/// Guest page of the small page.
const SMALL_AT: u64 = 600;

fn report(machine: &Machine, page: u64) -> VerifyReport {
    let mut bytes = [0; size_of::<VerifyReport>()];
    assert!(machine.memory.map.read(Frame::new(page).base(), &mut bytes));
    VerifyReport::read_from_bytes(&bytes).unwrap()
}

/// A whole pass, with reports in the last page that is root's. Answers its calls, and their reports put
/// together.
fn pass(world: &mut World) -> (u64, VerifyReport) {
    let is_roots = |n: &u64| world.machine.memory.frames.owner(Frame::new(*n)) == Owner::Root;
    let page = (1..world.ram_end).rev().find(is_roots).unwrap();
    let (mut position, mut calls, mut sum) = (0, 0, VerifyReport::default());
    loop {
        position = world.ok(Verify, &[page, position]);
        calls += 1;
        let found = report(&world.machine, page);
        sum = VerifyReport {
            frames: sum.frames + found.frames,
            pages: sum.pages + found.pages,
            ..found
        };
        if position == 0 {
            return (calls, sum);
        }
    }
}

/// The nested maps and the frame table say the same.
pub(super) fn check_maps(world: &mut World) {
    let (_, found) = pass(world);
    assert_eq!(found.difference, 0, "{found:x?}");
}

/// A world with a guest; its id.
fn with_guest() -> (World, u64) {
    let mut world = World::new();
    let id = world.ok(PartitionCreate, &[0]);
    world.deposit(id, POOL, 10);
    world.list(PAGE, &[(0, LARGE, 512, 0), (SMALL_AT, SMALL, 1, 0)]);
    world.ok(MemoryMap, &[id, PAGE, 0, 2]);
    (world, id)
}

#[test]
fn a_pass_looks_at_everything_and_finds_nothing() {
    let (mut world, _) = with_guest();
    let (calls, found) = pass(&mut world);
    let frames = world.machine.memory.frames.frames();
    let expected = VerifyReport {
        frames,
        pages: 513,
        ..VerifyReport::default()
    };
    assert_eq!(found, expected);
    assert!(calls >= 2, "{calls} calls for {frames} frames");
}

/// The guest's tables, from the top to the page table.
fn tables(world: &World, id: u64) -> [Frame; 4] {
    let partition = world.machine.partitions.find(id).unwrap();
    let mut table = partition.top().unwrap();
    [0, 0, 1, 0].map(|index| {
        let this = table;
        table = read(world, table, index).frame();
        this
    })
}

fn word(table: Frame, index: u64) -> Hpa {
    Hpa::new(table.base().as_u64() + 8 * index)
}

fn read(world: &World, table: Frame, index: u64) -> Entry {
    let word = world.machine.memory.map.atomic(word(table, index)).unwrap();
    Entry::from_raw(word.load(core::sync::atomic::Ordering::Relaxed))
}

fn write(world: &World, table: Frame, index: u64, entry: Entry) {
    let word = world.machine.memory.map.atomic(word(table, index)).unwrap();
    word.store(entry.raw(), core::sync::atomic::Ordering::Relaxed);
}

/// Breaks something of partition `id`, whose tables are given.
type Break = fn(&World, PartitionId, [Frame; 4]);
/// Name, what is broken; the kind, map, page, level and frame of the difference, and the frame's owner.
type Row = (
    &'static str,
    Break,
    VerifyDifference,
    u64,
    u64,
    u32,
    u64,
    FrameOwner,
);

#[test]
fn each_kind_of_difference_is_found_with_both_sides() {
    use FrameOwner as Is;
    use VerifyDifference as Kind;
    let other = 30;
    let small = SMALL_AT % 512;
    let table: &[Row] = &[
        (
            "a guest's page is root's",
            |w, _, t| write(w, t[3], SMALL_AT % 512, Entry::page(Frame::new(30), true)),
            Kind::Page,
            1,
            SMALL_AT,
            0,
            other,
            Is::Root,
        ),
        (
            "a guest has a page twice",
            |w, _, t| {
                write(
                    w,
                    t[3],
                    SMALL_AT % 512 + 1,
                    Entry::page(Frame::new(SMALL), true),
                )
            },
            Kind::Page,
            1,
            SMALL_AT + 1,
            0,
            SMALL,
            Is::Shared,
        ),
        (
            "a guest's page is one that no guest has, by the frame table",
            |w, id, _| {
                let frames = &w.machine.memory.frames;
                let page = GuestPage::new(GuestPage::COUNT + SMALL_AT);
                frames.guest_unshare(Frame::new(SMALL), id).unwrap();
                frames
                    .root_share_guest(Frame::new(SMALL), 1, id, page)
                    .unwrap();
            },
            Kind::Page,
            1,
            SMALL_AT,
            0,
            SMALL,
            Is::Shared,
        ),
        (
            "a guest's large page has another frame within",
            |w, id, _| {
                w.machine
                    .memory
                    .frames
                    .guest_unshare(Frame::new(LARGE + 7), id)
                    .unwrap();
            },
            Kind::Page,
            1,
            7,
            1,
            LARGE + 7,
            Is::Root,
        ),
        (
            "a guest's table is root's",
            |w, _, t| write(w, t[2], 1, Entry::table(Frame::new(30))),
            Kind::Table,
            1,
            512,
            1,
            other,
            Is::Root,
        ),
        (
            "a guest's page is gone",
            |w, _, t| write(w, t[3], SMALL_AT % 512, Entry::ABSENT),
            Kind::Frame,
            1,
            SMALL_AT,
            0,
            SMALL,
            Is::Shared,
        ),
        (
            "root reaches a table",
            |w, _, t| {
                w.machine
                    .memory
                    .root
                    .lock()
                    .restore(&w.machine.memory.map, t[0])
            },
            Kind::Frame,
            0,
            TOP,
            0,
            TOP,
            Is::Metadata,
        ),
        (
            "root does not reach its page",
            |w, _, _| {
                w.machine
                    .memory
                    .root
                    .lock()
                    .unmap(&w.machine.memory.map, Frame::new(30))
            },
            Kind::Frame,
            0,
            other,
            0,
            other,
            Is::Root,
        ),
        (
            "an owner does not exist",
            |w, _, _| {
                let frames = &w.machine.memory.frames;
                frames
                    .root_share_page(Frame::new(30), PartitionId(9))
                    .unwrap();
            },
            Kind::Owner,
            9,
            0,
            4,
            other,
            Is::SharedPage,
        ),
        (
            "a waiting CPU reaches a frame at another's address",
            |w, _, _| {
                let table = w.machine.memory.waiting.offset(3);
                write(w, table, 9, Entry::page(Frame::new(30), true));
            },
            Kind::Page,
            verify_maps::WAITING,
            9,
            0,
            other,
            Is::Root,
        ),
    ];
    for (what, break_it, kind, map, page, level, frame, owner) in table {
        let (mut world, id) = with_guest();
        let tables = tables(&world, id);
        assert_eq!(tables[0].number(), TOP, "{what}");
        assert_eq!(read(&world, tables[3], small).frame(), Frame::new(SMALL));
        break_it(&world, PartitionId(id as u8), tables);
        let (_, found) = pass(&mut world);
        let got = (
            found.difference,
            found.map,
            found.page,
            found.level,
            found.frame,
        );
        assert_eq!(
            got,
            (kind.raw(), *map, *page, *level, *frame),
            "{what}: {found:x?}"
        );
        assert_eq!(found.owner as u8, owner.raw(), "{what}: {found:x?}");
    }
}

/// The entry and the owner are those of the moment.
#[test]
fn a_report_has_the_entry_and_the_owner_as_they_are() {
    let (mut world, id) = with_guest();
    let wrong = Entry::page(Frame::new(LARGE), false);
    write(&world, tables(&world, id)[3], SMALL_AT % 512, wrong);
    let (_, found) = pass(&mut world);
    assert_eq!(found.entry, wrong.raw());
    let owner = u64::from(FrameOwner::Shared.raw()) | id << 8;
    assert_eq!(found.owner, owner, "guest page 0");
}

/// A partition that comes and goes on another CPU is no difference at any time.
#[test]
fn what_another_cpu_changes_is_no_difference() {
    let world = World::new();
    world.list(2, &[(0, LARGE, 512, 0), (SMALL_AT, SMALL, 1, 0)]);
    world.machine.memory.epochs.online(1);
    let machine = &world.machine;
    thread::scope(|scope| {
        let changes = scope.spawn(move || {
            let mut cpu = Cpu::idle(1);
            let mut call = |call: guest_proto::hypercall::Hypercall, args: [u64; 5]| {
                let call = Call {
                    number: call.raw(),
                    args,
                    cpl: 0,
                };
                dispatch(machine, &mut cpu, 0, &call)
            };
            // Until it answers something else than `TryAgain`.
            let mut finish = |number, mut args: [u64; 5], at: Option<usize>| loop {
                let answer = call(number, args);
                if answer.status != Status::TryAgain {
                    assert_eq!(answer.status, Status::Ok, "{number:?}{args:x?}");
                    return answer.value;
                }
                if let Some(argument) = at {
                    args[argument] = answer.value;
                }
            };
            for _ in 0..300 {
                let id = finish(PartitionCreate, [0; 5], None);
                finish(Deposit, [id, POOL, 20, 0, 0], None);
                finish(MemoryMap, [id, 2, 0, 2, 0], Some(2));
                finish(VcpuCreate, [id, 0, 3, 0, 0], None);
                finish(MemoryUnmap, [id, SMALL_AT, 1, 0, 0], None);
                finish(PartitionDestroy, [id, 0, 0, 0, 0], None);
            }
        });
        let mut cpu = Cpu::idle(0);
        let (mut position, mut pages) = (0, 0);
        let mut difference = None;
        // The other thread waits for epochs of this one, so nothing here may end it early.
        while !changes.is_finished() {
            let call = Call {
                number: Verify.raw(),
                args: [PAGE, position, 0, 0, 0],
                cpl: 0,
            };
            position = dispatch(machine, &mut cpu, 0, &call).value;
            let found = report(machine, PAGE);
            pages += found.pages;
            if found.difference != 0 {
                difference.get_or_insert(found);
            }
        }
        assert_eq!(difference, None);
        assert!(pages > 0, "the guest was never seen");
    });
}
