//! Changes of a VM's configuration.
//!
//! A change holds in memory at once, so that the next one starts from it. It is told, and a worker hears of it, once it is
//! written for good. One that can't be written is taken back.

use guest_proto::control::{Failure, FailureKind, Response, WorkerCommand};
use log::error;

use super::devices::wrong;
use super::keeper::Work;
use super::opener::Files;
use super::store::StoreError;
use super::vms::{Ticket, Vms, failure};
use crate::config::VmConfig;

/// A change that is being written.
#[derive(Debug)]
pub(super) struct Redefinition {
    new: VmConfig,
    old: Result<VmConfig, StoreError>,
    then: Then,
}

/// The step that follows once a change is written.
#[derive(Debug)]
pub(super) enum Then {
    /// No step: no client waits for the change.
    Nothing,
    /// Clients are told that the device of this name, which the worker has given up, is detached.
    TellDetached(String),
    /// The device of this name is attached; its files go to the worker, if there was one.
    Attach(String, Option<Box<Files>>),
    /// The device of this name, which no worker has, is detached.
    Detach(String),
    /// The command goes to the worker, if there is one, and the ticket is answered.
    Tell(Ticket, Option<WorkerCommand>),
}

impl Vms {
    /// Begins to change the configuration of a VM.
    pub(super) fn redefine(
        &mut self,
        name: &str,
        new: VmConfig,
        then: Then,
    ) -> Result<(), Failure> {
        let toml = new.to_toml().map_err(|e| wrong(name, &e))?;
        let known = &mut self.vm_mut(name)?.record.config;
        let old = std::mem::replace(known, Ok(new.clone()));
        let number = self.new_ticket();
        self.keeper.begin(name, Work::Redefine(toml, number));
        let redefinition = Redefinition { new, old, then };
        self.redefinitions.push((number, redefinition));
        Ok(())
    }

    /// Goes on with a change that was written, or could not be.
    pub(super) fn redefined(&mut self, name: &str, number: Ticket, result: Result<(), Failure>) {
        let is_it = |(other, _): &(Ticket, Redefinition)| *other == number;
        let Some(at) = self.redefinitions.iter().position(is_it) else {
            return;
        };
        let (_, Redefinition { new, old, then }) = self.redefinitions.swap_remove(at);
        if let Err(e) = &result {
            error!("{name}: its configuration was not saved: {}", e.message);
            // A change that the worker has carried out already stays. A later change was made from this one, and may be
            // written.
            if !matches!(then, Then::Nothing | Then::TellDetached(_))
                && let Ok(vm) = self.vm_mut(name)
                && vm.record.config.as_ref() == Ok(&new)
            {
                vm.record.config = old;
            }
        }
        match then {
            Then::Nothing => {}
            Then::TellDetached(device) => self.detach_ended(name, &device, Ok(())),
            Then::Attach(device, files) => match (result, files) {
                // The worker tells when it has the device.
                (Ok(()), Some(files)) => {
                    if let Err(e) = self.hand_over(name, &device, *files) {
                        self.attach_ended(name, &device, Err(e));
                    }
                }
                (result, _) => self.attach_ended(name, &device, result),
            },
            Then::Detach(device) => self.tell_device(name, &device, result),
            Then::Tell(ticket, command) => {
                let told = result.and_then(|()| {
                    if let Some(command) = command
                        && self.vm(name)?.record.state().is_alive()
                    {
                        self.command(name, &command)?;
                    }
                    self.changed(name);
                    self.status(name).map(Response::Status)
                });
                self.answer(ticket, told);
            }
        }
    }

    /// Fails while a change of a VM's configuration is being written.
    pub(super) fn check_written(&self, name: &str) -> Result<(), Failure> {
        if self.redefinitions.iter().all(|(_, r)| r.new.name != name) {
            return Ok(());
        }
        let message = format!("{name}: its configuration is being written: try again");
        Err(failure(FailureKind::State, message))
    }
}
