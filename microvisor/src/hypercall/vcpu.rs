//! Calls about virtual CPUs.

use guest_proto::Status;
use guest_proto::cpuid::CpuidEntry;
use guest_proto::limits::{MAX_CPUID_ENTRIES, MAX_VCPUS};
use guest_proto::shared::SharedPage;

use super::args::{RootPage, control, frame, take};
use super::{Context, Failure, Outcome};
use crate::arch;
use crate::arch::hw::Guest;
use crate::memory::Memory;
use crate::memory::physmap::Placed;
use crate::memory::pool::{Pool, Shortage};
use crate::partition::run::{self, Host};
use crate::partition::{Life, Partition, host_cpuid};
use crate::vcpu::vlapic::{Effect, Mode};
use crate::vcpu::{Allowed, Local, Vcpu, cpuid};

/// Frames of a virtual CPU: its own, that of its CPUID table, and those of the hardware's part.
const FRAMES: u64 = 2 + Guest::FRAMES as u64;
/// Bit of `vcpu_apic`'s register argument that makes the access a write.
const WRITE: u64 = 1 << 31;

pub(super) fn create(cx: &Context<'_>, args: [u64; 5]) -> Outcome {
    let [partition, vcpu, pfn] = take(args)?;
    let machine = cx.machine;
    let memory = &machine.memory;
    let (partition, mut control) = control(machine, partition)?;
    let index = u8::try_from(vcpu)
        .ok()
        .filter(|_| vcpu < MAX_VCPUS)
        .ok_or(Status::OutOfRange)?;
    if partition.vcpus.exists(vcpu) {
        return Err(Status::Exists.into());
    }
    let page = frame(machine, pfn)?;
    memory.frames.check_root(page)?;
    let control = &mut *control;
    let needed = FRAMES + u64::from(control.map.top().is_none());
    control.pool.check(memory, needed)?;
    // A partition has a nested map from its first virtual CPU on, so that it can run and fault.
    control.map.ensure_top(memory, &mut control.pool)?;
    partition.publish_top(&control.map);

    let pool = &mut control.pool;
    let hw = hardware(memory, pool)?;
    let table = place(memory, pool, cpuid::Table::new())?;
    let vcpu_of = Vcpu::new(partition.id(), index, page, hw, table);
    let placed = place(memory, pool, vcpu_of)?;
    // Root may have given the page away since the check, on another CPU.
    if let Err(error) = memory.frames.root_share_page(page, partition.id()) {
        let (vcpu, frame) = placed.into_parts();
        vcpu.end(memory, pool);
        pool.put(memory, frame);
        pool.seal(&memory.epochs);
        return Err(error.into());
    }
    partition.vcpus.insert(vcpu, placed);
    Ok(0)
}

/// Makes the hardware's part of a virtual CPU in frames of the pool, which was checked for them.
fn hardware(memory: &Memory, pool: &mut Pool) -> Result<Guest, Failure> {
    let (Some(first), Some(second)) = (pool.take(memory), pool.take(memory)) else {
        return Err(Shortage::Deposit(1).into());
    };
    let components = cpuid::xcr0_allowed(host_cpuid);
    Guest::new(memory.map, [first, second], components).map_err(|frames| {
        frames.into_iter().for_each(|frame| pool.put(memory, frame));
        Status::BadAddress.into()
    })
}

/// Moves a value into a frame of the pool, which was checked for it.
fn place<T>(memory: &Memory, pool: &mut Pool, value: T) -> Result<Placed<T>, Failure> {
    let frame = pool.take(memory).ok_or(Shortage::Deposit(1))?;
    Placed::new(memory.map, frame, value).map_err(|frame| {
        pool.put(memory, frame);
        Status::BadAddress.into()
    })
}

pub(super) fn run(cx: &mut Context<'_>, args: [u64; 5]) -> Outcome {
    let [partition, vcpu] = take(args)?;
    let (machine, cpu) = (cx.machine, &mut *cx.cpu);
    with(machine, partition, vcpu, |partition, vcpu, local| {
        let host = Host {
            memory: &machine.memory,
            cpu: machine.facts.cpu,
        };
        Ok(run::run(&host, cpu, partition, vcpu, local)?)
    })
}

