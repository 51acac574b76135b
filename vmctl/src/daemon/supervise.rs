//! Workers: started, heard, found dead and cleaned up after.
//!
//! A VM's end has two steps, so that whoever sees `stopped` also sees its resources back: the
//! worker's process goes ([`Vms::worker_exited`]), then the cleaner gives back what it had
//! ([`Vms::cleaned_up`]).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use guest_proto::control::{
    DiskStatus, EndCause, Failure, FailureKind, NicStatus, Role, WireError, WorkerCommand,
    WorkerEvent,
};

use super::process::{Identity, Launch, LaunchError, Process, last_words};
use super::record::{Next, Record};
use super::vms::{Vm, Vms, failure};
use crate::proc;
use crate::wire::{Link, LinkError};

/// The time that a worker has to exit once its VM has ended.
const EXIT_GRACE: Duration = Duration::from_secs(5);

/// A worker that has not exited.
#[derive(Debug)]
pub(super) struct Worker {
    process: Process,
    /// `None` once it is broken.
    link: Option<Link>,
    /// The time at which the worker is killed, if it has not exited by itself.
    kill_deadline: Option<Instant>,
    /// The disks that the worker told of last.
    pub(super) disks: Vec<DiskStatus>,
    /// The network cards that the worker told of last.
    pub(super) nics: Vec<NicStatus>,
}

impl Worker {
    pub(super) fn identity(&self) -> Identity {
        self.process.identity()
    }

    pub(super) fn link(&self) -> Option<&Link> {
        self.link.as_ref()
    }

    /// Readable when the process is gone.
    pub(super) fn pidfd(&self) -> BorrowedFd<'_> {
        self.process.as_fd()
    }

    pub(super) fn kill(&self) {
        self.process.kill();
    }
}

impl Vms {
    /// Workers with their VMs' names.
    pub(super) fn workers(&self) -> impl Iterator<Item = (&str, &Worker)> {
        self.vms
            .iter()
            .filter_map(|(name, vm)| Some((name.as_str(), vm.worker.as_ref()?)))
    }

    /// Starts a worker for a VM that has none; `entering` notes that in its record. The worker is
    /// told what to run only when its process is on record: one that no daemon knows ends by
    /// itself.
    ///
    /// # Errors
    ///
    /// Fails with [`LaunchError`]; no worker is left then.
    pub(super) fn launch(
        &mut self,
        name: &str,
        entering: fn(&mut Record),
    ) -> Result<(), LaunchError> {
        let sockets = self.sockets(name);
        let launch = Launch {
            program: &self.program,
            name,
            device: &self.device,
            first_uid: self.first_uid,
            log: &self.log,
            state_dir: &self.store.dir(name),
            sockets: &sockets,
            has_unix_socket: self
                .vms
                .get(name)
                .is_some_and(|vm| vm.record.has_unix_socket()),
        };
        let vm = self.vms.get_mut(name).ok_or(LaunchError::NoSuchVm)?;
        let config = vm.record.config();
        let config = config.map_err(|e| LaunchError::Configuration(e.message))?;
        let config = config.to_toml();
        let config = config.map_err(|e| LaunchError::Configuration(e.to_string()))?;
        let (process, stream) = launch.start()?;
        let link = match Link::new(stream, Role::Daemon, Role::Worker) {
            Ok(link) => link,
            Err(e) => {
                process.kill();
                process.reap();
                sockets.remove();
                return Err(LaunchError::Link(e));
            }
        };
        vm.worker = Some(Worker {
            process,
            link: Some(link),
            kill_deadline: None,
            disks: Vec::new(),
            nics: Vec::new(),
        });
        entering(&mut vm.record);
        self.changed(name);
        self.tell_worker(name, &WorkerCommand::Start { config }, Vec::new());
        Ok(())
    }

    /// Takes over a worker that another daemon started.
    pub(super) fn adopt(&self, name: &str, record: &mut Record, process: Process) -> Worker {
        let link = self
            .sockets(name)
            .connect_to_worker()
            .and_then(|stream| Link::new(stream, Role::Daemon, Role::Worker))
            .map_err(LinkError::Io)
            .and_then(|mut link| link.send(&WorkerCommand::Report).map(|()| link));
        let link = match link {
            Ok(link) => Some(link),
            Err(e) => {
                unreachable_worker(record, &e);
                None
            }
        };
        Worker {
            process,
            link,
            kill_deadline: None,
            disks: Vec::new(),
            nics: Vec::new(),
        }
    }

