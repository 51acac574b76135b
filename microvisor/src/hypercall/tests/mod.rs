//! Every call, and every error of every call, on a machine in host memory.

mod errors;
mod lifecycle;
mod log;
mod verify;

use std::boxed::Box;
use std::vec::Vec;

use guest_proto::Status;
use guest_proto::hypercall::{Hypercall, MapRange};
use zerocopy::IntoBytes;

use super::{Answer, Call, dispatch};
use crate::arch::hw::Cpu;
use crate::arch::{CpuFacts, Speculation};
use crate::counters::ExitCounters;
use crate::log_buffer::LogBuffer;
use crate::machine::{Machine, MachineFacts, MemoryTypes};
use crate::memory::testing::{Fake, Storage};
use crate::memory::{Frame, Hpa};
use crate::partition::{Partition, Partitions};

/// Room for partitions in the fake machine.
const PARTITIONS: u8 = 4;

struct World {
    machine: Machine,
    /// Root's frames: 1 to this.
    ram_end: u64,
    now: u64,
    cpu: Cpu,
    _storage: Storage,
}

impl World {
    fn new() -> Self {
        Self::with_frames(2048)
    }

    fn with_frames(frames: u64) -> Self {
        let Fake {
            memory,
            ram_end,
            frames,
            storage,
        } = Fake::new(frames);
        let slots: Vec<_> = (0..PARTITIONS).map(|_| Partition::new()).collect();
        let counters: Vec<_> = (0..4).map(|_| ExitCounters::new()).collect();
        let facts = MachineFacts {
            cpu: CpuFacts {
                features: guest_proto::cpuid::Features::NESTED_PAGING,
                tpr_window: true,
                speculation: Speculation::Safe,
            },
            cpus: 1,
            frames,
            reserved_frames: frames - ram_end,
            types: MemoryTypes {
                low: Hpa::new(frames << 12),
                high: Hpa::new(frames << 12),
                end: Hpa::new(1 << 48),
                variable: [0; 32],
                default: 0,
            },
        };
        Self {
            machine: Machine::new(
                memory,
                Partitions::new(slots.leak()),
                facts,
                counters.leak(),
                Box::leak(Box::new(LogBuffer::new())),
            ),
            ram_end,
            now: 1000,
            cpu: Cpu::idle(0),
            _storage: storage,
        }
    }

    fn call(&mut self, call: Hypercall, args: &[u64]) -> Answer {
        let mut all = [0; 5];
        all[..args.len()].copy_from_slice(args);
        self.raw(call.raw(), all)
    }

    fn raw(&mut self, number: u64, args: [u64; 5]) -> Answer {
        self.now += 10;
        let call = Call {
            number,
            args,
            cpl: 0,
        };
        dispatch(&self.machine, &mut self.cpu, self.now, &call)
    }

    /// A call that must succeed.
    fn ok(&mut self, call: Hypercall, args: &[u64]) -> u64 {
        let answer = self.call(call, args);
        assert_eq!(answer.status, Status::Ok, "{call:?}{args:x?}: {answer:?}");
        answer.value
    }

    /// A call that must fail.
    fn fails(&mut self, call: Hypercall, args: &[u64], status: Status) -> u64 {
        let answer = self.call(call, args);
        assert_eq!(answer.status, status, "{call:?}{args:x?}: {answer:?}");
        answer.value
    }

    /// Deposits frames from `first` on, usable at once.
    fn deposit(&mut self, partition: u64, first: u64, count: u64) {
        self.ok(Hypercall::Deposit, &[partition, first, count]);
        self.ok(Hypercall::EpochPass, &[]);
    }

    /// Writes a list of ranges (guest page, frame, pages, flags) into root's frame `page`.
    fn list(&self, page: u64, ranges: &[(u64, u64, u32, u32)]) {
        let mut bytes = Vec::new();
        for &(gpa_pfn, pfn, pages, flags) in ranges {
            let range = MapRange {
                gpa_pfn,
                pfn,
                pages,
                flags,
            };
            bytes.extend_from_slice(range.as_bytes());
        }
        assert!(
            self.machine
                .memory
                .map
                .write(Frame::new(page).base(), &bytes)
        );
    }

    fn destroy(&mut self, partition: u64) {
        while self.call(Hypercall::PartitionDestroy, &[partition]).status == Status::TryAgain {}
        self.fails(
            Hypercall::PartitionDestroy,
            &[partition],
            Status::NoSuchPartition,
        );
    }
}
