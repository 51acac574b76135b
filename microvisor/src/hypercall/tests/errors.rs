//! Each documented error, from the argument that causes it, and no others.

use guest_proto::Status::{self, *};
use guest_proto::hypercall::{CALLS, Hypercall, Hypercall::*, PartitionFlags};

use super::World;
use crate::hypercall::{Call, dispatch};

/// A list entry: guest page, frame, pages, flags.
type Entry = (u64, u64, u32, u32);

/// A list page that is root's, and one that never is.
const PAGE: u64 = 1;
const HOLE: u64 = 0;

#[test]
fn only_ring_0_may_call() {
    let mut world = World::new();
    for cpl in 1..=3 {
        let call = Call {
            number: AbiVersion.raw(),
            args: [0; 5],
            cpl,
        };
        assert_eq!(
            dispatch(&world.machine, &mut world.cpu, 0, &call).status,
            NotPermitted
        );
    }
}

#[test]
fn unknown_numbers_are_named() {
    let mut world = World::new();
    for number in [0, 7, 0x100, 0x204, 0x307, 1 << 32 | 1, u64::MAX] {
        assert_eq!(world.raw(number, [0; 5]).status, UnknownCall, "{number:#x}");
    }
}

#[test]
fn arguments_that_a_call_does_not_name_must_be_zero() {
    let mut world = World::new();
    let id = world.ok(PartitionCreate, &[0]);
    for doc in CALLS {
        for extra in doc.args.len()..5 {
            let mut args = [0; 5];
            args[0] = id;
            args[extra] = 1;
            let answer = world.raw(doc.call.raw(), args);
            assert_eq!(
                answer.status, InvalidArgument,
                "{} argument {extra}",
                doc.name
            );
        }
    }
}

#[test]
fn no_call_answers_what_its_documentation_does_not_name() {
    let mut world = World::new();
    let id = world.ok(PartitionCreate, &[0]);
    let values = [
        0,
        1,
        2,
        63,
        64,
        170,
        171,
        512,
        513,
        0x1_0000,
        1 << 40,
        u64::MAX,
    ];
    let mut seed = 1_u64;
    for round in 0..20_000 {
        let mut args = [0; 5];
        let doc = &CALLS[round % CALLS.len()];
        for arg in args.iter_mut().take(doc.args.len()) {
            seed = seed
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            *arg = values[(seed >> 33) as usize % values.len()];
        }
        if round % 3 > 0 {
            args[0] = id;
        }
        let status = world.raw(doc.call.raw(), args).status;
        let always = [Ok, UnknownCall, NotPermitted, InvalidArgument];
        let documented =
            always.contains(&status) || doc.errors.iter().any(|(error, _)| *error == status);
        assert!(documented, "{}{args:x?}: {status:?}", doc.name);
    }
}

/// Each call fails with each status for the arguments given. `{id}` is a live partition.
#[test]
fn errors_by_argument() {
    let mut world = World::new();
    let id = world.ok(PartitionCreate, &[0]);
    let end = world.machine.memory.frames.frames();
    let reserved = end - 1;
    let gone = 4;
    let huge = 1 << 40;
    let table: &[(Hypercall, &[u64], Status)] = &[
        (CountersRead, &[gone, 0, PAGE], NoSuchPartition),
        (CountersRead, &[256, 0, PAGE], NoSuchPartition),
        (CountersRead, &[0, 1, PAGE], NoSuchVcpu),
        (CountersRead, &[0, huge, PAGE], NoSuchVcpu),
        (CountersRead, &[id, 0, PAGE], NoSuchVcpu),
        (CountersRead, &[0, 0, HOLE], BadAddress),
        (CountersRead, &[0, 0, reserved], NotOwner),
        (LogRead, &[end, 0], BadAddress),
        (LogRead, &[reserved, 0], NotOwner),
        (MachineInfo, &[end], BadAddress),
        // A number whose low bits would be a frame of root's.
        (MachineInfo, &[1 << 52 | PAGE], BadAddress),
        (MachineInfo, &[u64::MAX], BadAddress),
        (MachineInfo, &[reserved], NotOwner),
        (Verify, &[end, 0], BadAddress),
        (Verify, &[reserved, 0], NotOwner),
        (Verify, &[PAGE, 258 << 36], OutOfRange),
        (Verify, &[PAGE, u64::MAX], OutOfRange),
        (
            PartitionCreate,
            &[PartitionFlags::PRIVATE.bits()],
            NotSupported,
        ),
        (PartitionCreate, &[2], InvalidArgument),
        (PartitionDestroy, &[0], NoSuchPartition),
        (PartitionDestroy, &[gone], NoSuchPartition),
        (PartitionDestroy, &[u64::MAX], NoSuchPartition),
        (PartitionSet, &[gone, 1, 1_000_000], NoSuchPartition),
        (PartitionSet, &[id, 0, 0], InvalidArgument),
        (PartitionSet, &[id, 5, 0], InvalidArgument),
        (PartitionSet, &[id, 1, 99_999], OutOfRange),
        (PartitionSet, &[id, 1, 100_000_001], OutOfRange),
        (PartitionSet, &[id, 3, 1], InvalidArgument),
        (PartitionSet, &[id, 4, 2], OutOfRange),
        (DoorbellAdd, &[gone, 0, 1, 0, 0], NoSuchPartition),
        (DoorbellAdd, &[id, 0, 1, 0, 2], InvalidArgument),
        (DoorbellAdd, &[id, 0, 1, 0, 1 << 63], InvalidArgument),
        (DoorbellAdd, &[id, 0, 0, 0, 0], OutOfRange),
        (DoorbellAdd, &[id, 0, 0x1001, 0, 0], OutOfRange),
        (DoorbellAdd, &[id, 0x1_0000, 1, 0, 0], OutOfRange),
        (DoorbellAdd, &[id, 0, 1, 0xffff, 0], OutOfRange),
        (DoorbellAdd, &[id, 0, 1, 0x1_0000, 0], OutOfRange),
        (DoorbellRemove, &[gone, 0], NoSuchPartition),
        (DoorbellRemove, &[id, 7], OutOfRange),
        (DoorbellRemove, &[id, 1 << 16], OutOfRange),
        (Deposit, &[gone, 2, 1], NoSuchPartition),
        (Deposit, &[id, 2, 0], OutOfRange),
        (Deposit, &[id, 2, 513], OutOfRange),
        (Deposit, &[id, HOLE, 1], BadAddress),
        (Deposit, &[id, end, 1], BadAddress),
        (Deposit, &[id, end - 1, 2], BadAddress),
        (Deposit, &[id, u64::MAX, 2], BadAddress),
        (Deposit, &[id, reserved, 1], NotOwner),
        (MemoryMap, &[gone, PAGE, 0, 1], NoSuchPartition),
        (MemoryMap, &[id, PAGE, 0, 0], OutOfRange),
        (MemoryMap, &[id, PAGE, 0, 171], OutOfRange),
        (MemoryMap, &[id, HOLE, 0, 1], BadAddress),
        (MemoryMap, &[id, reserved, 0, 1], NotOwner),
        (MemoryUnmap, &[gone, 0, 1], NoSuchPartition),
        (MemoryUnmap, &[id, 0, 0], InvalidArgument),
        (MemoryUnmap, &[id, 0, 1], BadAddress),
        (MemoryUnmap, &[id, u64::MAX, 1], BadAddress),
        (MemoryUnmap, &[id, 1 << 36, 1], BadAddress),
    ];
    for (call, args, status) in table {
        world.fails(*call, args, *status);
    }
}

