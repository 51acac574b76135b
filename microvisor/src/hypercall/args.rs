//! Arguments of hypercalls, checked.

use guest_proto::Status;
use spin::MutexGuard;

use super::Failure;
use crate::machine::Machine;
use crate::memory::Frame;
use crate::partition::{Control, Partition, PartitionError};

/// Returns the first `N` arguments. The others are reserved, and must be 0.
pub(super) fn take<const N: usize>(args: [u64; 5]) -> Result<[u64; N], Failure> {
    let (named, reserved) = args.split_at_checked(N).ok_or(Status::InvalidArgument)?;
    if reserved.iter().any(|arg| *arg != 0) {
        return Err(Status::InvalidArgument.into());
    }
    Ok(named.try_into().map_err(|_| Status::InvalidArgument)?)
}

/// Locks a live partition.
pub(super) fn control(machine: &Machine, number: u64) -> Result<Locked, Failure> {
    let partition = machine.partitions.find(number)?;
    Ok((partition, partition.control()?))
}

/// Locks a live partition for a call that does not tell an ending partition from none.
pub(super) fn live(machine: &Machine, number: u64) -> Result<Locked, Failure> {
    let gone = |error| match error {
        PartitionError::Ending => PartitionError::NoSuchPartition,
        other => other,
    };
    let partition = machine.partitions.find(number)?;
    Ok((partition, partition.control().map_err(gone)?))
}

/// A partition and its control lock.
pub(super) type Locked = (&'static Partition, MutexGuard<'static, Control>);

/// Returns the frame with this page frame number, if the frame table covers it. Its owner is not checked.
pub(super) fn frame(machine: &Machine, pfn: u64) -> Result<Frame, Failure> {
    if pfn >= machine.memory.frames.frames() {
        return Err(Status::BadAddress.into());
    }
    Ok(Frame::new(pfn))
}

/// A page that this call reads or writes. It is root's alone at the time of the check. Since an epoch outlasts
/// the call, the page is not put to another use before the call's end.
#[derive(Clone, Copy, Debug)]
pub(super) struct RootPage(Frame);

impl RootPage {
    /// Checks page frame number `pfn`.
    pub(super) fn new(machine: &Machine, pfn: u64) -> Result<Self, Failure> {
        let frame = frame(machine, pfn)?;
        machine.memory.frames.check_root(frame)?;
        Ok(Self(frame))
    }

    /// Copies the start of the page once. The length of `to` is a multiple of 8.
    pub(super) fn read(self, machine: &Machine, to: &mut [u8]) -> Result<(), Failure> {
        if machine.memory.map.read(self.0.base(), to) {
            Ok(())
        } else {
            Err(Status::BadAddress.into())
        }
    }

    /// Fills the start of the page. The length of `bytes` is a multiple of 8.
    pub(super) fn write(self, machine: &Machine, bytes: &[u8]) -> Result<(), Failure> {
        if machine.memory.map.write(self.0.base(), bytes) {
            Ok(())
        } else {
            Err(Status::BadAddress.into())
        }
    }
}
