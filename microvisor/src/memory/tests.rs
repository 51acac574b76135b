//! Random transitions of the whole of memory keep what the frame table promises.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::vec::Vec;

use proptest::prelude::*;

use super::frame_table::{FrameError, FrameTable, Owner, PartitionId};
use super::nested::guest::{MapError, Run};
use super::nested::{GuestMap, LARGE_PAGES};
use super::pool::{Pool, Shortage};
use super::testing::{Fake, check_maps};
use super::{Frame, GuestPage, Memory};

const FRAMES: u64 = 6 * LARGE_PAGES;
const PARTITIONS: usize = 2;

#[derive(Clone, Debug)]
enum Step {
    Deposit {
        who: usize,
        first: u64,
        count: u64,
    },
    Map {
        who: usize,
        runs: Vec<Run>,
    },
    Unmap {
        who: usize,
        page: GuestPage,
        pages: u64,
    },
    TearDown {
        who: usize,
        budget: u64,
    },
    GiveBack {
        who: usize,
        count: u64,
    },
    Pass,
}

fn run() -> impl Strategy<Value = Run> {
    let page = prop_oneof![
        0..4 * LARGE_PAGES,
        (0..4u64).prop_map(|n| n * LARGE_PAGES),
        (0..3u64).prop_map(|n| n * LARGE_PAGES * LARGE_PAGES + 5),
        Just(GuestPage::COUNT - LARGE_PAGES),
    ];
    let frame = prop_oneof![0..FRAMES + 8, (0..6u64).prop_map(|n| n * LARGE_PAGES)];
    let pages = prop_oneof![1..20u64, Just(LARGE_PAGES), Just(LARGE_PAGES + 7)];
    (page, frame, pages, any::<bool>()).prop_map(|(page, frame, pages, writable)| Run {
        page: GuestPage::new(page),
        frame: Frame::new(frame),
        pages: pages.min(GuestPage::COUNT - page),
        writable,
    })
}

fn step() -> impl Strategy<Value = Step> {
    let who = 0..PARTITIONS;
    prop_oneof![
        3 => (who.clone(), 0..FRAMES + 4, 1..40u64)
            .prop_map(|(who, first, count)| Step::Deposit { who, first, count }),
        6 => (who.clone(), prop::collection::vec(run(), 1..6))
            .prop_map(|(who, runs)| Step::Map { who, runs }),
        3 => (who.clone(), 0..5 * LARGE_PAGES, prop_oneof![1..20u64, 1..3 * LARGE_PAGES])
            .prop_map(|(who, page, pages)| Step::Unmap { who, page: GuestPage::new(page), pages }),
        1 => (who.clone(), 1..2000u64).prop_map(|(who, budget)| Step::TearDown { who, budget }),
        1 => (who, 1..50u64).prop_map(|(who, count)| Step::GiveBack { who, count }),
        3 => Just(Step::Pass),
    ]
}

struct Guest {
    id: PartitionId,
    pool: Pool,
    map: GuestMap,
    /// What should be mapped: guest page → frame, writable.
    model: BTreeMap<GuestPage, (Frame, bool)>,
}

/// Frames that are tables.
fn tables(memory: &Memory) -> usize {
    let owners = (0..FRAMES).map(|n| memory.frames.owner(Frame::new(n)));
    owners.filter(|o| matches!(o, Owner::Metadata(_))).count()
}

struct World {
    fake: Fake,
    guests: Vec<Guest>,
}

impl World {
    fn new() -> Self {
        let guests = (1..=PARTITIONS as u8).map(|n| Guest {
            id: PartitionId(n),
            pool: Pool::new(PartitionId(n)),
            map: GuestMap::new(PartitionId(n)),
            model: BTreeMap::new(),
        });
        Self {
            fake: Fake::new(FRAMES),
            guests: guests.collect(),
        }
    }

