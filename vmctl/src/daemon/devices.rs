//! Devices that come to a VM and go from it.
//!
//! The configuration of a VM names a device before its worker has it, and until its worker has lost it.
//! A worker that another daemon started tells which devices it has ([`Vms::has_devices`]), so that the
//! end of a daemon in between leaves no device behind.

use std::fmt;

use guest_proto::control::{
    DeviceTable, Failure, FailureKind, VmStatus, WorkerCommand, WorkerEvent,
};

use super::jobs::Outcome;
use super::journal;
use super::opener::{self, Files, Opened};
use super::request::not_found;
use super::vms::{Vm, Vms, failure};
use crate::config::{DeviceConfig, LinkState, VmConfig};

/// What became of a device that was to be attached or detached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DeviceChange {
    /// Name of the device.
    pub(super) name: String,
    /// Done, or why not.
    pub(super) result: Result<(), Failure>,
}

impl Vms {
    /// Begins to attach a device. Returns the device's name; [`Self::tell_device`] tells the outcome.
    pub(super) fn attach(&mut self, name: &str, device: &DeviceTable) -> Result<String, Failure> {
        let vm = self.vm(name)?;
        vm.record.may_attach()?;
        let device = DeviceConfig::parse(device).map_err(|e| wrong(name, &e))?;
        // The names of those that are being attached are taken.
        let mut config = vm.record.config()?.clone();
        for other in &vm.attaching {
            if config.device_names().all(|taken| taken != other.name()) {
                let with_other = config.with_device(other.clone());
                config = with_other.map_err(|e| wrong(name, &e))?.0;
            }
        }
        let (config, device) = config.with_device(device).map_err(|e| wrong(name, &e))?;
        let (vm_name, opened, pairs) = (name.to_owned(), device.clone(), config.default_pairs());
        let begun = self.jobs.begin(name, move || {
            Outcome::Opened(Box::new(opener::open(vm_name, opened, pairs)))
        });
        begun.map_err(|e| {
            let message = format!("{name}: {}: {e}", device.name());
            failure(FailureKind::Resources, message)
        })?;
        let name_of_device = device.name().to_owned();
        self.vm_mut(name)?.attaching.push(device);
        Ok(name_of_device)
    }

    /// Goes on with a device that was opened.
    pub(super) fn opened(&mut self, opened: Opened) {
        let (vm, device) = (opened.vm.clone(), opened.device.name().to_owned());
        match self.hand_over(opened) {
            Ok(true) => {}
            Ok(false) => self.attach_ended(&vm, &device, Ok(())),
            Err(e) => self.attach_ended(&vm, &device, Err(e)),
        }
    }

    /// Enters an opened device into the configuration and gives it to the worker, if there is one.
    fn hand_over(&mut self, opened: Opened) -> Result<bool, Failure> {
        let name = &*opened.vm;
        let opened_files = opened.files?;
        let vm = self.vm(name)?;
        // Another VM may have the name by now.
        let is_attaching = |other: &DeviceConfig| other.name() == opened.device.name();
        if !vm.attaching.iter().any(is_attaching) {
            return Err(not_found(name));
        }
        let record = &vm.record;
        record.may_attach()?;
        let is_alive = record.state().is_alive();
        let config = record.config()?.with_device(opened.device);
        self.redefine(name, config.map_err(|e| wrong(name, &e))?.0)?;
        if is_alive {
            let Files { device, files } = opened_files;
            let command = WorkerCommand::Attach {
                name: device.name().to_owned(),
                device: device.to_table().map_err(|e| wrong(name, &e))?,
                files: files.len() as u32,
            };
            self.command_with_files(name, &command, files)?;
        }
        Ok(is_alive)
    }

    /// A device was attached, or was not.
    fn attach_ended(&mut self, name: &str, device: &str, result: Result<(), Failure>) {
        if let Ok(vm) = self.vm_mut(name) {
            vm.attaching.retain(|attaching| attaching.name() != device);
        }
        if result.is_err() {
            self.remove_device(name, device);
        }
        self.tell_device(name, device, result);
    }

    /// Detaches a device. Returns false if [`Self::tell_device`] will tell the outcome.
    pub(super) fn detach(&mut self, name: &str, device: &str) -> Result<bool, Failure> {
        let vm = self.vm(name)?;
        if vm.attaching.iter().any(|other| other.name() == device) {
            let message = format!("{name}: {device} is being attached");
            return Err(failure(FailureKind::State, message));
        }
        let config = vm.record.config()?;
        if config.device_names().all(|other| other != device) {
            let device = device.escape_default();
            let message = format!(
                "{name}: no disk or NIC has the name \"{device}\"; \"vmctl info {name}\" shows all"
            );
            return Err(failure(FailureKind::NotFound, message));
        }
        if !vm.record.may_detach()? {
            let config = config.with_devices(|other| other != device);
            self.redefine(name, config)?;
            return Ok(true);
        }
        let command = WorkerCommand::Detach {
            name: device.to_owned(),
        };
        self.command(name, &command)?;
        self.vm_mut(name)?.detaching.push(device.to_owned());
        Ok(false)
    }