pub(super) fn get_state(cx: &Context<'_>, args: [u64; 5]) -> Outcome {
    let [partition, vcpu] = take(args)?;
    let memory = &cx.machine.memory;
    with(cx.machine, partition, vcpu, |partition, vcpu, local| {
        let now = cx.now.wrapping_add(partition.tsc_offset(local));
        let page = shared(memory, vcpu)?;
        page.state.store(&local.state(now));
        page.vectors.store(&local.hw.vectors());
        Ok(0)
    })
}

pub(super) fn set_state(cx: &Context<'_>, args: [u64; 5]) -> Outcome {
    let [partition, vcpu] = take(args)?;
    let memory = &cx.machine.memory;
    with(cx.machine, partition, vcpu, |_, vcpu, local| {
        let state = shared(memory, vcpu)?.state.load();
        local
            .set_state(vcpu, &state, &Allowed::on(host_cpuid))
            .map_err(|_| Status::InvalidArgument)?;
        Ok(0)
    })
}

// A list and a table are on the stack: they are not to be in the frame that every call has.
#[inline(never)]
pub(super) fn set_cpuid(cx: &Context<'_>, args: [u64; 5]) -> Outcome {
    let [partition, vcpu, pfn, count] = take(args)?;
    if count > MAX_CPUID_ENTRIES {
        return Err(Status::OutOfRange.into());
    }
    let mut list = [[0; size_of::<CpuidEntry>()]; MAX_CPUID_ENTRIES as usize];
    let list = list.get_mut(..count as usize).unwrap_or_default();
    RootPage::new(cx.machine, pfn)?.read(cx.machine, list.as_flattened_mut())?;
    let mut table = cpuid::Table::new();
    for entry in list {
        let entry = zerocopy::transmute!(*entry);
        if !cpuid::append(&mut table, host_cpuid, &entry) {
            return Err(Status::InvalidArgument.into());
        }
    }
    with(cx.machine, partition, vcpu, |_, _, local| {
        *local.cpuid = table;
        Ok(0)
    })
}

pub(super) fn apic(cx: &Context<'_>, args: [u64; 5]) -> Outcome {
    let [partition, vcpu, register, value] = take(args)?;
    let memory = &cx.machine.memory;
    let write = register & WRITE != 0;
    let offset = u32::try_from(register & !WRITE).map_err(|_| Status::OutOfRange)?;
    if offset > 0xff0 || !offset.is_multiple_of(16) {
        return Err(Status::OutOfRange.into());
    }
    let value = u32::try_from(value).map_err(|_| Status::OutOfRange)?;
    if !write && value != 0 {
        return Err(Status::InvalidArgument.into());
    }
    with(cx.machine, partition, vcpu, |partition, vcpu, local| {
        if local.lapic.mode() != Mode::XApic {
            return Err(Status::InvalidState.into());
        }
        let now = arch::tsc().wrapping_add(partition.tsc_offset(local));
        if !write {
            return Ok(local.lapic.read_register(offset, now).into());
        }
        Ok(match local.lapic.write_register(offset, value, now) {
            Effect::None | Effect::Timer => 0,
            Effect::Address => {
                vcpu.publish(&local.lapic);
                0
            }
            Effect::LevelEoi(vector) => {
                // Only a turn can tell root that the consumer sleeps.
                local.ring.note_eoi(vector);
                0
            }
            Effect::Send(message) => partition.deliver(memory, Some(vcpu.index()), &message),
        })
    })
}

/// Claims a virtual CPU of a live partition, and calls `then` with it.
fn with(
    machine: &crate::machine::Machine,
    partition: u64,
    vcpu: u64,
    then: impl FnOnce(&Partition, &Vcpu, &mut Local) -> Outcome,
) -> Outcome {
    let partition = machine.partitions.find(partition)?;
    let claimed = |vcpu: &Vcpu| {
        // Looked at inside the slot's lock: a partition ends only while nobody holds one.
        if partition.life() != Life::Live {
            return Err(Status::NoSuchPartition.into());
        }
        let mut local = vcpu.claim().ok_or(Status::Busy)?;
        let properties = &partition.properties;
        local.prepare(vcpu, properties.tsc_khz(), properties.x2apic());
        then(partition, vcpu, &mut local)
    };
    partition
        .vcpus
        .with(vcpu, claimed)
        .ok_or(Status::NoSuchVcpu)?
}

fn shared<'a>(memory: &'a Memory, vcpu: &Vcpu) -> Result<&'a SharedPage, Failure> {
    vcpu.page(memory).ok_or(Status::BadAddress.into())
}
