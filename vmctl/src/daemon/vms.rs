//! All VMs, and what requests do to them.
//!
//! `supervise` has the other side, the workers; `listing` what is shown. A state is saved whenever
//! it changes, so that a later daemon goes on from it.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use guest_proto::control::{Failure, FailureKind, Response, VmState, VmStatus};
use log::error;

use super::cleaner::Cleaner;
use super::devices::DeviceChange;
use super::jobs::{Jobs, Outcome};
use super::keeper::{Done, Keeper, Work};
use super::process::Sockets;
use super::record::{Record, WorkerExit};
use super::redefine::Redefinition;
use super::request::not_found;
use super::resources::Partitions;
use super::start::Start;
use super::store::{Saved, Store, VERSION};
use super::supervise::Worker;
use super::usage::Usage;
use super::{DaemonArgs, DaemonError};
use crate::config::{DeviceConfig, VmConfig, check_name};
use crate::file::at;
use crate::logging::Levels;
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
    /// Messages that workers log.
    pub(super) log: Levels,
    pub(super) partitions: Partitions,
    pub(super) cleaner: Cleaner,
    pub(super) jobs: Jobs,
    pub(super) keeper: Keeper,
    pub(super) store: Store,
    pub(super) vms: BTreeMap<String, Vm>,
    /// VMs that are being made or removed on disk.
    pending: BTreeMap<String, Pending>,
    /// Changes of configurations that are being written.
    pub(super) redefinitions: Vec<(Ticket, Redefinition)>,
    /// VMs that will be started once their files were looked at.
    pub(super) starts: BTreeMap<String, Start>,
    pub(super) usage: Usage,
    pub(super) next_sample: Instant,
    /// When states that could not be saved are saved again, if there are any.
    pub(super) save_again_at: Option<Instant>,
    runtime_dir: PathBuf,
    pub(super) boot_id: String,
    changes: Vec<Change>,
    answers: Vec<(Ticket, Response)>,
    next_ticket: u64,
}

/// Number of a request whose answer comes later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket(u64);

/// A VM that is being made or removed on disk, and who is told what came of it.
#[derive(Debug)]
enum Pending {
    Define(Ticket, Box<VmConfig>),
    Rename(Ticket, Box<VmConfig>, Box<Vm>),
    Delete(Ticket, Box<Vm>),
}

/// One VM: what is known of it, and what stands behind it.
#[derive(Debug)]
pub(super) struct Vm {
    pub(super) record: Record,
    pub(super) worker: Option<Worker>,
    /// The exit of its worker, until all resources of the worker have been given back.
    pub(super) exit: Option<WorkerExit>,
    /// Devices that are being attached.
    pub(super) attaching: Vec<DeviceConfig>,
    /// Names of devices that the guest was asked to give up.
    pub(super) detaching: Vec<String>,
    /// The state that was told at the last change.
    told: Option<Told>,
    /// The VM's directory does not exist any more, so its state is not saved.
    pub(super) is_bare: bool,
    /// The state that the VM's state file has, or will have soon.
    saved: Option<Saved>,
    /// The reason for which the state file could not be written.
    pub(super) unsaved: Option<String>,
}

impl Vm {
    pub(super) fn new(record: Record) -> Self {
        Self {
            record,
            worker: None,
            exit: None,
            attaching: Vec::new(),
            detaching: Vec::new(),
            told: None,
            is_bare: false,
            saved: None,
            unsaved: None,
        }
    }
}

/// A change of a VM.
#[derive(Debug)]
pub(super) struct Change {
    /// Name of the VM.
    pub(super) name: String,
    /// The VM as it was then; `None` if it was deleted.
    pub(super) status: Option<VmStatus>,
    /// Whether its state, its reason or what was asked of it are other than at the last change.
    pub(super) news: bool,
    /// The request that its worker refused, and the reason.
    pub(super) refused: Option<String>,
    /// The VM's worker has told its devices.
    pub(super) has_devices: bool,
    /// The end of an attachment or detachment of a disk.
    pub(super) device: Option<DeviceChange>,
}

