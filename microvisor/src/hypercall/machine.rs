//! Calls about the machine: version, epochs, log, counters.

use guest_proto::hypercall::MachineInfo;
use guest_proto::limits::ROOT_PARTITION;
use guest_proto::{ABI_VERSION, Status};
use zerocopy::IntoBytes;

use super::args::{RootPage, live, take};
use super::{Context, Outcome};
use crate::memory::physmap::FRAME_BYTES;

pub(super) fn abi_version(args: [u64; 5]) -> Outcome {
    let [] = take(args)?;
    Ok(u64::from(ABI_VERSION))
}

pub(super) fn epoch_pass(cx: &Context<'_>, args: [u64; 5]) -> Outcome {
    let [] = take(args)?;
    // The pass itself is on the way back into VM 0, as after every call.
    Ok(cx.machine.memory.epochs.passed_with(cx.cpu.index()))
}

pub(super) fn log_read(cx: &Context<'_>, args: [u64; 5]) -> Outcome {
    let [pfn, position] = take(args)?;
    let page = RootPage::new(cx.machine, pfn)?;
    let mut bytes = [0; FRAME_BYTES];
    let (head, text) = bytes.split_at_mut(size_of::<u64>());
    let (count, end) = cx.machine.log.read(position, text);
    head.copy_from_slice(&(count as u64).to_le_bytes());
    page.write(cx.machine, &bytes)?;
    Ok(end)
}

pub(super) fn counters_read(cx: &Context<'_>, args: [u64; 5]) -> Outcome {
    let [partition, vcpu, pfn] = take(args)?;
    let machine = cx.machine;
    let counters = if partition == ROOT_PARTITION {
        let index = usize::try_from(vcpu).map_err(|_| Status::NoSuchVcpu)?;
        let online = u64::from(machine.facts.cpus);
        let counters = machine.root_counters.get(index).filter(|_| vcpu < online);
        counters.ok_or(Status::NoSuchVcpu)?.read(cx.now)
    } else {
        // Under the lock, so that a destroy at the same time does not find the slot in use.
        let (partition, _control) = live(machine, partition)?;
        let read = |vcpu: &crate::vcpu::Vcpu| vcpu.counters.read(cx.now);
        partition.vcpus.with(vcpu, read).ok_or(Status::NoSuchVcpu)?
    };
    RootPage::new(machine, pfn)?.write(machine, counters.as_bytes())?;
    Ok(0)
}

pub(super) fn machine_info(cx: &Context<'_>, args: [u64; 5]) -> Outcome {
    let [pfn] = take(args)?;
    let machine = cx.machine;
    let page = RootPage::new(machine, pfn)?;
    let info = MachineInfo {
        abi_version: ABI_VERSION,
        features: machine.facts.cpu.features.bits(),
        cpus: machine.facts.cpus,
        partitions: machine.partitions.count() as u32 + 1,
        frames: machine.facts.frames,
        reserved_frames: machine.facts.reserved_frames,
        deposited_frames: machine.memory.frames.deposited(),
        guest_frames: machine.memory.frames.guest(),
        log_position: machine.log.written(),
        epoch: machine.memory.epochs.passed_by_all(),
        ..MachineInfo::default()
    };
    page.write(machine, info.as_bytes())?;
    Ok(0)
}
