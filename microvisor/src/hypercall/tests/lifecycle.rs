//! Partitions from creation to destruction, with nothing lost.

use std::vec::Vec;

use guest_proto::Status;
use guest_proto::hypercall::Hypercall::*;
use guest_proto::hypercall::MachineInfo as Info;
use proptest::prelude::*;
use zerocopy::FromBytes;

use super::World;
use super::verify::check_maps;
use crate::memory::Frame;
use crate::memory::frame_table::Owner;

const PAGE: u64 = 1;

pub(super) fn info(world: &mut World) -> Info {
    world.ok(MachineInfo, &[PAGE]);
    let mut bytes = [0; 128];
    let at = Frame::new(PAGE).base();
    assert!(world.machine.memory.map.read(at, &mut bytes));
    Info::read_from_bytes(&bytes).unwrap_or_default()
}

fn all_is_roots(world: &mut World) {
    for n in 1..world.ram_end {
        let owner = world.machine.memory.frames.owner(Frame::new(n));
        assert_eq!(owner, Owner::Root, "frame {n}");
    }
    check_maps(world);
}

/// Maps a list to its end, depositing from `spare` what the calls ask for. Answers the calls.
fn map_all(world: &mut World, id: u64, count: u64, spare: &mut u64) -> u64 {
    let (mut start, mut calls) = (0, 0);
    loop {
        calls += 1;
        let answer = world.call(MemoryMap, &[id, PAGE, start, count]);
        match answer.status {
            Status::Ok => return calls,
            Status::TryAgain => start = answer.value,
            Status::NeedPages => {
                world.deposit(id, *spare, answer.value);
                *spare += answer.value;
            }
            status => panic!("{status:?}"),
        }
    }
}

#[test]
fn the_count_of_pages_to_deposit_is_exact() {
    let mut world = World::new();
    let id = world.ok(PartitionCreate, &[0]);
    // Two page tables below one directory, and a second directory with one.
    world.list(
        PAGE,
        &[
            (0, 600, 2, 0),
            (512, 602, 1, 0),
            (5, 603, 1, 0),
            (1 << 18, 604, 1, 1),
        ],
    );
    let args = [id, PAGE, 0, 4];
    assert_eq!(world.fails(MemoryMap, &args, Status::NeedPages), 4);
    world.deposit(id, 10, 6);
    // The last entry lacks one of its two tables, and the call after tells so.
    assert_eq!(world.fails(MemoryMap, &args, Status::TryAgain), 4);
    let args = [id, PAGE, 4, 4];
    assert_eq!(world.fails(MemoryMap, &args, Status::NeedPages), 1);
    world.ok(Deposit, &[id, 16, 1]);
    let done = world.call(MemoryMap, &args);
    assert_eq!((done.status, done.value), (Status::Ok, 5));
    let now = info(&mut world);
    assert_eq!(
        (now.partitions, now.deposited_frames, now.guest_frames),
        (2, 7, 5)
    );
    world.destroy(id);
    all_is_roots(&mut world);
}

#[test]
fn long_maps_go_in_batches_and_use_large_pages() {
    let mut world = World::with_frames(8 * 2048);
    let id = world.ok(PartitionCreate, &[0]);
    world.list(PAGE, &[(512, 512, 6 * 1024 + 5, 0), (0, 100, 3, 0)]);
    let mut spare = 200;
    assert!(map_all(&mut world, id, 2, &mut spare) >= 3);
    // Top, pointer table, directory, and a page table for either tail: the rest is large.
    assert_eq!(spare, 205);
    let unmap = world.call(MemoryUnmap, &[id, 512, 6 * 1024 + 5]);
    assert_eq!((unmap.status, unmap.value), (Status::TryAgain, 4096));
    let rest = world.call(MemoryUnmap, &[id, 512 + 4096, 2 * 1024 + 5]);
    assert_eq!((rest.status, rest.value), (Status::Ok, 2 * 1024 + 5));
    world.destroy(id);
    all_is_roots(&mut world);
}

#[test]
fn a_batch_that_is_full_at_an_entrys_end_stops_there() {
    let mut world = World::with_frames(8 * 2048);
    let id = world.ok(PartitionCreate, &[0]);
    world.list(PAGE, &[(512, 512, 4096, 0), (0, 5000, 1, 0)]);
    world.deposit(id, 10, 8);
    let full = world.fails(MemoryMap, &[id, PAGE, 0, 2], Status::TryAgain);
    assert_eq!(full, 4096);
    assert_eq!(world.ok(MemoryMap, &[id, PAGE, full, 2]), 4097);
    world.destroy(id);
    all_is_roots(&mut world);
}