impl Vms {
    /// Reads the definitions and finds the workers that an earlier daemon left.
    pub(super) fn load(args: &DaemonArgs, runtime_dir: &Path) -> Result<Self, DaemonError> {
        let in_state_dir = at(&args.state_dir);
        let store = Store::open(&args.state_dir, runtime_dir).map_err(&in_state_dir)?;
        let device = (!args.without_driver).then_some(args.device.as_path());
        let partitions = Partitions::new(device);
        let cleaner = Cleaner::start(partitions.clone());
        let cleaner = cleaner.map_err(|e| DaemonError::Thread("cleaner", e))?;
        let jobs = Jobs::new().map_err(DaemonError::Event)?;
        let keeper = Keeper::start(store.clone());
        let keeper = keeper.map_err(|e| DaemonError::Thread("state directory", e))?;
        let mut vms = Self {
            program: args.worker.clone(),
            device: args.device.clone(),
            first_uid: args.first_uid,
            log: args.log.clone(),
            partitions,
            cleaner,
            jobs,
            keeper,
            store,
            vms: BTreeMap::new(),
            pending: BTreeMap::new(),
            redefinitions: Vec::new(),
            starts: BTreeMap::new(),
            usage: Usage::default(),
            next_sample: Instant::now(),
            save_again_at: None,
            runtime_dir: runtime_dir.to_owned(),
            boot_id: proc::boot_id(),
            changes: Vec::new(),
            answers: Vec::new(),
            next_ticket: 0,
        };
        vms.restore_all().map_err(in_state_dir)?;
        vms.sample();
        Ok(vms)
    }

    pub(super) fn runtime_dir(&self) -> &Path {
        &self.runtime_dir
    }

    pub(super) fn sockets(&self, name: &str) -> Sockets {
        Sockets::new(&self.runtime_dir, name)
    }