#[test]
fn a_table_of_partitions_or_doorbells_gets_full() {
    let mut world = World::new();
    let ids: std::vec::Vec<_> = (0..4).map(|_| world.ok(PartitionCreate, &[0])).collect();
    assert_eq!(ids, [1, 2, 3, 4]);
    world.fails(PartitionCreate, &[0], Full);
    world.destroy(2);
    assert_eq!(world.ok(PartitionCreate, &[0]), 2);
    for port in 0..64 {
        world.ok(DoorbellAdd, &[1, port, 1, port, 0]);
    }
    world.fails(DoorbellAdd, &[1, 64, 1, 64, 0], Full);
    world.fails(DoorbellAdd, &[1, 63, 1, 64, 0], Overlap);
    world.ok(DoorbellRemove, &[1, 5]);
    world.ok(DoorbellAdd, &[1, 64, 1, 64, 0]);
}

#[test]
fn pages_named_in_a_call_must_be_roots_alone() {
    let mut world = World::new();
    let id = world.ok(PartitionCreate, &[0]);
    world.deposit(id, 10, 5);
    world.list(PAGE, &[(0, 20, 1, 0)]);
    world.ok(MemoryMap, &[id, PAGE, 0, 1]);
    // In the pool, a table, and RAM that the guest may write.
    for frame in [10, 14, 20] {
        world.fails(MachineInfo, &[frame], NotOwner);
        world.fails(MemoryMap, &[id, frame, 0, 1], NotOwner);
        world.fails(Deposit, &[id, frame, 1], NotOwner);
    }
}

#[test]
fn list_entries_are_checked_one_by_one() {
    let mut world = World::new();
    let id = world.ok(PartitionCreate, &[0]);
    world.deposit(id, 10, 10);
    let end = world.machine.memory.frames.frames();
    let reserved = end - 1;
    let bad: &[(Entry, Status)] = &[
        ((8, 40, 1, 2), InvalidArgument),
        ((8, 40, 0, 0), OutOfRange),
        ((1 << 36, 40, 1, 0), OutOfRange),
        ((u64::MAX, 40, 1, 0), OutOfRange),
        ((8, end, 1, 0), BadAddress),
        ((8, 40, u32::MAX, 0), BadAddress),
        ((8, u64::MAX, 1, 0), BadAddress),
        ((8, HOLE, 1, 0), BadAddress),
        ((8, reserved, 1, 0), NotOwner),
        ((8, 10, 1, 0), NotOwner),
        ((3, 40, 1, 0), Overlap),
    ];
    for (round, (entry, status)) in (0..).zip(bad) {
        let first = 20 + 2 * round;
        world.list(PAGE, &[(3, first, 2, 0), *entry]);
        // The entry before stays done, and the value says so.
        assert_eq!(
            world.fails(MemoryMap, &[id, PAGE, 0, 2], *status),
            2,
            "{entry:x?}"
        );
        assert_eq!(world.ok(MemoryUnmap, &[id, 3, 2]), 2);
        world.ok(EpochPass, &[]);
    }
    world.list(PAGE, &[(3, 20, 2, 0)]);
    world.fails(MemoryMap, &[id, PAGE, 3, 1], OutOfRange);
}