    /// Changes a key of a VM's configuration.
    pub(super) fn set(&mut self, name: &str, setting: &str) -> Result<VmStatus, Failure> {
        let record = &self.vm(name)?.record;
        record.may_attach()?;
        let is_alive = record.state().is_alive();
        let changed = record.config()?.with_setting(setting);
        let (config, nic) = changed.map_err(|e| wrong(name, &e))?;
        self.redefine(name, config)?;
        if is_alive {
            let is_up = nic.link == LinkState::Up;
            let name_of_nic = nic.name;
            let command = WorkerCommand::SetLink {
                name: name_of_nic,
                is_up,
            };
            self.command(name, &command)?;
        }
        self.status(name)
    }

    /// A worker tells about a device.
    pub(super) fn device_event(&mut self, name: &str, event: WorkerEvent) {
        match event {
            WorkerEvent::Ready { devices, .. } => self.has_devices(name, &devices),
            WorkerEvent::Attached { name: device } => self.attach_ended(name, &device, Ok(())),
            WorkerEvent::Detached { name: device } => {
                self.remove_device(name, &device);
                self.detach_ended(name, &device, Ok(()));
            }
            WorkerEvent::DeviceRefused {
                name: device,
                reason,
            } => {
                let message = format!("{name}: {device}: {reason}");
                let refusal = Err(failure(FailureKind::State, message));
                let Ok(vm) = self.vm(name) else { return };
                // If nobody here asked for either, an earlier daemon began to attach the device.
                match vm.detaching.contains(&device) {
                    true => self.detach_ended(name, &device, refusal),
                    false => self.attach_ended(name, &device, refusal),
                }
            }
            WorkerEvent::Connect { request, port } => self.connect(name, request, port),
            _ => {}
        }
    }

    /// Connects a guest to a program of VM 0, or tells the worker that nobody listens.
    fn connect(&mut self, name: &str, request: u64, port: u32) {
        let has_socket = |vm: &Vm| vm.record.has_unix_socket();
        let files = match self.vm(name).is_ok_and(has_socket) {
            true => Vec::from_iter(self.sockets(name).connect_to_port(port)),
            false => Vec::new(),
        };
        let command = WorkerCommand::Connected {
            request,
            files: files.len() as u32,
        };
        self.tell_worker(name, &command, files);
    }

    fn detach_ended(&mut self, name: &str, device: &str, result: Result<(), Failure>) {
        if let Ok(vm) = self.vm_mut(name) {
            vm.detaching.retain(|detaching| detaching != device);
        }
        self.tell_device(name, device, result);
    }

    /// The worker has these devices, and no others.
    fn has_devices(&mut self, name: &str, devices: &[String]) {
        self.keep_devices(name, |name| devices.iter().any(|device| device == name));
    }

    /// The worker is gone: what it was to do with devices is not done.
    pub(super) fn devices_ended(&mut self, name: &str) {
        let Ok(vm) = self.vm_mut(name) else { return };
        let detaching = std::mem::take(&mut vm.detaching);
        // A device that is still being opened is none of the worker's.
        let config = vm.record.config.as_ref();
        let is_sent = |device: &&str| {
            config.is_ok_and(|config| config.device_names().any(|other| other == *device))
        };
        let sent = vm.attaching.iter().map(DeviceConfig::name).filter(is_sent);
        let sent: Vec<_> = sent.map(str::to_owned).collect();
        let ended = |device: &str, what: &str| {
            let message = format!("{name}: the VM ended before {device} was {what}");
            Err(failure(FailureKind::Ended, message))
        };
        for device in sent {
            self.attach_ended(name, &device, ended(&device, "attached"));
        }
        for device in detaching {
            self.tell_device(name, &device, ended(&device, "detached"));
        }
    }

    fn remove_device(&mut self, name: &str, device: &str) {
        self.keep_devices(name, |other| other != device);
    }

    fn keep_devices(&mut self, name: &str, keeps: impl Fn(&str) -> bool) {
        let Ok(vm) = self.vm(name) else { return };
        let Ok(known) = &vm.record.config else { return };
        let config = known.with_devices(keeps);
        if config != *known {
            self.redefine_or_say(name, config);
        }
    }

    /// Replaces the configuration of a VM that is not alive.
    pub(super) fn replace(&mut self, name: &str, toml: &str) -> Result<VmStatus, Failure> {
        self.check_idle(name)?;
        let config = VmConfig::parse(name, toml).map_err(|e| wrong(name, &e))?;
        if config.name != name {
            return Err(wrong(name, &"the configuration has another name"));
        }
        self.redefine(name, config)?;
        self.changed(name);
        self.status(name)
    }

    /// Changes the configuration of a VM, for good once this returns.
    fn redefine(&mut self, name: &str, config: VmConfig) -> Result<(), Failure> {
        let toml = config.to_toml().map_err(|e| wrong(name, &e))?;
        self.store.redefine(name, &toml).map_err(|e| {
            let dir = self.store.dir(name);
            failure(FailureKind::Internal, format!("{}: {e}", dir.display()))
        })?;
        self.vm_mut(name)?.record.config = Ok(config);
        Ok(())
    }

    /// As [`Self::redefine`]. If the file can't be written, the change lasts as long as the daemon.
    fn redefine_or_say(&mut self, name: &str, config: VmConfig) {
        if let Err(e) = self.redefine(name, config.clone()) {
            journal::say(format_args!(
                "{name}: its configuration was not saved: {}",
                e.message
            ));
            if let Ok(vm) = self.vm_mut(name) {
                vm.record.config = Ok(config);
            }
        }
    }
}

fn wrong(name: &str, what: &dyn fmt::Display) -> Failure {
    failure(FailureKind::Config, format!("{name}: {what}"))
}