    /// A worker's link is readable, writable or broken.
    pub(super) fn worker_spoke(&mut self, name: &str) {
        let worker = self.vms.get_mut(name).and_then(|vm| vm.worker.as_mut());
        let mut listened = worker.map_or(Ok(()), listen);
        loop {
            let Some(vm) = self.vms.get_mut(name) else {
                return;
            };
            let Some(worker) = &mut vm.worker else { return };
            let heard = listened.and_then(|()| hear(&mut vm.record, worker));
            if let Err(e) = &heard {
                lost(&mut vm.record, worker, e);
            }
            let heard = heard.unwrap_or_default();
            for event in heard.about_devices {
                self.device_event(name, event);
            }
            if heard.has_devices {
                self.tell_devices(name);
            }
            if !heard.has_state {
                return self.note_change(name, heard.refused);
            }
            // Those who wait for a state hear of each one, also of one that is over at once.
            self.tell_change(name, heard.refused);
            self.do_what_was_asked(name);
            listened = Ok(());
        }
    }

    /// A worker's process is gone.
    pub(super) fn worker_exited(&mut self, name: &str) {
        let Some(vm) = self.vms.get_mut(name) else {
            return;
        };
        let Some(mut worker) = vm.worker.take() else {
            return;
        };
        // The last messages of the worker may still be in the socket.
        let mut about_devices = Vec::new();
        if listen(&mut worker).is_ok() {
            while let Ok(heard) = hear(&mut vm.record, &mut worker) {
                about_devices.extend(heard.about_devices);
                if !heard.has_state {
                    break;
                }
            }
        }
        vm.exit = Some(worker.process.reap());
        for event in about_devices {
            self.device_event(name, event);
        }
        self.devices_ended(name);
        self.sockets(name).remove();
        self.cleaner.begin(name);
        self.changed(name);
    }

    /// Everything that a worker had has been given back.
    pub(super) fn cleaned_up(&mut self, name: &str) {
        let Some(vm) = self.vms.get_mut(name) else {
            return;
        };
        let Some(exit) = vm.exit.take() else { return };
        let words = last_words(&self.store.dir(name));
        let next = vm.record.exited(&exit, words.as_deref(), proc::boot_ms());
        if next == Next::Reboot && vm.record.boots_at_ms.is_none() {
            self.reboot(name);
        }
        self.changed(name);
    }

    fn reboot(&mut self, name: &str) {
        let launched = self.launch(name, Record::rebooting);
        if let (Err(e), Some(vm)) = (launched, self.vms.get_mut(name)) {
            vm.record.restart_failed(&e.to_string());
        }
    }

    /// Boots guests that have waited for it, and forgets requests that are too old.
    fn keep_times(&mut self, now_ms: u64) {
        let is_due = |vm: &Vm| vm.record.boots_at_ms.is_some_and(|at| at <= now_ms);
        let due = self.vms.iter().filter(|(_, vm)| is_due(vm));
        let due: Vec<_> = due.map(|(name, _)| name.clone()).collect();
        for name in due {
            self.reboot(&name);
            self.changed(&name);
        }
        let vms = self.vms.iter_mut();
        let expired = vms.filter_map(|(name, vm)| vm.record.asked.expire(now_ms).then_some(name));
        let expired: Vec<_> = expired.cloned().collect();
        for name in expired {
            self.changed(&name);
        }
    }

    /// Kills workers that should have exited, samples CPU time.
    pub(super) fn tick(&mut self, now: Instant) {
        for vm in self.vms.values_mut() {
            if let Some(worker) = &mut vm.worker
                && worker.kill_deadline.is_some_and(|deadline| deadline <= now)
            {
                // A reason that the worker has given itself stays.
                let why = "worker closed its control socket and did not exit";
                vm.record.ended(EndCause::Failed, why);
                worker.kill();
                worker.kill_deadline = None;
            }
        }
        if self.save_again_at.is_some_and(|at| at <= now) {
            self.save_again_at = None;
            let is_unsaved = |(_, vm): &(&String, &Vm)| vm.unsaved.is_some();
            let unsaved = self.vms.iter().filter(is_unsaved);
            let unsaved: Vec<_> = unsaved.map(|(name, _)| name.clone()).collect();
            for name in unsaved {
                self.save(&name);
            }
        }
        self.give_up_late_starts(now);
        self.keep_times(proc::boot_ms());
        if now >= self.next_sample && self.workers().next().is_some() {
            self.sample();
        }
    }

    /// Returns the time until the next [`Self::tick`], or `None` if there is nothing to do.
    pub(super) fn next_tick(&self, now: Instant) -> Option<Duration> {
        let workers = self
            .workers()
            .map(|(_, worker)| match worker.kill_deadline {
                Some(deadline) => deadline.min(self.next_sample),
                None => self.next_sample,
            });
        let others = self.save_again_at.into_iter().chain(self.next_late_start());
        let untils = workers
            .chain(others)
            .map(|at| at.saturating_duration_since(now));
        let now_ms = proc::boot_ms();
        let times = self.vms.values().flat_map(|vm| {
            let record = &vm.record;
            record
                .boots_at_ms
                .into_iter()
                .chain(record.asked.expires_ms())
        });
        let times = times.map(|at| Duration::from_millis(at.saturating_sub(now_ms)));
        untils.chain(times).min()
    }

