//! Hypercalls as this kernel makes them, and what they answer.

use guest_proto::Status;
use guest_proto::hypercall::{Hypercall, MachineInfo, VerifyReport};
use guest_proto::limits::MAX_PARTITIONS;

use crate::cpu;
use crate::memory::Pages;
use crate::report::{Outcome, equal, fail};
use crate::second;

/// RAX and RDX after a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// RAX.
    pub status: u64,
    /// RDX.
    pub value: u64,
}

impl Answer {
    /// The status, if it is one that the ABI names.
    pub fn status(self) -> Option<Status> {
        Status::from_raw(self.status as i64)
    }

    /// The value, if the call succeeded.
    #[track_caller]
    pub fn ok(self) -> Outcome<u64> {
        self.is(Status::Ok)
    }

    /// The value, if the call ended with `status`.
    #[track_caller]
    pub fn is(self, status: Status) -> Outcome<u64> {
        match self.status() {
            Some(got) if got == status => Ok(self.value),
            Some(got) => fail(format_args!(
                "answers {got:?} with {:#x}, not {status:?}",
                self.value
            )),
            None => fail(format_args!(
                "answers {:#x}, which is no status",
                self.status
            )),
        }
    }
}

/// Any number, any arguments.
pub fn raw(number: u64, args: [u64; 5]) -> Answer {
    let (status, value) = cpu::vmmcall(number, args);
    Answer { status, value }
}

/// A call with the arguments that it names; the others are 0.
pub fn call<const N: usize>(call: Hypercall, args: [u64; N]) -> Answer {
    raw(call.raw(), widen(args))
}

/// Arguments in register order.
pub fn widen<const N: usize>(args: [u64; N]) -> [u64; 5] {
    let mut all = [0; 5];
    for (to, from) in all.iter_mut().zip(args) {
        *to = from;
    }
    all
}

/// Makes a partition.
#[track_caller]
pub fn create() -> Outcome<u64> {
    call(Hypercall::PartitionCreate, [0]).ok()
}

/// Destroys a partition, in as many calls as it takes; how many frames came back.
#[track_caller]
pub fn destroy(partition: u64) -> Outcome<u64> {
    let mut frames = 0;
    // Every call gives something back, so a machine's worth of frames is a bound.
    for _ in 0..1 << 20 {
        let answer = call(Hypercall::PartitionDestroy, [partition]);
        frames += answer.value;
        if answer.status() != Some(Status::TryAgain) {
            return answer.ok().map(|_| frames);
        }
    }
    fail(format_args!("partition_destroy never ends"))
}

/// Destroys what a case that failed has left.
pub fn destroy_all() {
    for partition in 1..MAX_PARTITIONS {
        // Most do not exist.
        let _ = destroy(partition);
    }
}

/// Deposits frames of this kernel's, and waits until they can be used.
#[track_caller]
pub fn deposit(partition: u64, count: u64) -> Outcome<Pages> {
    let pages = Pages::take(count);
    call(Hypercall::Deposit, [partition, pages.pfn(), count]).ok()?;
    pass_epoch_everywhere()?;
    Ok(pages)
}

/// Makes each CPU pass an epoch; the epoch that all have passed.
#[track_caller]
pub fn pass_epoch_everywhere() -> Outcome<u64> {
    if second::is_up() {
        second::call(Hypercall::EpochPass, [])?.ok()?;
    }
    call(Hypercall::EpochPass, []).ok()
}

/// What the microvisor says about the machine.
#[track_caller]
pub fn machine_info() -> Outcome<MachineInfo> {
    let page = Pages::scratch();
    call(Hypercall::MachineInfo, [page.pfn()]).ok()?;
    let info: MachineInfo = page.load(0);
    equal("reserved words of MachineInfo", info.reserved, [0; 8])?;
    Ok(info)
}

/// Checks the nested maps against the frame table. Answers the counts of the whole pass.
#[track_caller]
pub fn verify() -> Outcome<VerifyReport> {
    let page = Pages::scratch();
    let mut position = 0;
    let mut sum = VerifyReport::default();
    loop {
        position = call(Hypercall::Verify, [page.pfn(), position]).ok()?;
        let found: VerifyReport = page.load(0);
        if found.difference != 0 {
            return fail(format_args!("verify finds {found:x?}"));
        }
        sum.frames += found.frames;
        sum.pages += found.pages;
        if position == 0 {
            return Ok(sum);
        }
    }
}
