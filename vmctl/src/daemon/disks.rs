//! Disks that come to a VM and go from it.
//!
//! The configuration of a VM names a disk before its worker has it, and until its worker has lost it.
//! A worker that another daemon started tells which disks it has ([`Vms::has_disks`]), so that the
//! end of a daemon in between leaves no disk behind.

use std::fmt;

use guest_proto::control::{Failure, FailureKind, WorkerCommand, WorkerEvent};

use super::opener::Opened;
use super::request::not_found;
use super::vms::{Vms, failure};
use crate::config::{ConfigError, DiskConfig, VmConfig};
use crate::disk::{DiskError, Problem};

/// What became of a disk that was to be attached or detached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DiskChange {
    /// Name of the disk.
    pub(super) name: String,
    /// Done, or why not.
    pub(super) result: Result<(), Failure>,
}

impl Vms {
    /// Begins to attach a disk. Returns the disk's name; [`Self::tell_disk`] tells the outcome.
    pub(super) fn attach(&mut self, name: &str, disk: &str) -> Result<String, Failure> {
        let vm = self.vm(name)?;
        vm.record.may_attach()?;
        let disk = DiskConfig::parse(disk).map_err(|e| wrong(name, &e))?;
        // The names of those that are being attached are taken.
        let mut config = vm.record.config.clone();
        for other in &vm.attaching {
            if config.disks.iter().all(|disk| disk.name != other.name) {
                config.disks.push(other.clone());
            }
        }
        let disk = with_disk(&config, disk)
            .map_err(|e| wrong(name, &e))?
            .disks
            .pop();
        let Some(disk) = disk else {
            return Err(wrong(name, &"the configuration has no disk"));
        };
        self.opener.begin(name, disk.clone()).map_err(|e| {
            let message = format!("{name}: {}: {e}", disk.path.display());
            failure(FailureKind::Resources, message)
        })?;
        let name_of_disk = disk.name.clone();
        self.vm_mut(name)?.attaching.push(disk);
        Ok(name_of_disk)
    }

    /// Goes on with a disk whose image was opened.
    pub(super) fn opened(&mut self, opened: Opened) {
        let (vm, disk) = (opened.vm.clone(), opened.disk.name.clone());
        match self.hand_over(opened) {
            Ok(true) => {}
            Ok(false) => self.attach_ended(&vm, &disk, Ok(())),
            Err(e) => self.attach_ended(&vm, &disk, Err(e)),
        }
    }

    /// Enters an opened disk into the configuration and gives it to the worker, if there is one.
    fn hand_over(&mut self, opened: Opened) -> Result<bool, Failure> {
        let (name, mut disk) = (&*opened.vm, opened.disk);
        let chain = opened.chain.map_err(|e| refused(name, &e))?;
        // What the guest writes does not change the format.
        disk.format = Some(chain.format());
        let vm = self.vm(name)?;
        // Another VM may have the name by now.
        if !vm.attaching.iter().any(|other| other.name == disk.name) {
            return Err(not_found(name));
        }
        let record = &vm.record;
        record.may_attach()?;
        let is_alive = record.state().is_alive();
        let config = with_disk(&record.config, disk.clone()).map_err(|e| wrong(name, &e))?;
        self.redefine(name, config)?;
        if is_alive {
            let files = chain.into_files();
            let command = WorkerCommand::Attach {
                name: disk.name.clone(),
                disk: disk.to_toml().map_err(|e| wrong(name, &e))?,
                files: files.len() as u32,
            };
            self.command_with_files(name, &command, files)?;
        }
        Ok(is_alive)
    }

    /// A disk was attached, or was not.
    fn attach_ended(&mut self, name: &str, disk: &str, result: Result<(), Failure>) {
        if let Ok(vm) = self.vm_mut(name) {
            vm.attaching.retain(|attaching| attaching.name != disk);
        }
        if result.is_err() {
            self.remove_disk(name, disk);
        }
        self.tell_disk(name, disk, result);
    }

    /// Detaches a disk. Returns false if [`Self::tell_disk`] will tell the outcome.
    pub(super) fn detach(&mut self, name: &str, disk: &str) -> Result<bool, Failure> {
        let vm = self.vm(name)?;
        let has_name = |other: &DiskConfig| other.name == disk;
        if vm.attaching.iter().any(has_name) {
            let message = format!("{name}: {disk} is being attached");
            return Err(failure(FailureKind::State, message));
        }
        if !vm.record.config.disks.iter().any(has_name) {
            let disk = disk.escape_default();
            let message =
                format!("{name}: no disk has the name \"{disk}\"; \"vmctl info {name}\" shows all");
            return Err(failure(FailureKind::NotFound, message));
        }
        if !vm.record.may_detach()? {
            let mut config = vm.record.config.clone();
            config.disks.retain(|other| other.name != disk);
            self.redefine(name, config)?;
            return Ok(true);
        }
        let command = WorkerCommand::Detach {
            name: disk.to_owned(),
        };
        self.command(name, &command)?;
        self.vm_mut(name)?.detaching.push(disk.to_owned());
        Ok(false)
    }