    /// Tells a worker something that it waits for. One that does not listen is killed.
    pub(super) fn tell_worker(&mut self, name: &str, command: &WorkerCommand, files: Vec<OwnedFd>) {
        if let Some(vm) = self.vms.get_mut(name)
            && let Some(worker) = &mut vm.worker
            && let Some(link) = &mut worker.link
            && let Err(e) = link.send_with_files(command, files)
        {
            lost(&mut vm.record, worker, &e);
        }
    }

    /// Sends a worker a command.
    ///
    /// # Errors
    ///
    /// The worker can't be reached.
    pub(super) fn command(&mut self, name: &str, command: &WorkerCommand) -> Result<(), Failure> {
        self.command_with_files(name, command, Vec::new())
    }

    /// Sends a worker a command with open files.
    ///
    /// # Errors
    ///
    /// The worker can't be reached.
    pub(super) fn command_with_files(
        &mut self,
        name: &str,
        command: &WorkerCommand,
        files: Vec<OwnedFd>,
    ) -> Result<(), Failure> {
        let worker = self.vms.get_mut(name).and_then(|vm| vm.worker.as_mut());
        let sent = match worker.and_then(|w| w.link.as_mut()) {
            Some(link) => link
                .send_with_files(command, files)
                .map_err(|e| e.to_string()),
            None => Err("there is no connection".to_owned()),
        };
        sent.map_err(|e| {
            let message =
                format!("{name}: worker can't be reached: {e}; \"vmctl kill {name}\" ends it");
            failure(FailureKind::Internal, message)
        })
    }
}

/// The messages of a worker that were read at one time.
#[derive(Debug, Default)]
struct Heard {
    /// The reason for which the worker refused a command.
    refused: Option<String>,
    /// The last message was a state; there may be more messages.
    has_state: bool,
    /// The worker has told its devices.
    has_devices: bool,
    /// Messages about single devices.
    about_devices: Vec<WorkerEvent>,
}

/// Reads what a worker sends.
fn listen(worker: &mut Worker) -> Result<(), LinkError> {
    let Some(link) = &mut worker.link else {
        return Ok(());
    };
    link.flush().or_else(|e| match e {
        // Messages that the worker sent before it exited still count.
        LinkError::Closed => Ok(()),
        e => Err(e),
    })?;
    link.fill()
}

/// Takes in the messages that were read, up to the first state.
fn hear(record: &mut Record, worker: &mut Worker) -> Result<Heard, LinkError> {
    let mut heard = Heard::default();
    let Some(link) = &mut worker.link else {
        return Ok(heard);
    };
    while let Some(event) = link.message::<WorkerEvent>()? {
        match event {
            WorkerEvent::Ready { partition, .. } => {
                record.partition = Some(partition);
                heard.about_devices.push(event);
            }
            WorkerEvent::Attached { .. }
            | WorkerEvent::Detached { .. }
            | WorkerEvent::DeviceRefused { .. }
            | WorkerEvent::Connect { .. } => heard.about_devices.push(event),
            WorkerEvent::State {
                state,
                reason,
                is_held,
            } => {
                record.reported(state, &reason, is_held, proc::boot_ms());
                heard.has_state = true;
                break;
            }
            WorkerEvent::Devices { disks, nics } => {
                worker.disks = disks;
                worker.nics = nics;
                heard.has_devices = true;
            }
            WorkerEvent::Refused { reason } => {
                record.asked.pause = false;
                heard.refused = Some(reason);
            }
            WorkerEvent::Ended { cause, reason } => {
                record.ended(cause, &reason);
                let_exit(&mut worker.kill_deadline);
            }
        }
    }
    Ok(heard)
}

/// Gives a worker, whose VM is over, a while to exit by itself.
fn let_exit(kill_deadline: &mut Option<Instant>) {
    kill_deadline.get_or_insert(Instant::now() + EXIT_GRACE);
}

/// A worker's link broke.
fn lost(record: &mut Record, worker: &mut Worker, error: &LinkError) {
    worker.link = None;
    match error {
        // The worker usually exits at this moment, and its exit status says more. If it does not exit, it is killed.
        LinkError::Closed => let_exit(&mut worker.kill_deadline),
        LinkError::Wire(WireError::Version { .. }) => unreachable_worker(record, error),
        _ => {
            record.ended(EndCause::Failed, &format!("worker failed: {error}"));
            worker.kill();
        }
    }
}

/// A worker that can't be spoken to, of another version say, runs its VM well enough.
fn unreachable_worker(record: &mut Record, error: &LinkError) {
    record.note(&format!(
        "worker can't be reached: {error}; only kill works"
    ));
}
