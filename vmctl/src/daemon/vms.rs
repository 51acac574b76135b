//! All VMs, and what requests do to them.
//!
//! `supervise` has the other side, the workers; `listing` what is shown. A state is saved whenever
//! it changes, so that a later daemon goes on from it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use guest_proto::control::{EndCause, Failure, FailureKind, VmState, VmStatus, WorkerCommand};

use super::DaemonArgs;
use super::cleaner::Cleaner;
use super::devices::DeviceChange;
use super::journal;
use super::opener::Opener;
use super::process::{Process, Sockets};
use super::record::{Record, WorkerExit};
use super::request::not_found;
use super::resources::{Partitions, check_memory};
use super::store::{Saved, Store};
use super::supervise::Worker;
use super::usage::Usage;
use crate::config::{DeviceConfig, VmConfig};
use crate::proc;

/// Time after which a state that could not be saved is saved again.
const SAVE_AGAIN_AFTER: Duration = Duration::from_secs(5);

/// Every VM.
#[derive(Debug)]
pub(super) struct Vms {
    pub(super) program: PathBuf,
    pub(super) device: PathBuf,
    /// First user ID of the workers.
    pub(super) first_uid: u32,
    pub(super) partitions: Partitions,
    pub(super) cleaner: Cleaner,
    pub(super) opener: Opener,
    pub(super) store: Store,
    pub(super) vms: BTreeMap<String, Vm>,
    pub(super) usage: Usage,
    pub(super) next_sample: Instant,
    /// When states that could not be saved are saved again, if there are any.
    pub(super) save_again_at: Option<Instant>,
    runtime_dir: PathBuf,
    boot_id: String,
    changes: Vec<Change>,
}

/// One VM: what is known of it, and what stands behind it.
#[derive(Debug)]
pub(super) struct Vm {
    pub(super) record: Record,
    pub(super) worker: Option<Worker>,
    /// How its worker went, until all that it had has been given back.
    pub(super) exit: Option<WorkerExit>,
    /// Devices that are being attached.
    pub(super) attaching: Vec<DeviceConfig>,
    /// Names of devices that the guest was asked to give up.
    pub(super) detaching: Vec<String>,
    /// State and reason of the last change.
    told: Option<(VmState, String)>,
    /// What its file of the state holds.
    saved: Option<Saved>,
    /// Why its file of the state could not be written.
    pub(super) unsaved: Option<String>,
}

impl Vm {
    fn new(record: Record) -> Self {
        Self {
            record,
            worker: None,
            exit: None,
            attaching: Vec::new(),
            detaching: Vec::new(),
            told: None,
            saved: None,
            unsaved: None,
        }
    }
}

/// Something about a VM changed.
#[derive(Debug)]
pub(super) struct Change {
    /// Which VM.
    pub(super) name: String,
    /// The VM as it was then; `None` if it was deleted.
    pub(super) status: Option<VmStatus>,
    /// Whether its state or its reason are other than at the last change.
    pub(super) news: bool,
    /// What its worker would not do, and why.
    pub(super) refused: Option<String>,
    /// Its worker has told its devices.
    pub(super) has_devices: bool,
    /// What became of a disk that was to be attached or detached.
    pub(super) device: Option<DeviceChange>,
}

impl Vms {
    /// Reads the definitions and finds the workers that an earlier daemon left.
    pub(super) fn load(args: &DaemonArgs, runtime_dir: &Path) -> Result<Self, String> {
        let in_state_dir = |e: std::io::Error| format!("{}: {e}", args.state_dir.display());
        let store = Store::open(&args.state_dir).map_err(in_state_dir)?;
        let definitions = store.definitions().map_err(in_state_dir)?;
        let device = (!args.without_driver).then_some(args.device.as_path());
        let partitions = Partitions::new(device);
        let cleaner =
            Cleaner::start(partitions.clone()).map_err(|e| format!("cleaner thread: {e}"))?;
        let opener = Opener::new().map_err(|e| format!("event descriptor: {e}"))?;
        let mut vms = Self {
            program: args.worker.clone(),
            device: args.device.clone(),
            first_uid: args.first_uid,
            partitions,
            cleaner,
            opener,
            store,
            vms: BTreeMap::new(),
            usage: Usage::default(),
            next_sample: Instant::now(),
            save_again_at: None,
            runtime_dir: runtime_dir.to_owned(),
            boot_id: proc::boot_id(),
            changes: Vec::new(),
        };
        for (name, config) in definitions {
            match config {
                Ok(config) => vms.restore(&name, config),
                // Its directory stays as it is, for its owner to mend.
                Err(e) => journal::say(format_args!("{name} is left out: {e}")),
            }
        }
        vms.sample();
        Ok(vms)
    }

