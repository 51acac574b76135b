//! Devices that come to a VM and go from it.
//!
//! The configuration of a VM names a device before its worker has it, and until its worker has lost it.
//! A worker that another daemon started tells which devices it has ([`Vms::has_devices`]), so that the
//! end of a daemon in between leaves no device behind.

use std::fmt;

use guest_proto::control::{DeviceTable, Failure, FailureKind, WorkerCommand, WorkerEvent};
use log::error;

use super::jobs::Outcome;
use super::opener::{self, Files, Opened};
use super::record::Record;
use super::redefine::Then;
use super::request::not_found;
use super::vms::{Ticket, Vm, Vms, failure};
use crate::config::{DeviceConfig, LinkState, VmConfig};

/// The end of an attachment or detachment of a device.
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
        if let Err(e) = self.enter_device(opened) {
            self.attach_ended(&vm, &device, Err(e));
        }
    }

    /// Enters an opened device into the configuration. The worker, if there is one, gets it afterwards.
    fn enter_device(&mut self, opened: Opened) -> Result<(), Failure> {
        let name = &*opened.vm;
        let files = opened.files?;
        let device = opened.device.name().to_owned();
        let record = self.check_attaching(name, &device)?;
        let is_alive = record.state().is_alive();
        let config = record.config()?.with_device(opened.device);
        let (config, _) = config.map_err(|e| wrong(name, &e))?;
        let files = is_alive.then(|| Box::new(files));
        self.redefine(name, config, Then::Attach(device, files))
    }

    /// Checks that a device is still to be attached. Another VM may have the name by now.
    fn check_attaching(&self, name: &str, device: &str) -> Result<&Record, Failure> {
        let vm = self.vm(name)?;
        if vm.attaching.iter().all(|other| other.name() != device) {
            return Err(not_found(name));
        }
        vm.record.may_attach()?;
        Ok(&vm.record)
    }

    /// Gives a device, which the configuration has, to the worker.
    pub(super) fn hand_over(
        &mut self,
        name: &str,
        device: &str,
        files: Files,
    ) -> Result<(), Failure> {
        self.check_attaching(name, device)?;
        let Files { device, files } = files;
        let command = WorkerCommand::Attach {
            name: device.name().to_owned(),
            device: device.to_table().map_err(|e| wrong(name, &e))?,
            files: files.len() as u32,
        };
        self.command_with_files(name, &command, files)
    }

    /// A device was attached, or was not.
    pub(super) fn attach_ended(&mut self, name: &str, device: &str, result: Result<(), Failure>) {
        if let Ok(vm) = self.vm_mut(name) {
            vm.attaching.retain(|attaching| attaching.name() != device);
        }
        if result.is_err() {
            self.keep_devices(name, |other| other != device, Then::Nothing);
        }
        self.tell_device(name, device, result);
    }

    /// Begins to detach a device. [`Self::tell_device`] tells the outcome.
    pub(super) fn detach(&mut self, name: &str, device: &str) -> Result<(), Failure> {
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
            return self.redefine(name, config, Then::Detach(device.to_owned()));
        }
        let command = WorkerCommand::Detach {
            name: device.to_owned(),
        };
        self.command(name, &command)?;
        self.vm_mut(name)?.detaching.push(device.to_owned());
        Ok(())
    }

    /// Begins to change a key of a VM's configuration. The ticket's answer says whether it is changed.
    pub(super) fn set(&mut self, name: &str, setting: &str) -> Result<Ticket, Failure> {
        let record = &self.vm(name)?.record;
        record.may_attach()?;
        let changed = record.config()?.with_setting(setting);
        let (config, nic) = changed.map_err(|e| wrong(name, &e))?;
        let command = WorkerCommand::SetLink {
            is_up: nic.link == LinkState::Up,
            name: nic.name,
        };
        let ticket = self.new_ticket();
        self.redefine(name, config, Then::Tell(ticket, Some(command)))?;
        Ok(ticket)
    }

    /// A worker tells about a device.
    pub(super) fn device_event(&mut self, name: &str, event: WorkerEvent) {
        match event {
            WorkerEvent::Ready { devices, .. } => self.has_devices(name, &devices),
            WorkerEvent::Attached { name: device } => self.attach_ended(name, &device, Ok(())),
            WorkerEvent::Detached { name: device } => {
                let then = Then::TellDetached(device.clone());
                if !self.keep_devices(name, |other| other != device, then) {
                    self.detach_ended(name, &device, Ok(()));
                }
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

    pub(super) fn detach_ended(&mut self, name: &str, device: &str, result: Result<(), Failure>) {
        if let Ok(vm) = self.vm_mut(name) {
            vm.detaching.retain(|detaching| detaching != device);
        }
        self.tell_device(name, device, result);
    }

    /// The worker has these devices, and no others.
    fn has_devices(&mut self, name: &str, devices: &[String]) {
        let has = |name: &str| devices.iter().any(|device| device == name);
        self.keep_devices(name, has, Then::Nothing);
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

    /// Removes devices from the configuration, which lasts as long as the daemon if it can't be written. Returns whether there is
    /// something to write.
    fn keep_devices(&mut self, name: &str, keeps: impl Fn(&str) -> bool, then: Then) -> bool {
        let Ok(vm) = self.vm(name) else { return false };
        let Ok(known) = &vm.record.config else {
            return false;
        };
        let config = known.with_devices(keeps);
        if config == *known {
            return false;
        }
        let begun = self.redefine(name, config, then);
        begun.inspect_err(|e| error!("{}", e.message)).is_ok()
    }

    /// Begins to replace the configuration of a VM that is not alive. The ticket's answer says whether it is replaced.
    pub(super) fn replace(&mut self, name: &str, toml: &str) -> Result<Ticket, Failure> {
        self.check_idle(name)?;
        let config = VmConfig::parse(name, toml).map_err(|e| wrong(name, &e))?;
        if config.name != name {
            return Err(wrong(name, &"the configuration has another name"));
        }
        let ticket = self.new_ticket();
        self.redefine(name, config, Then::Tell(ticket, None))?;
        Ok(ticket)
    }
}

pub(super) fn wrong(name: &str, what: &dyn fmt::Display) -> Failure {
    failure(FailureKind::Config, format!("{name}: {what}"))
}
