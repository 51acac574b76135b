//! The contents of `vmctl list` and `vmctl info`.

use std::time::Instant;

use guest_proto::control::{Failure, FailureKind, VmInfo, VmState, VmStatus, WorkerCommand};
use guest_proto::limits::ROOT_PARTITION;
use rustix::param::clock_ticks_per_second;

use super::usage::Sample;
use super::vms::{Vm, Vms, failure};
use super::{SAMPLE_EVERY, logs_of};
use crate::config::VmConfig;
use crate::proc;

impl Vms {
    /// Root, then every VM by name.
    pub(super) fn list(&mut self) -> Vec<VmStatus> {
        self.sample();
        let root = VmStatus {
            id: Some(ROOT_PARTITION),
            name: "root".to_owned(),
            state: VmState::Running,
            reason: "root partition".to_owned(),
            vcpus: proc::cpus(),
            memory: proc::memory().map_or(0, |m| m.total),
            cpu_percent: Some(self.usage.root(clock_ticks_per_second())),
            uptime_ms: Some(proc::boot_ms()),
            stop_asked_ms: None,
            reboot_asked_ms: None,
            pause_asked: false,
        };
        std::iter::once(root)
            .chain(self.vms.keys().filter_map(|name| self.status(name).ok()))
            .collect()
    }

    pub(super) fn status(&self, name: &str) -> Result<VmStatus, Failure> {
        let vm = self.vm(name)?;
        let record = &vm.record;
        let pid = vm.worker.as_ref().map(|w| w.identity().pid);
        let reason = record.reason();
        let mut reason = reason.to_owned();
        if let Some(why) = &vm.unsaved {
            reason.push_str(&format!("; this state can't be saved: {why}"));
        }
        if let Err(why) = &record.config {
            reason.push_str(&format!("; its definition can't be read: {why}"));
        }
        let now = proc::boot_ms();
        let asked = |starts_again| {
            let end = record
                .asked
                .end
                .filter(|end| end.starts_again == starts_again)?;
            Some(now.saturating_sub(end.asked_ms))
        };
        Ok(VmStatus {
            id: record.partition,
            name: name.to_owned(),
            state: record.state(),
            reason,
            vcpus: record.config.as_ref().map_or(0, |config| config.vcpus),
            memory: record.config.as_ref().map_or(0, |config| config.memory),
            cpu_percent: pid.map(|pid| self.usage.worker(pid, clock_ticks_per_second())),
            uptime_ms: record.started_ms.map(|start| now.saturating_sub(start)),
            stop_asked_ms: asked(false),
            reboot_asked_ms: asked(true),
            pause_asked: record.asked.pause,
        })
    }

    /// Asks a VM's worker for its devices. Returns false if it has none or nobody answers.
    pub(super) fn ask_devices(&mut self, name: &str) -> bool {
        let has_devices = |vm: &Vm| {
            let config = vm.record.config.as_ref();
            let has_some = |config: &VmConfig| !(config.disks.is_empty() && config.nics.is_empty());
            vm.worker.is_some() && config.is_ok_and(has_some)
        };
        self.vm(name).is_ok_and(has_devices) && self.command(name, &WorkerCommand::Devices).is_ok()
    }

    pub(super) fn info(&mut self, name: &str) -> Result<VmInfo, Failure> {
        self.sample();
        let status = self.status(name)?;
        let vm = self.vm(name)?;
        let worker = vm.worker.as_ref().map(|w| w.identity().pid);
        let (_, console_log, worker_log) = logs_of(self.store.root(), name);
        Ok(VmInfo {
            config: vm
                .record
                .config
                .as_ref()
                .ok()
                .map(VmConfig::to_toml)
                .transpose()
                .map_err(|e| failure(FailureKind::Internal, e.to_string()))?,
            worker,
            worker_rss: worker.and_then(proc::own_rss),
            memory_used: status.id.and_then(|id| self.partitions.populated(id)),
            reboots: vm.record.reboots,
            console: self.sockets(name).console().display().to_string(),
            vsock: vm.record.has_unix_socket().then(|| {
                let sockets = self.sockets(name);
                sockets.vsock().display().to_string()
            }),
            console_log: console_log.display().to_string(),
            worker_log: worker_log.display().to_string(),
            disks: vm
                .worker
                .as_ref()
                .map_or_else(Vec::new, |w| w.disks.clone()),
            nics: vm.worker.as_ref().map_or_else(Vec::new, |w| w.nics.clone()),
            status,
        })
    }

    /// Reads how much CPU time everyone has had.
    pub(super) fn sample(&mut self) {
        let workers = self
            .workers()
            .map(|(_, worker)| worker.identity().pid)
            .map(|pid| (pid, proc::process(pid).map_or(0, |stat| stat.cpu_ticks)))
            .collect();
        self.usage.add(Sample {
            at_ms: proc::boot_ms(),
            busy: proc::busy_ticks().unwrap_or(0),
            workers,
        });
        self.next_sample = Instant::now() + SAMPLE_EVERY;
    }
}
