//! Root's hypercalls: raw registers come in, checked arguments go on, a status and a value come out.
//!
//! Nothing below this module sees a raw register. Each call is a function in the module of its
//! group. Its arguments are checked once, here at the border, and the objects that they name are found before
//! anything changes. A call is bounded in time: long work is done in batches, with
//! `TryAgain` in between.

mod args;
mod machine;
mod memory;
mod partition;
mod vcpu;
mod verify;

#[cfg(test)]
mod tests;

use guest_proto::Status;
use guest_proto::hypercall::Hypercall;

use crate::arch::hw::Cpu;
use crate::machine::Machine;
use crate::memory::frame_table::FrameError;
use crate::memory::nested::guest::MapError;
use crate::memory::pool::Shortage;
use crate::partition::PartitionError;
use crate::partition::doorbell::DoorbellError;
use crate::partition::run::RunError;

/// The registers of a call, and the privilege level of its caller.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// RAX.
    pub number: u64,
    /// RDI, RSI, RDX, R10, R8.
    pub args: [u64; 5],
    /// Privilege level of the caller.
    pub cpl: u8,
}

/// The registers of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// RAX.
    pub status: Status,
    /// RDX.
    pub value: u64,
    /// The CPU passes an epoch. It must flush VM 0's translations when it enters VM 0.
    pub flush: bool,
}

/// The reason why a call did not succeed, with the value that goes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Failure {
    status: Status,
    value: u64,
}

/// A call's value, or the reason why there is none.
type Outcome = Result<u64, Failure>;

impl Failure {
    const fn new(status: Status, value: u64) -> Self {
        Self { status, value }
    }

    /// Returns this failure for a call that has done `done` pages, which becomes the value. `NeedPages` keeps its own.
    fn at(self, done: u64) -> Self {
        match self.status {
            Status::NeedPages => self,
            status => Self::new(status, done),
        }
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self::new(status, 0)
    }
}

/// Carries out a call on physical CPU `cpu`, at `now` by the time-stamp counter, and passes an epoch: only the
/// answer's registers are left to set.
pub fn dispatch(machine: &Machine, cpu: &mut Cpu, now: u64, call: &Call) -> Answer {
    let index = cpu.index();
    let mut cx = Context { machine, cpu, now };
    let outcome = match Hypercall::from_raw(call.number) {
        _ if call.cpl != 0 => Err(Status::NotPermitted.into()),
        // The call of every turn: it goes past the frame of the others.
        Some(Hypercall::VcpuRun) => vcpu::run(&mut cx, call.args),
        Some(number) => route(&mut cx, number, call.args),
        None => Err(Status::UnknownCall.into()),
    };
    let (status, value) = match outcome {
        Ok(value) => (Status::Ok, value),
        Err(Failure { status, value }) => {
            refused(call, status);
            (status, value)
        }
    };
    Answer {
        status,
        value,
        flush: machine.memory.epochs.pass(index),
    }
}

/// Logs the answer to a call that did not succeed.
#[cold]
fn refused(call: &Call, status: Status) {
    let [a, b, c, d, e] = call.args;
    let number = call.number;
    log::debug!("call {number:#x}({a:#x}, {b:#x}, {c:#x}, {d:#x}, {e:#x}): {status:?}");
}

#[inline(never)]
fn route(cx: &mut Context<'_>, number: Hypercall, args: [u64; 5]) -> Outcome {
    match number {
        Hypercall::AbiVersion => machine::abi_version(args),
        Hypercall::EpochPass => machine::epoch_pass(cx, args),
        Hypercall::LogRead => machine::log_read(cx, args),
        Hypercall::CountersRead => machine::counters_read(cx, args),
        Hypercall::MachineInfo => machine::machine_info(cx, args),
        Hypercall::Verify => verify::verify(cx, args),
        Hypercall::PartitionCreate => partition::create(cx, args),
        Hypercall::PartitionDestroy => partition::destroy(cx, args),
        Hypercall::PartitionSet => partition::set(cx, args),
        Hypercall::DoorbellAdd => partition::doorbell_add(cx, args),
        Hypercall::DoorbellRemove => partition::doorbell_remove(cx, args),
        Hypercall::InterruptSend => partition::interrupt_send(cx, args),
        Hypercall::Deposit => memory::deposit(cx, args),
        Hypercall::MemoryMap => memory::map(cx, args),
        Hypercall::MemoryUnmap => memory::unmap(cx, args),
        Hypercall::VcpuCreate => vcpu::create(cx, args),
        // `dispatch` has taken it.
        Hypercall::VcpuRun => Err(Status::UnknownCall.into()),
        Hypercall::VcpuGetState => vcpu::get_state(cx, args),
        Hypercall::VcpuSetState => vcpu::set_state(cx, args),
        Hypercall::VcpuSetCpuid => vcpu::set_cpuid(cx, args),
        Hypercall::VcpuApic => vcpu::apic(cx, args),
    }
}

impl From<PartitionError> for Failure {
    fn from(error: PartitionError) -> Self {
        match error {
            PartitionError::NoSuchPartition => Status::NoSuchPartition,
            PartitionError::Ending => Status::InvalidState,
            PartitionError::Full => Status::Full,
            PartitionError::Busy => Status::Busy,
        }
        .into()
    }
}

impl From<DoorbellError> for Failure {
    fn from(error: DoorbellError) -> Self {
        match error {
            DoorbellError::Overlap => Status::Overlap,
            DoorbellError::Full => Status::Full,
            DoorbellError::OutOfRange | DoorbellError::NoSuchTag => Status::OutOfRange,
        }
        .into()
    }
}

impl From<FrameError> for Failure {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::NotRam => Status::BadAddress,
            FrameError::NotOwner => Status::NotOwner,
        }
        .into()
    }
}

impl From<Shortage> for Failure {
    fn from(shortage: Shortage) -> Self {
        match shortage {
            Shortage::Deposit(frames) => Self::new(Status::NeedPages, frames),
            Shortage::Epoch => Status::TryAgain.into(),
        }
    }
}

impl From<MapError> for Failure {
    fn from(error: MapError) -> Self {
        match error {
            MapError::Overlap => Status::Overlap.into(),
            MapError::NotMapped => Status::BadAddress.into(),
            MapError::Frame(error) => error.into(),
            MapError::Shortage(shortage) => shortage.into(),
        }
    }
}

impl From<RunError> for Failure {
    fn from(error: RunError) -> Self {
        match error {
            RunError::BadReply => Status::InvalidArgument,
            RunError::NoMemory => Status::InvalidState,
        }
        .into()
    }
}

/// The surroundings of a call.
#[derive(Debug)]
struct Context<'a> {
    machine: &'a Machine,
    /// The physical CPU.
    cpu: &'a mut Cpu,
    /// Time-stamp counter when the call was made.
    now: u64,
}