    fn step(&mut self, step: Step) {
        let memory = &self.fake.memory;
        match step {
            Step::Deposit { who, first, count } => {
                let guest = &mut self.guests[who];
                let before = guest.pool.len();
                let all_root = (first..first + count)
                    .all(|n| memory.frames.owner(Frame::new(n)) == Owner::Root);
                let result = guest.pool.deposit(memory, Frame::new(first), count);
                assert_eq!(result.is_ok(), all_root, "{result:?}");
                let now = before + if all_root { count } else { 0 };
                assert_eq!(guest.pool.len(), now);
            }
            Step::Map { who, runs } => {
                let guest = &mut self.guests[who];
                for run in runs {
                    let needed = guest.map.tables_needed(&memory.map, &run);
                    let before = guest.pool.len();
                    let flushed = Cell::new(false);
                    let flush = || flushed.set(true);
                    let epoch = memory.epochs.current();
                    let (done, result) = guest.map.map(memory, &mut guest.pool, run, flush);
                    // A table that was linked and is free again is in no translation.
                    assert!(flushed.get() || memory.epochs.current() == epoch);
                    for n in 0..done {
                        let frame = run.frame.offset(n);
                        let old = guest
                            .model
                            .insert(run.page.offset(n), (frame, run.writable));
                        assert_eq!(old, None);
                    }
                    match result {
                        Ok(()) => {
                            assert_eq!(done, run.pages);
                            assert_eq!(before - guest.pool.len(), needed, "the count is exact");
                            continue;
                        }
                        Err(MapError::Overlap | MapError::Frame(_)) => assert!(done < run.pages),
                        Err(MapError::Shortage(Shortage::Epoch)) => {
                            assert!(done == 0 && needed <= before);
                        }
                        Err(MapError::Shortage(Shortage::Deposit(n))) => {
                            assert_eq!((done, n), (0, needed - before));
                        }
                        Err(error) => panic!("{error:?}"),
                    }
                    break;
                }
            }
            Step::Unmap { who, page, pages } => {
                let guest = &mut self.guests[who];
                let Guest {
                    pool,
                    map,
                    model,
                    id,
                } = guest;
                let epoch = memory.epochs.current();
                let metadata = tables(memory);
                let flushes = Cell::new(0);
                // Until the first flush another CPU may enter with translations of what goes: nothing has
                // changed hands. Until the last one it may have those of tables that go: none is given out.
                let flush = || {
                    if flushes.replace(flushes.get() + 1) == 0 {
                        for (frame, _) in model.values() {
                            assert_eq!(memory.frames.owner(*frame), Owner::Shared(*id));
                        }
                        assert!(tables(memory) >= metadata);
                    }
                    assert_eq!(memory.epochs.current(), epoch);
                };
                let (done, result) = map.unmap(memory, pool, page, pages, flush);
                let pruned = memory.epochs.current() != epoch;
                assert!(flushes.get() >= u64::from(done > 0) + u64::from(pruned));
                let guest = &mut self.guests[who];
                for n in 0..done {
                    assert!(guest.model.remove(&page.offset(n)).is_some());
                }
                match result {
                    Ok(()) => assert_eq!(done, pages),
                    Err(MapError::NotMapped) => {
                        assert!(!guest.model.contains_key(&page.offset(done)));
                    }
                    Err(MapError::Shortage(_)) => {
                        assert!(guest.model.contains_key(&page.offset(done)));
                    }
                    Err(error) => panic!("{error:?}"),
                }
            }
            Step::TearDown { who, budget } => {
                let guest = &mut self.guests[who];
                let freed = guest.map.tear_down(memory, &mut guest.pool, budget);
                let before = guest.model.len() as u64;
                let (map, table) = (&guest.map, &memory.map);
                guest
                    .model
                    .retain(|page, _| map.lookup(table, *page).is_some());
                assert!(before - guest.model.len() as u64 >= freed);
                assert!(guest.map.top().is_none() || freed == budget);
            }
            Step::GiveBack { who, count } => {
                for _ in 0..count {
                    self.guests[who].pool.give_back(memory);
                }
            }
            Step::Pass => self.fake.pass(),
        }
    }