    /// Returns the changes since the last call.
    pub(super) fn take_changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }

    /// Returns the answers to the tickets' requests since the last call.
    pub(super) fn take_answers(&mut self) -> Vec<(Ticket, Response)> {
        std::mem::take(&mut self.answers)
    }

    pub(super) fn new_ticket(&mut self) -> Ticket {
        self.next_ticket += 1;
        Ticket(self.next_ticket)
    }

    pub(super) fn answer(&mut self, ticket: Ticket, answer: Result<Response, Failure>) {
        let answer = answer.unwrap_or_else(Response::Error);
        self.answers.push((ticket, answer));
    }

    /// Goes on with what a job has found.
    pub(super) fn job_ended(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Opened(opened) => self.opened(*opened),
            Outcome::Checked(checked) => self.checked(*checked),
        }
    }

    /// Begins to define a VM. The ticket's answer says whether it exists.
    pub(super) fn define(&mut self, toml: &str) -> Result<Ticket, Failure> {
        let config = VmConfig::parse("configuration", toml)
            .map_err(|e| failure(FailureKind::Config, e.to_string()))?;
        let name = config.name.clone();
        self.check_free(&name)?;
        let ticket = self.new_ticket();
        self.keeper.begin(&name, Work::Define(toml.to_owned()));
        let pending = Pending::Define(ticket, Box::new(config));
        self.pending.insert(name, pending);
        Ok(ticket)
    }

    /// Checks that no VM has this name, or will have it soon.
    fn check_free(&self, name: &str) -> Result<(), Failure> {
        let is_new_name = |pending: &Pending| matches!(pending, Pending::Rename(_, config, _) if config.name == name);
        let is_taken = self.vms.contains_key(name)
            || self.pending.contains_key(name)
            || self.pending.values().any(is_new_name);
        match is_taken {
            false => Ok(()),
            true => Err(failure(
                FailureKind::State,
                format!(
                    "{name} is defined already: choose another name, or \"vmctl delete {name}\""
                ),
            )),
        }
    }

    /// Begins to give a VM another name. The ticket's answer says whether it has it.
    pub(super) fn rename(&mut self, name: &str, to: &str) -> Result<Ticket, Failure> {
        check_name(to).map_err(|e| failure(FailureKind::Config, e.to_string()))?;
        self.check_idle(name)?;
        self.check_free(to)?;
        let mut config = self.vm(name)?.record.config()?.clone();
        to.clone_into(&mut config.name);
        let toml = config
            .to_toml()
            .map_err(|e| failure(FailureKind::Config, e.to_string()))?;
        let vm = self.vms.remove(name).ok_or_else(|| not_found(name))?;
        let ticket = self.new_ticket();
        let to = to.to_owned();
        self.keeper.begin(name, Work::Rename { to, toml });
        let pending = Pending::Rename(ticket, Box::new(config), Box::new(vm));
        self.pending.insert(name.to_owned(), pending);
        Ok(ticket)
    }

    /// Checks that nothing of a VM is alive, and that it is not about to be.
    pub(super) fn check_idle(&self, name: &str) -> Result<(), Failure> {
        self.vm(name)?.record.may_delete()?;
        self.check_written(name)?;
        match self.starts.contains_key(name) {
            true => Err(failure(
                FailureKind::State,
                format!("{name} is being started"),
            )),
            false => Ok(()),
        }
    }

    /// Goes on with what was written to the state directory.
    pub(super) fn kept(&mut self, done: Done) {
        let Done { name, work, result } = done;
        if let Work::Save(_) = work {
            return self.was_saved(&name, result.err());
        }
        let dir = self.store.dir(&name);
        let result = result.map_err(|e| {
            let kind = match e.kind() {
                io::ErrorKind::AlreadyExists => FailureKind::State,
                _ => FailureKind::Internal,
            };
            failure(kind, format!("{}: {e}", dir.display()))
        });
        if let Work::Redefine(_, number) = work {
            return self.redefined(&name, number, result);
        }
        match self.pending.remove(&name) {
            Some(Pending::Define(ticket, config)) => {
                let answer = result.and_then(|()| {
                    self.vms.insert(name.clone(), Vm::new(Record::new(*config)));
                    self.changed(&name);
                    self.status(&name).map(Response::Status)
                });
                self.answer(ticket, answer);
            }
            Some(Pending::Rename(ticket, config, mut vm)) => {
                let new = match result {
                    Ok(()) => config.name.clone(),
                    Err(_) => name.clone(),
                };
                if result.is_ok() {
                    self.store.forget(&name);
                    vm.saved = None;
                    vm.record.name.clone_from(&new);
                    vm.record.config = Ok(*config);
                }
                self.vms.insert(new.clone(), *vm);
                self.changed(&new);
                let answer = result.and_then(|()| self.status(&new).map(Response::Status));
                self.answer(ticket, answer);
            }
            Some(Pending::Delete(ticket, vm)) => {
                if result.is_err() {
                    self.vms.insert(name.clone(), *vm);
                }
                if result.is_ok() {
                    self.store.forget(&name);
                }
                self.tell_change(&name, None);
                self.answer(ticket, result.map(|()| Response::Done));
            }
            None => {}
        }
    }

    /// Bytes of RAM that living VMs may still take.
    pub(super) fn promised_memory(&self) -> u64 {
        let alive = self.vms.values().filter(|vm| vm.worker.is_some());
        alive
            .map(|vm| {
                let id = vm.record.partition;
                let populated = id.and_then(|id| self.partitions.populated(id));
                let config = vm.record.config.as_ref();
                let memory = config.map_or(0, |config| config.memory);
                memory.saturating_sub(populated.unwrap_or(0))
            })
            .sum()
    }

    /// Begins to delete a VM. The ticket's answer says whether it is gone.
    pub(super) fn delete(&mut self, name: &str) -> Result<Ticket, Failure> {
        self.check_idle(name)?;
        let vm = self.vms.remove(name).ok_or_else(|| not_found(name))?;
        let ticket = self.new_ticket();
        self.keeper.begin(name, Work::Remove);
        let pending = Pending::Delete(ticket, Box::new(vm));
        self.pending.insert(name.to_owned(), pending);
        Ok(ticket)
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

    /// Has a VM's state saved if it is another than the saved one. What can't be saved is saved later.
    pub(super) fn save(&mut self, name: &str) {
        let Some(vm) = self.vms.get_mut(name).filter(|vm| !vm.is_bare) else {
            return;
        };
        let record = &vm.record;
        let saved = Saved {
            state: Some(record.state()),
            reason: record.reason().to_owned(),
            boot_id: self.boot_id.clone(),
            partition: record.partition,
            started_ms: record.started_ms,
            reboots: record.reboots,
            boots_at_ms: record.boots_at_ms,
            brake: record.brake,
            asked: record.asked,
            end: record.end().cloned(),
            version: VERSION,
        };
        // A worker that says something else writes no file.
        if vm.saved.as_ref() != Some(&saved) {
            // At once, so that the next daemon knows it. That it can't be written shows when it is written for good.
            let _ = self.store.note(name, &saved);
            self.keeper.begin(name, Work::Save(Box::new(saved.clone())));
            vm.saved = Some(saved);
        }
    }

    fn was_saved(&mut self, name: &str, error: Option<io::Error>) {
        let Some(vm) = self.vms.get_mut(name) else {
            return;
        };
        let problem = error.map(|e| e.to_string());
        if let Some(e) = &problem {
            vm.saved = None;
            let at = Instant::now() + SAVE_AGAIN_AFTER;
            self.save_again_at.get_or_insert(at);
            if vm.unsaved != problem {
                error!("{name}: its state can't be saved: {e}");
            }
        }
        if vm.unsaved != problem {
            vm.unsaved = problem;
            self.tell_change(name, None);
        }
    }

    /// Remembers to tell those who wait of a VM's state as it is now.
    pub(super) fn tell_change(&mut self, name: &str, refused: Option<String>) {
        let mut news = false;
        let now = self.status(name).ok().map(told);
        if let Some(vm) = self.vms.get_mut(name) {
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

/// Facts whose changes are told to clients: the state, the reason, and the requests.
type Told = (VmState, String, [bool; 3]);

fn told(status: VmStatus) -> Told {
    let asked = [
        status.stop_asked_ms.is_some(),
        status.reboot_asked_ms.is_some(),
        status.pause_asked,
    ];
    (status.state, status.reason, asked)
}

pub(super) fn failure(kind: FailureKind, message: String) -> Failure {
    Failure { kind, message }
}