    /// A worker tells about a disk.
    pub(super) fn disk_event(&mut self, name: &str, event: WorkerEvent) {
        match event {
            WorkerEvent::Ready { disks, .. } => self.has_disks(name, &disks),
            WorkerEvent::Attached { name: disk } => self.attach_ended(name, &disk, Ok(())),
            WorkerEvent::Detached { name: disk } => {
                self.remove_disk(name, &disk);
                self.detach_ended(name, &disk, Ok(()));
            }
            WorkerEvent::DiskRefused { name: disk, reason } => {
                let message = format!("{name}: {disk}: {reason}");
                let refusal = Err(failure(FailureKind::State, message));
                let Ok(vm) = self.vm(name) else { return };
                // If nobody here asked for either, an earlier daemon began to attach the disk.
                match vm.detaching.contains(&disk) {
                    true => self.detach_ended(name, &disk, refusal),
                    false => self.attach_ended(name, &disk, refusal),
                }
            }
            _ => {}
        }
    }

    fn detach_ended(&mut self, name: &str, disk: &str, result: Result<(), Failure>) {
        if let Ok(vm) = self.vm_mut(name) {
            vm.detaching.retain(|detaching| detaching != disk);
        }
        self.tell_disk(name, disk, result);
    }

    /// The worker has these disks, and no others.
    fn has_disks(&mut self, name: &str, disks: &[String]) {
        let Ok(vm) = self.vm(name) else { return };
        let mut config = vm.record.config.clone();
        config.disks.retain(|disk| disks.contains(&disk.name));
        if config != vm.record.config {
            self.redefine_or_say(name, config);
        }
    }

    /// The worker is gone: what it was to do with disks is not done.
    pub(super) fn disks_ended(&mut self, name: &str) {
        let Ok(vm) = self.vm_mut(name) else { return };
        let detaching = std::mem::take(&mut vm.detaching);
        // An image that is still being opened is none of the worker's.
        let is_sent = |disk: &&DiskConfig| {
            let mut disks = vm.record.config.disks.iter();
            disks.any(|other| other.name == disk.name)
        };
        let sent = vm.attaching.iter().filter(is_sent);
        let sent: Vec<_> = sent.map(|disk| disk.name.clone()).collect();
        let ended = |disk: &str, what: &str| {
            let message = format!("{name}: the VM ended before {disk} was {what}");
            Err(failure(FailureKind::Ended, message))
        };
        for disk in sent {
            self.attach_ended(name, &disk, ended(&disk, "attached"));
        }
        for disk in detaching {
            self.tell_disk(name, &disk, ended(&disk, "detached"));
        }
    }

    fn remove_disk(&mut self, name: &str, disk: &str) {
        let Ok(vm) = self.vm(name) else { return };
        let mut config = vm.record.config.clone();
        config.disks.retain(|other| other.name != disk);
        if config != vm.record.config {
            self.redefine_or_say(name, config);
        }
    }

    /// Changes the configuration of a VM, for good once this returns.
    fn redefine(&mut self, name: &str, config: VmConfig) -> Result<(), Failure> {
        let toml = config.to_toml().map_err(|e| wrong(name, &e))?;
        self.store.redefine(name, &toml).map_err(|e| {
            let dir = self.store.dir(name);
            failure(FailureKind::Internal, format!("{}: {e}", dir.display()))
        })?;
        self.vm_mut(name)?.record.config = config;
        Ok(())
    }

    /// As [`Self::redefine`]. If the file can't be written, the change lasts as long as the daemon.
    fn redefine_or_say(&mut self, name: &str, config: VmConfig) {
        if let Err(e) = self.redefine(name, config.clone()) {
            eprintln!(
                "vmctl daemon: {name}: its configuration was not saved: {}",
                e.message
            );
            if let Ok(vm) = self.vm_mut(name) {
                vm.record.config = config;
            }
        }
    }
}

/// Returns the configuration with one more disk, the last one, which has a name then.
fn with_disk(config: &VmConfig, disk: DiskConfig) -> Result<VmConfig, ConfigError> {
    let mut config = config.clone();
    config.disks.push(disk);
    VmConfig::parse("configuration", &config.to_toml()?)
}

fn wrong(name: &str, what: &dyn fmt::Display) -> Failure {
    failure(FailureKind::Config, format!("{name}: {what}"))
}

/// The failure of an image that can't be opened.
fn refused(name: &str, error: &DiskError) -> Failure {
    let kind = match error.problem {
        Problem::InUse => FailureKind::State,
        Problem::Wrong | Problem::Exists => FailureKind::Config,
        Problem::Io => FailureKind::Internal,
    };
    failure(kind, format!("{name}: {error}"))
}