    fn check(&self) {
        let maps: Vec<_> = self.guests.iter().map(|g| (g.id, &g.map)).collect();
        check_maps(&self.fake.memory, &maps);
        let memory = &self.fake.memory;
        let mut shared = 0;
        for guest in &self.guests {
            for (page, mapped) in &guest.model {
                assert_eq!(guest.map.lookup(&memory.map, *page), Some(*mapped));
                assert_eq!(memory.frames.owner(mapped.0), Owner::Shared(guest.id));
                assert_eq!(memory.frames.guest_page(mapped.0), Some(*page));
                shared += 1;
            }
        }
        let count = |kind: fn(Owner) -> bool| {
            let owners = (0..FRAMES).map(|n| memory.frames.owner(Frame::new(n)));
            owners.filter(|owner| kind(*owner)).count() as u64
        };
        assert_eq!(count(|o| matches!(o, Owner::Shared(_))), shared);
        assert_eq!(memory.frames.guest(), shared);
        let pools: u64 = self.guests.iter().map(|g| g.pool.len()).sum();
        assert_eq!(count(|o| matches!(o, Owner::Pool(_))), pools);
        let metadata = count(|o| matches!(o, Owner::Metadata(_)));
        assert_eq!(memory.frames.deposited(), pools + metadata);
    }

    /// Ends every partition; then all is root's again, mapped by large pages as at boot.
    fn end(mut self) {
        let memory = &self.fake.memory;
        for guest in &mut self.guests {
            while guest.map.top().is_some() {
                guest.map.tear_down(memory, &mut guest.pool, 700);
            }
            while guest.pool.give_back(memory) {}
            assert!(guest.pool.is_empty());
        }
        for n in 1..self.fake.ram_end {
            assert_eq!(memory.frames.owner(Frame::new(n)), Owner::Root, "frame {n}");
        }
        assert_eq!((memory.frames.deposited(), memory.frames.guest()), (0, 0));
        let fresh = Fake::new(FRAMES);
        let whole = fresh.memory.root.lock().large_pages(&fresh.memory.map);
        assert_eq!(memory.root.lock().large_pages(&memory.map), whole);
        check_maps(&self.fake.memory, &[]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn one_owner_and_nothing_lost(steps in prop::collection::vec(step(), 1..40)) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
            world.check();
        }
        world.end();
    }
}

fn table() -> Fake {
    Fake::new(2 * LARGE_PAGES)
}

