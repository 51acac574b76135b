//! Requests of users to a VM that runs: stop, pause, resume. A request that can't be carried out at once is kept in the
//! VM's record.

use guest_proto::control::{Failure, VmStatus, WorkerCommand};

use super::record::How;
use super::vms::Vms;
use crate::proc;

impl Vms {
    /// Asks the guest to power off, and perhaps starts it again when it has.
    pub(super) fn stop(&mut self, name: &str, starts_again: bool) -> Result<VmStatus, Failure> {
        let vm = self.vm(name)?;
        let how = match starts_again {
            true => vm.record.may_reboot()?,
            false => vm.record.may_stop()?,
        };
        // A worker that is gone has told how its guest ended, and the next one is told what is asked.
        let is_pressed = how == How::Now && vm.worker.is_some();
        if is_pressed {
            self.command(name, &WorkerCommand::PowerButton)?;
        }
        if how != How::Done {
            let record = &mut self.vm_mut(name)?.record;
            record.stop_asked(starts_again, is_pressed, proc::boot_ms());
            self.changed(name);
        }
        self.status(name)
    }

    /// Withdraws what was asked by [`Self::stop`].
    pub(super) fn withdraw(&mut self, name: &str) -> Result<VmStatus, Failure> {
        self.vm_mut(name)?.record.asked.end = None;
        self.changed(name);
        self.status(name)
    }

    pub(super) fn kill(&mut self, name: &str) -> Result<VmStatus, Failure> {
        let vm = self.vm_mut(name)?;
        if vm.record.boots_at_ms.is_some() {
            vm.record.killed_while_it_waits();
            self.changed(name);
        } else if vm.record.state().is_alive() {
            vm.record.killing();
            if let Some(worker) = &vm.worker {
                worker.kill();
            }
            self.changed(name);
        }
        self.status(name)
    }

    pub(super) fn pause(&mut self, name: &str) -> Result<VmStatus, Failure> {
        let vm = self.vm(name)?;
        let how = vm.record.may_pause()?;
        if how == How::Now && vm.worker.is_some() {
            self.command(name, &WorkerCommand::Pause)?;
        }
        if how != How::Done {
            self.vm_mut(name)?.record.asked.pause = true;
            self.changed(name);
        }
        self.status(name)
    }

    pub(super) fn resume(&mut self, name: &str) -> Result<VmStatus, Failure> {
        let vm = self.vm(name)?;
        let how = vm.record.may_resume()?;
        // A worker that is gone holds nothing.
        if how == How::Now && vm.worker.is_some() {
            self.command(name, &WorkerCommand::Resume)?;
        }
        self.vm_mut(name)?.record.asked.pause = false;
        self.changed(name);
        self.status(name)
    }

    /// Has a guest that has begun to run do what was asked before.
    pub(super) fn do_what_was_asked(&mut self, name: &str) {
        let Some(vm) = self.vms.get_mut(name).filter(|vm| vm.worker.is_some()) else {
            return;
        };
        let mut commands = Vec::new();
        if vm.record.owes_press() {
            commands.push(WorkerCommand::PowerButton);
            if let Some(end) = &mut vm.record.asked.end {
                end.is_pressed = true;
            }
        }
        if vm.record.owes_pause() {
            commands.push(WorkerCommand::Pause);
        }
        for command in commands {
            // The end of a worker that can't be reached is heard from the worker itself.
            let _ = self.command(name, &command);
        }
    }

    pub(super) fn resize(&mut self, name: &str, columns: u16, rows: u16) -> Result<(), Failure> {
        if !self.vm(name)?.record.state().is_alive() {
            return Ok(());
        }
        self.command(name, &WorkerCommand::Resize { columns, rows })
    }
}
