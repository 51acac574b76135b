//! The legacy of an earlier daemon: its VMs, and the workers that run on.
//!
//! A VM is found by its directory, by the record of its worker beside its sockets, and by the driver's partitions. What can't be
//! read of one source does not hide what another one says.

use std::collections::BTreeMap;
use std::io;

use guest_proto::control::{EndCause, VmState};
use log::error;

use super::process::{self, Process};
use super::record::{Record, WorkerExit};
use super::resources::Found;
use super::store::Saved;
use super::vms::{Vm, Vms};

impl Vms {
    /// Takes over what an earlier daemon left: VMs that have a directory, and those that have none any more, but a worker
    /// or a partition.
    pub(super) fn restore_all(&mut self) -> io::Result<()> {
        let with_directory = self.store.names()?;
        let mut names = with_directory.clone();
        names.extend(process::names_of_workers(self.runtime_dir()));
        let mut workers = BTreeMap::new();
        for name in &names {
            if let Some(process) = self.sockets(name).find_worker() {
                workers.insert(name.clone(), process);
            }
        }
        // The name of a partition is its worker's word. A worker that is on record has no say in what another VM is.
        let is_on_record = |pid| workers.values().any(|w| w.identity().pid == pid);
        let mut partitions = self.partitions.all();
        partitions.retain(|found| !found.worker.is_some_and(is_on_record));
        names.extend(partitions.iter().map(|found| found.name.clone()));
        names.sort();
        names.dedup();
        for name in names {
            let partition = partitions.iter().find(|found| found.name == name);
            let find_by_driver = || Process::of_pid(partition?.worker?);
            let process = workers.remove(&name).or_else(find_by_driver);
            let has_directory = with_directory.contains(&name);
            if process.is_some() || has_directory {
                self.restore(&name, process, partition, !has_directory);
            } else {
                self.sockets(&name).remove();
                self.cleaner.begin(&name);
            }
        }
        Ok(())
    }

    /// Takes over what an earlier daemon left of a VM.
    fn restore(
        &mut self,
        name: &str,
        process: Option<Process>,
        partition: Option<&Found>,
        is_bare: bool,
    ) {
        let definition = self.store.definition(name);
        if let Err(e) = &definition {
            error!("{name}: its definition can't be read: {e}");
        }
        let saved = self.store.load(name, &self.boot_id);
        let was_alive = |saved: &Saved| saved.state.is_some_and(VmState::is_alive);
        let is_same_boot = |saved: &Saved| saved.boot_id == self.boot_id;
        let state_and_reason = match &saved {
            Err(e) => (
                VmState::Crashed,
                format!("its last state can't be read: {e}"),
            ),
            Ok(None) => (VmState::Defined, "never started".to_owned()),
            Ok(Some(saved)) => match saved.state {
                Some(state) => (state, saved.reason.clone()),
                None => (
                    VmState::Crashed,
                    "its last state has a name that this daemon does not know".to_owned(),
                ),
            },
        };
        let (state, reason) = match &process {
            // The worker is asked below, and tells the VM's state.
            Some(_) if !state_and_reason.0.is_alive() => {
                (VmState::Starting, "its worker was found".to_owned())
            }
            _ => state_and_reason,
        };
        let mut record = Record::restored(name, definition, state, &reason);
        let saved = saved.ok().flatten();
        if let Some(saved) = saved.as_ref().filter(|saved| is_same_boot(saved)) {
            record.boots_at_ms = saved.boots_at_ms;
            record.brake = saved.brake;
            record.asked = saved.asked;
        }
        record.reboots = saved.as_ref().map_or(0, |saved| saved.reboots);
        if let Some((cause, reason)) = saved.as_ref().and_then(|saved| saved.end.as_ref()) {
            record.ended(*cause, reason);
        }
        let mut vm = Vm::new(record);
        vm.is_bare = is_bare;
        if let Some(process) = process {
            let saved = saved.as_ref().filter(|saved| is_same_boot(saved));
            vm.record.partition = saved
                .and_then(|saved| saved.partition)
                .or(partition.map(|found| found.id));
            vm.record.started_ms = saved.and_then(|saved| saved.started_ms);
            vm.worker = Some(self.adopt(name, &mut vm.record, process));
        } else if vm.record.boots_at_ms.is_some() {
            // The VM waits until it boots again, and has no worker.
        } else if let Some(saved) = saved.filter(was_alive) {
            let why = match is_same_boot(&saved) {
                true => "worker died while no daemon ran",
                false => "the root partition was restarted",
            };
            vm.record.ended(EndCause::Failed, why);
            vm.exit = Some(WorkerExit::Unknown);
            self.sockets(name).remove();
            self.cleaner.begin(name);
        } else if partition.is_some() {
            self.cleaner.begin(name);
        }
        self.vms.insert(name.to_owned(), vm);
        self.changed(name);
    }
}
