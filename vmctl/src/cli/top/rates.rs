//! The rates per second between two samples.

use guest_proto::hypercall::{Counters, ExitKind};
use rustix::param::clock_ticks_per_second;
use serde::ser::{Serialize, SerializeMap, SerializeStruct, Serializer};

use super::sample::Sample;

/// A kind of exit, as it is shown.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kind {
    kind: ExitKind,
    /// Heading of its column.
    pub(super) heading: &'static str,
}

impl Kind {
    /// Name in the ABI.
    pub(super) fn name(&self) -> &'static str {
        self.kind.name()
    }

    /// Count of occurrences.
    pub(super) fn count(&self, counters: &Counters) -> u64 {
        counters.exits[self.kind.raw() as usize]
    }
}

const fn kind(kind: ExitKind, heading: &'static str) -> Kind {
    Kind { kind, heading }
}

/// Every kind.
pub(super) const KINDS: [Kind; 20] = [
    kind(ExitKind::Hypercall, "HYPERCALL"),
    kind(ExitKind::Cpuid, "CPUID"),
    kind(ExitKind::MsrRead, "RDMSR"),
    kind(ExitKind::MsrWrite, "WRMSR"),
    kind(ExitKind::Posted, "POSTED"),
    kind(ExitKind::Port, "PORT"),
    kind(ExitKind::Memory, "MMIO"),
    kind(ExitKind::NestedFault, "NPF"),
    kind(ExitKind::Interrupt, "INTR"),
    kind(ExitKind::Nmi, "NMI"),
    kind(ExitKind::InterruptWindow, "WINDOW"),
    kind(ExitKind::Halt, "HLT"),
    kind(ExitKind::Ipi, "IPI"),
    kind(ExitKind::Exception, "EXCP"),
    kind(ExitKind::DebugRegister, "DR"),
    kind(ExitKind::Xsetbv, "XSETBV"),
    kind(ExitKind::Forbidden, "FORBIDDEN"),
    kind(ExitKind::Shutdown, "SHUTDOWN"),
    kind(ExitKind::Init, "INIT"),
    kind(ExitKind::Other, "OTHER"),
];

/// One line: a VM, or one of root's CPUs.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Rates {
    /// Partition.
    pub(super) id: u64,
    /// Name of the VM.
    pub(super) name: String,
    /// Number of root's CPU.
    pub(super) cpu: Option<u64>,
    /// Per cent of a CPU: root's CPU busy, or all that the VM's worker used.
    pub(super) cpu_percent: Option<f64>,
    /// Per cent of a CPU that was spent inside the guest.
    pub(super) guest_percent: Option<f64>,
    /// Exits per second.
    pub(super) exits: f64,
    /// The same by kind, as in [`KINDS`].
    pub(super) by_kind: [f64; KINDS.len()],
}

impl Serialize for Rates {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut row = serializer.serialize_struct("Rates", 7)?;
        row.serialize_field("id", &self.id)?;
        row.serialize_field("name", &self.name)?;
        row.serialize_field("cpu", &self.cpu)?;
        row.serialize_field("cpu_percent", &self.cpu_percent)?;
        row.serialize_field("guest_percent", &self.guest_percent)?;
        row.serialize_field("exits_per_second", &self.exits)?;
        row.serialize_field("by_kind", &ByKind(&self.by_kind))?;
        row.end()
    }
}

/// Rates by the names of the ABI's kinds.
struct ByKind<'a>(&'a [f64; KINDS.len()]);

impl Serialize for ByKind<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(KINDS.len()))?;
        for (kind, rate) in KINDS.iter().zip(self.0) {
            map.serialize_entry(kind.name(), rate)?;
        }
        map.end()
    }
}