    fn restore(&mut self, name: &str, config: VmConfig) {
        let Some(saved) = self.store.load(name) else {
            self.vms
                .insert(name.to_owned(), Vm::new(Record::new(config)));
            return;
        };
        let mut record = Record::restored(config, saved.state, &saved.reason);
        record.reboots = saved.reboots;
        let mut vm = Vm::new(record);
        if saved.state.is_alive() {
            let same_boot = saved.boot_id == self.boot_id;
            let process = saved.worker.filter(|_| same_boot).and_then(Process::find);
            if let Some(process) = process {
                vm.record.partition = saved.partition;
                vm.record.started_ms = saved.started_ms;
                vm.worker = Some(self.adopt(name, &mut vm.record, process));
            } else {
                let why = if same_boot {
                    "worker died while no daemon ran"
                } else {
                    "the root partition was restarted"
                };
                vm.record.ended(EndCause::Failed, why);
                vm.exit = Some(WorkerExit::Unknown);
                self.sockets(name).remove();
                self.cleaner.begin(name);
            }
        }
        self.vms.insert(name.to_owned(), vm);
        self.changed(name);
    }

    pub(super) fn runtime_dir(&self) -> &Path {
        &self.runtime_dir
    }

    pub(super) fn sockets(&self, name: &str) -> Sockets {
        Sockets::new(&self.runtime_dir, name)
    }

