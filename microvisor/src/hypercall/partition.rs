//! Calls about partitions: life, properties, doorbells, interrupts.

use guest_proto::Status;
use guest_proto::hypercall::{DoorbellFlags, PartitionFlags, Property};

use super::args::{control, live, take};
use super::{Context, Failure, Outcome};
use crate::partition::doorbell::Doorbell;
use crate::partition::run::EOI_TAG;
use crate::vcpu::vlapic::Message;

/// Frames that one `partition_destroy` gives back at most, about.
const DESTROY_BATCH: u64 = 4096;
/// Frequencies of the TSC that can be.
const TSC_KHZ: core::ops::RangeInclusive<u64> = 100_000..=100_000_000;

pub(super) fn create(cx: &Context<'_>, args: [u64; 5]) -> Outcome {
    let [flags] = take(args)?;
    let flags = PartitionFlags::from_bits(flags).ok_or(Status::InvalidArgument)?;
    if flags.contains(PartitionFlags::PRIVATE) {
        return Err(Status::NotSupported.into());
    }
    let id = cx.machine.partitions.create(cx.now)?;
    log::debug!("partition {} is made", id.0);
    Ok(u64::from(id.0))
}

pub(super) fn destroy(cx: &Context<'_>, args: [u64; 5]) -> Outcome {
    let [partition] = take(args)?;
    let partition = cx.machine.partitions.find(partition)?;
    match partition.destroy(&cx.machine.memory, DESTROY_BATCH)? {
        (given, true) => {
            log::debug!("partition {} is destroyed", partition.id().0);
            Ok(given)
        }
        (given, false) => Err(Failure::new(Status::TryAgain, given)),
    }
}

pub(super) fn set(cx: &Context<'_>, args: [u64; 5]) -> Outcome {
    let [partition, property, value] = take(args)?;
    let property = Property::from_raw(property).ok_or(Status::InvalidArgument)?;
    let (partition, _control) = control(cx.machine, partition)?;
    let properties = &partition.properties;
    if properties.started() {
        return Err(Status::InvalidState.into());
    }
    match property {
        Property::TscKhz if TSC_KHZ.contains(&value) => properties.set_tsc_khz(value),
        Property::X2Apic if value <= 1 => properties.set_x2apic(value == 1),
        Property::TscKhz | Property::X2Apic => return Err(Status::OutOfRange.into()),
    }
    Ok(0)
}

pub(super) fn doorbell_add(cx: &Context<'_>, args: [u64; 5]) -> Outcome {
    let [partition, port, length, tag, flags] = args;
    let flags = DoorbellFlags::from_bits(flags).ok_or(Status::InvalidArgument)?;
    let tag = u16::try_from(tag).ok().filter(|tag| *tag != EOI_TAG);
    let tag = tag.ok_or(Status::OutOfRange)?;
    let signal_only = flags.contains(DoorbellFlags::SIGNAL_ONLY);
    let doorbell = Doorbell::new(port, length, tag, signal_only)?;
    let (partition, _control) = live(cx.machine, partition)?;
    partition.doorbells.add(doorbell)?;
    Ok(0)
}

pub(super) fn doorbell_remove(cx: &Context<'_>, args: [u64; 5]) -> Outcome {
    let [partition, tag] = take(args)?;
    let tag = u16::try_from(tag).map_err(|_| Status::OutOfRange)?;
    let (partition, _control) = live(cx.machine, partition)?;
    partition.doorbells.remove(tag)?;
    Ok(0)
}

pub(super) fn interrupt_send(cx: &Context<'_>, args: [u64; 5]) -> Outcome {
    /// MSI addresses: 0xFEExxxxx.
    const MSI: u64 = 0xfee;
    let [partition, address, data] = take(args)?;
    if address >> 20 != MSI || data >> 16 != 0 {
        return Err(Status::InvalidArgument.into());
    }
    let partition = cx.machine.partitions.find(partition)?;
    // One that delivers nothing here (SMI, ExtINT) is dropped, as hardware does.
    let message = Message::from_msi(address, data);
    Ok(message.map_or(0, |message| {
        partition.deliver(&cx.machine.memory, None, &message)
    }))
}
