//! Counters of everything at one moment.

use std::collections::BTreeMap;
use std::time::Instant;

use guest_proto::hypercall::Counters;
use guest_proto::limits::ROOT_PARTITION;

use crate::driver::{Device, DriverError};
use crate::proc;

/// Counters at one moment.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    /// When.
    pub(super) at: Instant,
    /// Root's CPUs, by index.
    pub(super) root: BTreeMap<u64, Cpu>,
    /// Partitions, by id.
    pub(super) vms: BTreeMap<u64, Vm>,
}

/// One of root's CPUs.
#[derive(Clone, Debug, Default)]
pub(super) struct Cpu {
    /// Ticks that it was busy.
    pub(super) busy_ticks: Option<u64>,
    /// Exits of the CPU.
    pub(super) counters: Counters,
}

/// One partition.
#[derive(Clone, Debug, Default)]
pub(super) struct Vm {
    /// Name of the VM.
    pub(super) name: String,
    /// Process id and ticks used of its worker.
    pub(super) worker: Option<(u32, u64)>,
    /// Counters by virtual CPU.
    pub(super) vcpus: Vec<Counters>,
}

/// Reads the counters of a partition's virtual CPUs; of one that goes meanwhile there are fewer.
pub(super) fn counters(device: &Device, id: u64, vcpus: u32) -> Vec<Counters> {
    (0..u64::from(vcpus))
        .filter_map(|vcpu| device.counters(id, vcpu).ok())
        .collect()
}

impl Sample {
    /// Reads everything.
    ///
    /// # Errors
    ///
    /// The driver's errno. A VM that goes meanwhile is left out.
    pub(super) fn take(device: &Device) -> Result<Self, DriverError> {
        let (_, machine) = device.info()?;
        let busy = proc::busy_ticks_by_cpu();
        let mut root = BTreeMap::new();
        for index in 0..u64::from(machine.cpus) {
            let counters = device.counters(ROOT_PARTITION, index)?;
            let busy_ticks = busy.get(&index).copied();
            root.insert(
                index,
                Cpu {
                    busy_ticks,
                    counters,
                },
            );
        }
        let mut vms = BTreeMap::new();
        for id in device.list_partitions()? {
            let Ok(info) = device.partition_info(id) else {
                continue;
            };
            let name: Vec<u8> = info.name.into_iter().take_while(|&b| b != 0).collect();
            let worker = (info.worker != 0).then_some(info.worker);
            let ticks = |pid| proc::process(pid).ok().map(|stat| (pid, stat.cpu_ticks));
            vms.insert(
                id,
                Vm {
                    name: String::from_utf8_lossy(&name).into_owned(),
                    worker: worker.and_then(ticks),
                    vcpus: counters(device, id, info.vcpus),
                },
            );
        }
        Ok(Self {
            at: Instant::now(),
            root,
            vms,
        })
    }

    /// Seconds from an earlier sample to this one.
    pub(super) fn seconds_since(&self, before: &Self) -> f64 {
        self.at.saturating_duration_since(before.at).as_secs_f64()
    }
}