#[test]
fn every_transition_refuses_every_other_owner() {
    type Change = fn(&FrameTable, Frame) -> Result<(), FrameError>;
    type Reach = fn(&FrameTable, Frame, PartitionId) -> Result<(), FrameError>;
    const ID: PartitionId = PartitionId(3);
    let changes: [(&str, Change); 10] = [
        ("root", |t, f| t.root_deposit(f, ID, None)),
        ("pool", |t, f| t.pool_return(f, ID).map(|_| ())),
        ("pool", |t, f| t.pool_take(f, ID).map(|_| ())),
        ("pool", |t, f| t.pool_link(f, ID, None)),
        ("root", |t, f| {
            t.root_share_guest(f, 1, ID, GuestPage::new(1))
        }),
        ("shared", |t, f| t.guest_unshare(f, ID)),
        ("root", |t, f| t.root_donate_guest(f, ID, GuestPage::new(1))),
        ("guest", |t, f| t.guest_return(f, ID)),
        ("root", |t, f| t.root_share_page(f, ID)),
        ("page", |t, f| t.page_unshare(f, ID)),
    ];
    let other = PartitionId(4);
    let states: [(&str, Reach); 6] = [
        ("root", |_, _, _| Ok(())),
        ("pool", |t, f, id| t.root_deposit(f, id, None)),
        ("metadata", |t, f, id| {
            t.root_deposit(f, id, None)?;
            t.pool_take(f, id).map(|_| ())
        }),
        ("shared", |t, f, id| {
            t.root_share_guest(f, 1, id, GuestPage::new(1))
        }),
        ("guest", |t, f, id| {
            t.root_donate_guest(f, id, GuestPage::new(1))
        }),
        ("page", |t, f, id| t.root_share_page(f, id)),
    ];
    for (from, change) in changes {
        for (state, reach) in states {
            for id in [ID, other] {
                let fake = table();
                let frame = Frame::new(9);
                assert_eq!(reach(&fake.memory.frames, frame, id), Ok(()));
                let fits = from == state && (id == ID || state == "root");
                let expected = if fits {
                    Ok(())
                } else {
                    Err(FrameError::NotOwner)
                };
                assert_eq!(
                    change(&fake.memory.frames, frame),
                    expected,
                    "{from} in {state}"
                );
            }
        }
        let fake = table();
        let absent = [Frame::new(0), Frame::new(fake.frames), Frame::new(u64::MAX)];
        for frame in absent {
            assert_eq!(change(&fake.memory.frames, frame), Err(FrameError::NotRam));
        }
        let reserved = Frame::new(fake.frames - 1);
        assert_eq!(
            change(&fake.memory.frames, reserved),
            Err(FrameError::NotOwner)
        );
    }
}

#[test]
fn a_deposit_is_usable_only_after_the_epoch_and_comes_scrubbed() {
    let fake = table();
    let memory = &fake.memory;
    memory.epochs.online(1);
    let mut pool = Pool::new(PartitionId(1));
    let epoch = pool.deposit(memory, Frame::new(5), 3);
    assert_eq!(epoch, Ok(2));
    assert_eq!(pool.check(memory, 3), Err(Shortage::Epoch));
    assert_eq!(pool.check(memory, 5), Err(Shortage::Deposit(2)));
    assert!(pool.take(memory).is_none());
    assert!(memory.epochs.pass(0));
    assert_eq!(pool.check(memory, 1), Err(Shortage::Epoch));
    assert!(memory.epochs.pass(1));
    assert_eq!(pool.check(memory, 3), Ok(()));
    let owned = pool.take(memory).map(|owned| owned.frame());
    let mut bytes = [1; 4096];
    assert!(
        memory
            .map
            .read(owned.map_or(Frame::new(0), |f| f).base(), &mut bytes)
    );
    assert_eq!(bytes, [0; 4096]);
}

#[test]
fn a_large_page_is_used_where_all_is_aligned_and_split_when_needed() {
    let mut world = World::new();
    world.step(Step::Deposit {
        who: 0,
        first: 1,
        count: 3,
    });
    world.step(Step::Pass);
    let run = Run {
        page: GuestPage::new(LARGE_PAGES),
        frame: Frame::new(LARGE_PAGES),
        pages: LARGE_PAGES,
        writable: true,
    };
    // Top table, pointer table, directory: no page table.
    world.step(Step::Map {
        who: 0,
        runs: std::vec![run],
    });
    assert_eq!(world.guests[0].pool.len(), 0);
    world.step(Step::Unmap {
        who: 0,
        page: GuestPage::new(LARGE_PAGES + 7),
        pages: 1,
    });
    assert_eq!(
        world.guests[0].model.len() as u64,
        LARGE_PAGES,
        "needs a table to split"
    );
    world.step(Step::Deposit {
        who: 0,
        first: 9,
        count: 1,
    });
    world.step(Step::Pass);
    world.step(Step::Unmap {
        who: 0,
        page: GuestPage::new(LARGE_PAGES + 7),
        pages: 1,
    });
    assert_eq!(world.guests[0].model.len() as u64, LARGE_PAGES - 1);
    world.check();
    world.end();
}