/// Root's CPUs, then every VM that both samples have, busiest first.
pub(super) fn compare(before: &Sample, after: &Sample) -> Vec<Rates> {
    let seconds = after.seconds_since(before);
    let ticks_to_percent =
        |ticks: u64| per(ticks, seconds) * 100.0 / clock_ticks_per_second() as f64;
    let root = after.root.iter().filter_map(|(&index, now)| {
        let then = before.root.get(&index)?;
        let mut rates = Rates::new(0, format!("root cpu{index}"));
        rates.cpu = Some(index);
        rates.add(&then.counters, &now.counters, seconds);
        let busy = now.busy_ticks.zip(then.busy_ticks);
        rates.cpu_percent = busy.map(|(now, then)| ticks_to_percent(now.saturating_sub(then)));
        // Time in which root runs its own code is no guest's time.
        rates.guest_percent = None;
        Some(rates)
    });
    let mut vms: Vec<Rates> = after
        .vms
        .iter()
        .filter_map(|(&id, now)| {
            let then = before.vms.get(&id)?;
            let mut rates = Rates::new(id, now.name.clone());
            for (then, now) in then.vcpus.iter().zip(&now.vcpus) {
                rates.add(then, now, seconds);
            }
            if let (Some((pid, now)), Some((old_pid, then))) = (now.worker, then.worker)
                && pid == old_pid
            {
                rates.cpu_percent = Some(ticks_to_percent(now.saturating_sub(then)));
            }
            Some(rates)
        })
        .collect();
    let cpu = |rates: &Rates| rates.cpu_percent.unwrap_or(0.0);
    vms.sort_by(|a, b| cpu(b).total_cmp(&cpu(a)));
    root.chain(vms).collect()
}

impl Rates {
    fn new(id: u64, name: String) -> Self {
        Self {
            id,
            name,
            cpu: None,
            cpu_percent: None,
            guest_percent: Some(0.0),
            exits: 0.0,
            by_kind: [0.0; KINDS.len()],
        }
    }

    /// Adds one CPU's share.
    fn add(&mut self, then: &Counters, now: &Counters, seconds: f64) {
        for (rate, kind) in self.by_kind.iter_mut().zip(KINDS) {
            let count = kind.count(now).saturating_sub(kind.count(then));
            *rate += per(count, seconds);
            self.exits += per(count, seconds);
        }
        let inside = now.guest_tsc.saturating_sub(then.guest_tsc);
        let passed = now.now_tsc.saturating_sub(then.now_tsc);
        if let Some(percent) = &mut self.guest_percent
            && passed > 0
        {
            *percent += 100.0 * inside as f64 / passed as f64;
        }
    }
}

fn per(count: u64, seconds: f64) -> f64 {
    if seconds > 0.0 {
        count as f64 / seconds
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample::{Cpu, Vm};
    use super::*;
    use std::time::{Duration, Instant};

    fn counters(cpuid: u64, inside: u64, now: u64) -> Counters {
        let mut counters = Counters::default();
        counters.exits[ExitKind::Cpuid.raw() as usize] = cpuid;
        counters.guest_tsc = inside;
        counters.now_tsc = now;
        counters
    }

    #[test]
    fn kinds_are_the_abis() {
        assert_eq!(KINDS.len(), ExitKind::LAYOUT.variants.len());
        for (at, kind) in KINDS.iter().enumerate() {
            assert_eq!(kind.kind.raw() as usize, at);
        }
    }

    #[test]
    fn rates_are_sums_over_virtual_cpus() {
        let at = Instant::now();
        let ticks = clock_ticks_per_second();
        let vm = |vcpus: [Counters; 2], used: u64| Vm {
            name: "demo".to_owned(),
            worker: Some((7, used)),
            vcpus: vcpus.to_vec(),
        };
        let cpu = |busy, counters| Cpu {
            busy_ticks: Some(busy),
            counters,
        };
        let before = Sample {
            at,
            root: [(0, cpu(0, counters(5, 0, 0)))].into(),
            vms: [(3, vm([counters(0, 0, 0), counters(10, 0, 0)], 0))].into(),
        };
        let after = Sample {
            at: at + Duration::from_secs(2),
            root: [(0, cpu(ticks, counters(5, 0, 100)))].into(),
            vms: [
                (
                    3,
                    vm([counters(20, 50, 100), counters(30, 25, 100)], 2 * ticks),
                ),
                // A new one has nothing to compare with.
                (4, vm([counters(9, 9, 9); 2], 9)),
            ]
            .into(),
        };
        let rows = compare(&before, &after);
        assert_eq!(rows.len(), 2);
        assert_eq!((rows[0].name.as_str(), rows[0].exits), ("root cpu0", 0.0));
        assert_eq!(rows[0].cpu_percent, Some(50.0));
        assert_eq!((rows[1].id, rows[1].exits), (3, 20.0));
        assert_eq!(rows[1].cpu_percent, Some(100.0));
        assert_eq!(rows[1].guest_percent, Some(75.0));
        let json = serde_json::to_value(&rows[1]).unwrap();
        assert_eq!(json["by_kind"]["Cpuid"], 20.0);
        assert_eq!(json["by_kind"]["Halt"], 0.0);
    }
}