    /// What changed since the last call.
    pub(super) fn take_changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }

    pub(super) fn define(&mut self, toml: &str) -> Result<VmStatus, Failure> {
        let config = VmConfig::parse("configuration", toml)
            .map_err(|e| failure(FailureKind::Config, e.to_string()))?;
        let name = config.name.clone();
        if self.vms.contains_key(&name) {
            return Err(failure(
                FailureKind::State,
                format!(
                    "{name} is defined already: choose another name, or \"vmctl delete {name}\""
                ),
            ));
        }
        config
            .check_files()
            .map_err(|(_, what)| failure(FailureKind::Config, format!("{name}: {what}")))?;
        self.store.define(&name, toml).map_err(|e| {
            let dir = self.store.dir(&name);
            failure(FailureKind::Internal, format!("{}: {e}", dir.display()))
        })?;
        self.vms.insert(name.clone(), Vm::new(Record::new(config)));
        self.changed(&name);
        self.status(&name)
    }

    pub(super) fn start(&mut self, name: &str) -> Result<VmStatus, Failure> {
        let record = &self.vm(name)?.record;
        record.may_start()?;
        let wanted = record.config.memory;
        record
            .config
            .check_files()
            .map_err(|(_, what)| failure(FailureKind::Config, format!("{name}: {what}")))?;
        self.partitions
            .check()
            .map_err(|e| failure(FailureKind::Platform, format!("{name}: {e}")))?;
        check_memory(wanted, self.promised_memory())
            .map_err(|e| failure(FailureKind::Resources, format!("{name}: {e}")))?;
        // What could not be cleaned up after an earlier life.
        if let Err(e) = self.partitions.destroy_named(name) {
            journal::say(format_args!(
                "{name}: an old partition was not destroyed: {e}"
            ));
        }
        self.launch(name, Record::starting)
            .map_err(|e| failure(FailureKind::Internal, format!("{name}: {e}")))?;
        self.status(name)
    }

    /// Bytes of RAM that living VMs may still take.
    fn promised_memory(&self) -> u64 {
        let alive = self.vms.values().filter(|vm| vm.worker.is_some());
        alive
            .map(|vm| {
                let id = vm.record.partition;
                let populated = id.and_then(|id| self.partitions.populated(id));
                let memory = vm.record.config.memory;
                memory.saturating_sub(populated.unwrap_or(0))
            })
            .sum()
    }

    pub(super) fn stop(&mut self, name: &str) -> Result<VmStatus, Failure> {
        if self.vm(name)?.record.may_stop()? {
            self.command(name, &WorkerCommand::PowerButton)?;
            self.vm_mut(name)?.record.stopping();
            self.changed(name);
        }
        self.status(name)
    }

    pub(super) fn kill(&mut self, name: &str) -> Result<VmStatus, Failure> {
        let vm = self.vm_mut(name)?;
        if vm.record.state().is_alive() {
            vm.record.killing();
            if let Some(worker) = &vm.worker {
                worker.kill();
            }
            self.changed(name);
        }
        self.status(name)
    }

    pub(super) fn pause(&mut self, name: &str) -> Result<VmStatus, Failure> {
        if self.vm(name)?.record.may_pause()? {
            self.command(name, &WorkerCommand::Pause)?;
        }
        self.status(name)
    }

    pub(super) fn resume(&mut self, name: &str) -> Result<VmStatus, Failure> {
        if self.vm(name)?.record.may_resume()? {
            self.command(name, &WorkerCommand::Resume)?;
        }
        self.status(name)
    }

    pub(super) fn resize(&mut self, name: &str, columns: u16, rows: u16) -> Result<(), Failure> {
        if !self.vm(name)?.record.state().is_alive() {
            return Ok(());
        }
        self.command(name, &WorkerCommand::Resize { columns, rows })
    }

    pub(super) fn delete(&mut self, name: &str) -> Result<(), Failure> {
        self.vm(name)?.record.may_delete()?;
        self.store.remove(name).map_err(|e| {
            let dir = self.store.dir(name);
            failure(FailureKind::Internal, format!("{}: {e}", dir.display()))
        })?;
        self.vms.remove(name);
        self.note_change(name, None);
        Ok(())
    }

    pub(super) fn vm(&self, name: &str) -> Result<&Vm, Failure> {
        self.vms.get(name).ok_or_else(|| not_found(name))
    }

    pub(super) fn vm_mut(&mut self, name: &str) -> Result<&mut Vm, Failure> {
        self.vms.get_mut(name).ok_or_else(|| not_found(name))
    }

    pub(super) fn changed(&mut self, name: &str) {
        self.note_change(name, None);
    }

    /// Saves a VM's state and remembers to tell those who wait.
    pub(super) fn note_change(&mut self, name: &str, refused: Option<String>) {
        self.save(name);
        self.tell_change(name, refused);
    }

    /// Saves a VM's state if it is another than the saved one. What can't be saved is saved later.
    pub(super) fn save(&mut self, name: &str) {
        if let Some(vm) = self.vms.get_mut(name) {
            let record = &vm.record;
            let saved = Saved {
                state: record.state(),
                reason: record.reason().to_owned(),
                boot_id: self.boot_id.clone(),
                partition: record.partition,
                started_ms: record.started_ms,
                reboots: record.reboots,
                worker: vm.worker.as_ref().map(Worker::identity),
            };
            // A worker that says something else writes no file.
            if vm.saved.as_ref() != Some(&saved) {
                match self.store.save(name, &saved) {
                    Ok(()) => {
                        vm.saved = Some(saved);
                        vm.unsaved = None;
                    }
                    Err(e) => {
                        let e = e.to_string();
                        if vm.unsaved.as_ref() != Some(&e) {
                            journal::say(format_args!("{name}: its state can't be saved: {e}"));
                        }
                        vm.unsaved = Some(e);
                        let at = Instant::now() + SAVE_AGAIN_AFTER;
                        self.save_again_at.get_or_insert(at);
                    }
                }
            }
        }
    }

    /// Remembers to tell those who wait of a VM's state as it is now.
    pub(super) fn tell_change(&mut self, name: &str, refused: Option<String>) {
        let mut news = false;
        if let Some(vm) = self.vms.get_mut(name) {
            let now = Some((vm.record.state(), vm.record.reason().to_owned()));
            news = vm.told != now;
            vm.told = now;
        }
        self.changes.push(Change {
            news,
            refused,
            ..self.no_change(name)
        });
    }

    /// Remembers to tell those who wait of a VM's devices.
    pub(super) fn tell_devices(&mut self, name: &str) {
        self.changes.push(Change {
            has_devices: true,
            ..self.no_change(name)
        });
    }

    /// Remembers to tell those who wait what became of a device.
    pub(super) fn tell_device(&mut self, name: &str, device: &str, result: Result<(), Failure>) {
        self.changes.push(Change {
            device: Some(DeviceChange {
                name: device.to_owned(),
                result,
            }),
            ..self.no_change(name)
        });
    }

    fn no_change(&self, name: &str) -> Change {
        Change {
            name: name.to_owned(),
            status: self.status(name).ok(),
            news: false,
            refused: None,
            has_devices: false,
            device: None,
        }
    }
}

pub(super) fn failure(kind: FailureKind, message: String) -> Failure {
    Failure { kind, message }
}