#[test]
fn a_partition_that_ends_takes_nothing_more() {
    let mut world = World::with_frames(8 * 2048);
    let id = world.ok(PartitionCreate, &[0]);
    world.list(PAGE, &[(0, 512, 10 * 1024, 0)]);
    map_all(&mut world, id, 1, &mut 100);
    let given = world.fails(PartitionDestroy, &[id], Status::TryAgain);
    assert!(given > 0);
    world.fails(Deposit, &[id, 4, 1], Status::InvalidState);
    world.fails(MemoryMap, &[id, PAGE, 0, 1], Status::InvalidState);
    world.fails(MemoryUnmap, &[id, 0, 1], Status::InvalidState);
    world.fails(PartitionSet, &[id, 4, 1], Status::InvalidState);
    world.fails(DoorbellAdd, &[id, 0, 1, 0, 0], Status::NoSuchPartition);
    world.fails(DoorbellRemove, &[id, 0], Status::NoSuchPartition);
    world.fails(CountersRead, &[id, 0, PAGE], Status::NoSuchPartition);
    // Its number is not given out again before the end.
    assert_eq!(world.ok(PartitionCreate, &[0]), id + 1);
    world.destroy(id);
    world.destroy(id + 1);
    all_is_roots(&mut world);
}

#[test]
fn metadata_comes_back_scrubbed() {
    let mut world = World::new();
    let id = world.ok(PartitionCreate, &[0]);
    world.deposit(id, 10, 8);
    world.list(PAGE, &[(0, 600, 2, 0)]);
    world.ok(MemoryMap, &[id, PAGE, 0, 1]);
    world.destroy(id);
    for n in 10..18 {
        let mut bytes = [1; 4096];
        assert!(
            world
                .machine
                .memory
                .map
                .read(Frame::new(n).base(), &mut bytes)
        );
        assert_eq!(bytes, [0; 4096]);
    }
}

#[test]
fn a_hundred_cycles_lose_nothing() {
    let mut world = World::new();
    let before = info(&mut world);
    for cycle in 0..100 {
        let id = world.ok(PartitionCreate, &[0]);
        world.list(PAGE, &[(cycle, 600, 40, 0), (1 << 30, 700 + cycle, 1, 1)]);
        map_all(&mut world, id, 2, &mut 10);
        world.destroy(id);
    }
    let after = info(&mut world);
    assert_eq!(before.deposited_frames, after.deposited_frames);
    assert_eq!(before.guest_frames, after.guest_frames);
    assert_eq!(before.partitions, after.partitions);
    all_is_roots(&mut world);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Whatever root asks for, frames have one owner, and all comes back.
    #[test]
    fn random_calls_keep_the_books(calls in prop::collection::vec(
        (0..9_usize, 1..4_u64, 0..1100_u64, 0..1100_u64, 1..700_u32), 1..60)
    ) {
        let mut world = World::new();
        for (kind, id, a, b, n) in calls {
            let n64 = u64::from(n);
            match kind {
                0 => world.call(PartitionCreate, &[0]),
                1 => world.call(PartitionDestroy, &[id]),
                2 => world.call(Deposit, &[id, a, n64 % 40]),
                3 | 4 => {
                    world.list(PAGE, &[(b, a, n, 0), (a, b, 1, 1)]);
                    world.call(MemoryMap, &[id, PAGE, 0, 2])
                }
                5 => {
                    world.list(PAGE, &[(b / 512 * 512, 512, 512, 0)]);
                    world.call(MemoryMap, &[id, PAGE, 0, 1])
                }
                6 => world.call(MemoryUnmap, &[id, a, n64]),
                7 => world.call(EpochPass, &[]),
                _ => world.call(MemoryMap, &[id, a, b, n64]),
            };
            // The list's page may have been given away.
            if world.machine.memory.frames.owner(Frame::new(PAGE)) != Owner::Root {
                break;
            }
        }
        check_maps(&mut world);
        let ids: Vec<_> = (1..=4).collect();
        for id in ids {
            world.destroy(id);
        }
        all_is_roots(&mut world);
    }
}
