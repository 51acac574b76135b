//! Starting a VM: what has to be looked at first is a job of its own, which may take long.

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use guest_proto::control::{Failure, FailureKind, Response};

use super::jobs::Outcome;
use super::record::Record;
use super::resources::{Partitions, check_memory};
use super::store::Store;
use super::vms::{Ticket, Vms, failure};
use crate::config::VmConfig;

/// The time in which the files of a VM must have been opened and checked. The command line waits for longer.
const DEADLINE: Duration = Duration::from_secs(20);

/// A start whose files are being looked at.
#[derive(Debug)]
pub(super) struct Start {
    /// The ticket that is answered; `None` after the deadline, when it has been answered.
    ticket: Option<Ticket>,
    deadline: Instant,
    looking_at: LookingAt,
}

/// The file that a job is opening now.
#[derive(Clone, Debug, Default)]
struct LookingAt(Arc<Mutex<String>>);

impl LookingAt {
    fn set(&self, what: String) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = what;
    }

    fn get(&self) -> String {
        let what = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        what.clone()
    }
}

/// The result of the checks before a VM is started.
#[derive(Debug)]
pub(super) struct Checked {
    /// Name of the VM.
    name: String,
    /// The VM's definition, or the reason for which it can't be started.
    config: Result<VmConfig, Failure>,
}

impl Checked {
    #[cfg(test)]
    pub(super) fn failed(name: String) -> Self {
        let config = Err(failure(FailureKind::Internal, String::new()));
        Self { name, config }
    }
}

impl Vms {
    /// Begins to start a VM. The ticket's answer says whether it was started.
    ///
    /// # Errors
    ///
    /// The VM is alive, or is being started already.
    pub(super) fn start(&mut self, name: &str) -> Result<Ticket, Failure> {
        self.vm(name)?.record.may_start()?;
        if let Some(start) = self.starts.get(name) {
            let message = format!("{name} is being started: {}", start.looking_at.get());
            return Err(failure(FailureKind::State, message));
        }
        // One that could not be read may have been mended.
        let known = self.vm(name)?.record.config.clone().ok();
        let looking_at = LookingAt::default();
        looking_at.set("its files".to_owned());
        let store = self.store.clone();
        let partitions = self.partitions.clone();
        let workers: Vec<_> = self
            .workers()
            .map(|(_, worker)| worker.identity().pid)
            .collect();
        let (vm, at) = (name.to_owned(), looking_at.clone());
        let begun = self.jobs.begin(name, move || {
            let config = check(&vm, known, &store, &at);
            let config = config.and_then(|config| {
                at.set("the driver".to_owned());
                make_room(&vm, &partitions, &workers).map(|()| config)
            });
            Outcome::Checked(Box::new(Checked { name: vm, config }))
        });
        begun.map_err(|e| failure(FailureKind::Resources, format!("{name}: {e}")))?;
        let ticket = self.new_ticket();
        let start = Start {
            ticket: Some(ticket),
            deadline: Instant::now() + DEADLINE,
            looking_at,
        };
        self.starts.insert(name.to_owned(), start);
        Ok(ticket)
    }

    /// Goes on with a start whose files were looked at.
    pub(super) fn checked(&mut self, checked: Checked) {
        let name = &*checked.name;
        let start = self.starts.remove(name);
        let Some(ticket) = start.and_then(|start| start.ticket) else {
            return;
        };
        let answer = checked
            .config
            .and_then(|config| self.start_checked(name, config));
        self.answer(ticket, answer);
    }

    fn start_checked(&mut self, name: &str, config: VmConfig) -> Result<Response, Failure> {
        let record = &self.vm(name)?.record;
        record.may_start()?;
        check_memory(config.memory, self.promised_memory())
            .map_err(|e| failure(FailureKind::Resources, format!("{name}: {e}")))?;
        let known = &mut self.vm_mut(name)?.record.config;
        if known.is_err() {
            *known = Ok(config);
        }
        self.launch(name, Record::starting)
            .map_err(|e| failure(FailureKind::Internal, format!("{name}: {e}")))?;
        self.status(name).map(Response::Status)
    }

    /// Gives up starts whose files are not there in time.
    pub(super) fn give_up_late_starts(&mut self, now: Instant) {
        let late = self.starts.iter_mut().filter(|(_, s)| s.deadline <= now);
        let given_up: Vec<_> = late
            .filter_map(|(name, start)| {
                let message = format!(
                    "{name}: {}: no answer within {} s; the VM was not started",
                    start.looking_at.get(),
                    DEADLINE.as_secs()
                );
                let answer = Err(failure(FailureKind::Internal, message));
                Some((start.ticket.take()?, answer))
            })
            .collect();
        for (ticket, answer) in given_up {
            self.answer(ticket, answer);
        }
    }

    /// When the next start is given up.
    pub(super) fn next_late_start(&self) -> Option<Instant> {
        let waited_for = self.starts.values().filter(|start| start.ticket.is_some());
        waited_for.map(|start| start.deadline).min()
    }
}

/// Looks at a VM's files. Returns its definition, which it reads if it is not `known`.
fn check(
    name: &str,
    known: Option<VmConfig>,
    store: &Store,
    looking_at: &LookingAt,
) -> Result<VmConfig, Failure> {
    let of_vm = |error: &dyn fmt::Display| failure(FailureKind::Config, format!("{name}: {error}"));
    let read = || {
        looking_at.set(store.dir(name).display().to_string());
        store.definition(name)
    };
    let config = known.map_or_else(read, Ok).map_err(|e| of_vm(&e))?;
    let looking = |key: &str, path: &Path| looking_at.set(format!("{key}: {}", path.display()));
    config.check_files(looking).map_err(|(_, e)| of_vm(&e))?;
    Ok(config)
}

/// Makes room for a VM's partition. Processes `workers` are those of other VMs.
fn make_room(name: &str, partitions: &Partitions, workers: &[u32]) -> Result<(), Failure> {
    let failed = |kind, error: &dyn fmt::Display| failure(kind, format!("{name}: {error}"));
    let checked = partitions.check();
    checked.map_err(|e| failed(FailureKind::Platform, &e))?;
    // An earlier worker of this VM may have left a partition that could not be destroyed.
    partitions
        .make_room(name, workers)
        .map_err(|e| failed(FailureKind::State, &e))
}
