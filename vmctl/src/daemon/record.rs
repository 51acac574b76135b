//! The daemon's record of one VM, and its changes.
//!
//! Pure: no process, no clock, no file. Requests and worker messages come in as method calls; a
//! state never goes without a reason. The VM counts as ended only when its worker process is gone,
//! so that whoever sees `stopped` also sees its resources back.

use guest_proto::control::{EndCause, Failure, FailureKind, VmState};

use super::store::StoreError;
use crate::config::{OnReboot, VmConfig};

pub(super) mod asked;
pub(super) mod brake;

use asked::Asked;
use brake::Brake;

/// Longest reason that is shown.
const MAX_REASON: usize = 240;

/// The exit of a worker process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum WorkerExit {
    /// The worker returned this status.
    Status(i32),
    /// This signal killed the worker.
    Signal(i32),
    /// The worker was a child of an earlier daemon, so its status is unknown.
    Unknown,
}

/// The step that follows a worker's exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// No step: the VM has ended.
    Over,
    /// The guest reboots: start a new worker, at `Record::boots_at_ms` if that is said.
    Reboot,
}

/// The way in which a request is carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    /// By a command to the worker.
    Now,
    /// By a command to the worker, as soon as the guest runs.
    Later,
    /// There is nothing to do.
    Done,
}

/// One VM.
#[derive(Clone, Debug)]
pub(super) struct Record {
    /// Its name.
    pub(super) name: String,
    /// The definition, or the reason for which it can't be read.
    pub(super) config: Result<VmConfig, StoreError>,
    /// Its partition, while there is one.
    pub(super) partition: Option<u64>,
    /// When it began to run, in milliseconds of the boot clock.
    pub(super) started_ms: Option<u64>,
    /// Reboots since it was started.
    pub(super) reboots: u32,
    /// The requests to the VM that are not done yet.
    pub(super) asked: Asked,
    /// The brake that makes it wait when it reboots too often.
    pub(super) brake: Brake,
    /// When it boots again, in milliseconds of the boot clock, if it waits for that. Nothing of it is alive until then.
    pub(super) boots_at_ms: Option<u64>,
    state: VmState,
    reason: String,
    end: Option<(EndCause, String)>,
    killed: bool,
    /// The VM's virtual CPUs are held.
    is_held: bool,
}

impl Record {
    /// A VM that was just defined.
    pub(super) fn new(config: VmConfig) -> Self {
        let name = config.name.clone();
        Self::restored(&name, Ok(config), VmState::Defined, "never started")
    }

    /// A VM that an earlier daemon left in `state`.
    pub(super) fn restored(
        name: &str,
        config: Result<VmConfig, StoreError>,
        state: VmState,
        reason: &str,
    ) -> Self {
        let mut record = Self {
            name: name.to_owned(),
            config,
            partition: None,
            started_ms: None,
            reboots: 0,
            asked: Asked::default(),
            brake: Brake::default(),
            boots_at_ms: None,
            state,
            reason: String::new(),
            end: None,
            killed: state == VmState::Stopping,
            // Until the worker says more.
            is_held: matches!(state, VmState::Paused | VmState::IoStalled),
        };
        record.enter(state, reason);
        record
    }

    /// Returns the configuration.
    ///
    /// # Errors
    ///
    /// The definition can't be read.
    pub(super) fn config(&self) -> Result<&VmConfig, Failure> {
        self.config.as_ref().map_err(|e| Failure {
            kind: FailureKind::Config,
            message: format!("{}: its definition can't be read: {e}", self.name),
        })
    }

    /// Whether programs of VM 0 reach its guest by a Unix socket.
    pub(super) fn has_unix_socket(&self) -> bool {
        self.config.as_ref().is_ok_and(VmConfig::has_unix_socket)
    }

    /// Returns the end of the VM, if its worker has told it.
    pub(super) fn end(&self) -> Option<&(EndCause, String)> {
        self.end.as_ref()
    }

    /// Returns the state.
    pub(super) fn state(&self) -> VmState {
        self.state
    }

    /// Returns the reason for the state.
    pub(super) fn reason(&self) -> &str {
        &self.reason
    }

    /// Checks that the VM may be started.
    ///
    /// # Errors
    ///
    /// The VM is alive.
    pub(super) fn may_start(&self) -> Result<(), Failure> {
        if self.state.is_alive() {
            return Err(self.wrong_state("it can only be started once it has ended"));
        }
        Ok(())
    }

    /// A worker was started for it.
    pub(super) fn starting(&mut self) {
        self.reboots = 0;
        self.asked = Asked::default();
        self.brake = Brake::default();
        self.begin("worker started");
    }

    fn begin(&mut self, reason: &str) {
        self.partition = None;
        self.started_ms = None;
        self.boots_at_ms = None;
        self.end = None;
        self.killed = false;
        self.enter(VmState::Starting, reason);
    }

    /// A worker was started because the guest rebooted.
    pub(super) fn rebooting(&mut self) {
        self.reboots = self.reboots.saturating_add(1);
        self.begin(&self.why_rebooted());
    }

    fn why_rebooted(&self) -> String {
        let often = self.brake.describe();
        often.unwrap_or_else(|| "guest rebooted".to_owned())
    }

    /// Whether the guest may be asked to power off.
    ///
    /// # Errors
    ///
    /// The guest can't see the power button now.
    pub(super) fn may_stop(&self) -> Result<How, Failure> {
        match self.state {
            VmState::Running => Ok(How::Now),
            VmState::IoStalled if !self.is_held => Ok(How::Now),
            VmState::Starting => Ok(How::Later),
            VmState::Stopping | VmState::Defined | VmState::Stopped | VmState::Crashed => {
                Ok(How::Done)
            }
            VmState::Paused | VmState::IoStalled => Err(self.wrong_state(&format!(
                "\"vmctl resume {0}\" first, or \"vmctl kill {0}\"",
                self.name
            ))),
        }
    }

    /// Checks that the guest may be asked to power off and boot again.
    ///
    /// # Errors
    ///
    /// The errors of [`Self::may_stop`], and the VM has ended, or is being killed.
    pub(super) fn may_reboot(&self) -> Result<How, Failure> {
        match self.may_stop()? {
            How::Done => Err(self.wrong_state(&format!("\"vmctl start {}\" starts it", self.name))),
            how => Ok(how),
        }
    }

    /// The guest was asked to power off, and the power button was pressed or will be.
    pub(super) fn stop_asked(&mut self, starts_again: bool, is_pressed: bool, now_ms: u64) {
        if self.boots_at_ms.is_none() {
            self.asked.ask_end(starts_again, is_pressed, now_ms);
        } else if !starts_again {
            self.boots_at_ms = None;
            self.enter(VmState::Stopped, "stopped while it waited to boot again");
        }
    }

    /// Whether the power button has to be pressed now that the guest runs.
    pub(super) fn owes_press(&self) -> bool {
        let is_owed = self.asked.end.is_some_and(|end| !end.is_pressed);
        is_owed && matches!(self.may_stop(), Ok(How::Now))
    }

    /// Whether the virtual CPUs have to be held now that the guest runs.
    pub(super) fn owes_pause(&self) -> bool {
        self.asked.pause && matches!(self.may_pause(), Ok(How::Now))
    }

    /// A VM that waits to boot again, of which nothing is alive, is killed.
    pub(super) fn killed_while_it_waits(&mut self) {
        self.boots_at_ms = None;
        self.asked = Asked::default();
        self.enter(VmState::Stopped, "killed");
    }

    /// Notes that the VM's worker is being killed.
    pub(super) fn killing(&mut self) {
        self.killed = true;
        self.enter(VmState::Stopping, "being killed");
    }

    /// Checks that the VM may be paused.
    ///
    /// # Errors
    ///
    /// The VM neither runs nor starts.
    pub(super) fn may_pause(&self) -> Result<How, Failure> {
        match self.state {
            VmState::Running => Ok(How::Now),
            VmState::IoStalled if !self.is_held => Ok(How::Now),
            VmState::Starting => Ok(How::Later),
            VmState::Paused => Ok(How::Done),
            _ => Err(self.wrong_state("only a running VM can be paused")),
        }
    }

    /// Checks that the VM may be resumed. The guest of a running VM may be asleep, which its worker knows.
    ///
    /// # Errors
    ///
    /// The VM does not run, and is not paused.
    pub(super) fn may_resume(&self) -> Result<How, Failure> {
        match self.state {
            VmState::IoStalled if !self.is_held => {
                Err(self.wrong_state("its virtual CPUs are not stopped, and go on"))
            }
            VmState::Paused | VmState::IoStalled | VmState::Running => Ok(How::Now),
            VmState::Starting if self.asked.pause => Ok(How::Done),
            _ => Err(self.wrong_state(
                "only a paused or stalled VM, or a guest that sleeps, can be resumed",
            )),
        }
    }

    /// Checks that a device may be attached to the VM.
    ///
    /// # Errors
    ///
    /// The VM is starting or stopping.
    pub(super) fn may_attach(&self) -> Result<(), Failure> {
        match self.state {
            VmState::Starting => Err(self.wrong_state("wait until it runs")),
            VmState::Stopping => Err(self.wrong_state("wait until it has ended")),
            _ => Ok(()),
        }
    }

    /// Whether a disk may be detached from it: `Ok(false)` if there is no guest that has to give it
    /// up.
    ///
    /// # Errors
    ///
    /// The guest can't give anything up now.
    pub(super) fn may_detach(&self) -> Result<bool, Failure> {
        self.may_attach()?;
        if self.is_held && self.state.is_alive() {
            let advice = format!("\"vmctl resume {}\" first", self.name);
            return Err(self.wrong_state(&advice));
        }
        Ok(self.state.is_alive())
    }

    /// Checks that the VM may be deleted.
    ///
    /// # Errors
    ///
    /// The VM is alive.
    pub(super) fn may_delete(&self) -> Result<(), Failure> {
        if self.state.is_alive() {
            return Err(self.wrong_state(&format!(
                "\"vmctl stop {0}\" or \"vmctl kill {0}\" first",
                self.name
            )));
        }
        Ok(())
    }

    /// The worker says that its state changed.
    pub(super) fn reported(&mut self, state: VmState, reason: &str, is_held: bool, now_ms: u64) {
        if self.killed || self.end.is_some() {
            return;
        }
        if !state.is_alive() {
            self.ended(
                EndCause::Failed,
                &format!("worker reported state {state} without an end"),
            );
            return;
        }
        if state == VmState::Running && self.started_ms.is_none() {
            self.started_ms = Some(now_ms);
        }
        self.is_held = is_held;
        if is_held {
            self.asked.pause = false;
        }
        match self.brake.describe() {
            Some(often) if state == VmState::Running => {
                self.enter(state, &format!("{reason}; {often}"));
            }
            _ => self.enter(state, reason),
        }
    }

    /// The worker says that the VM is over, or the daemon found the worker broken. The first word
    /// counts. The state changes when the process has gone.
    pub(super) fn ended(&mut self, cause: EndCause, reason: &str) {
        if self.end.is_none() {
            self.end = Some((cause, reason.to_owned()));
        }
    }

    /// Notes something about a state that stays.
    pub(super) fn note(&mut self, reason: &str) {
        self.enter(self.state, reason);
    }

    /// The worker process is gone; `last_words` is the end of its log.
    pub(super) fn exited(
        &mut self,
        exit: &WorkerExit,
        last_words: Option<&str>,
        now_ms: u64,
    ) -> Next {
        let next = self.end_of_worker(exit, last_words, now_ms);
        if next == Next::Over {
            self.asked = Asked::default();
        }
        next
    }

    fn end_of_worker(&mut self, exit: &WorkerExit, last_words: Option<&str>, now_ms: u64) -> Next {
        let lived_ms = self
            .started_ms
            .map_or(0, |start| now_ms.saturating_sub(start));
        let asked_end = self.asked.end.take();
        self.partition = None;
        self.started_ms = None;
        if self.killed {
            self.enter(VmState::Stopped, "killed");
            return Next::Over;
        }
        let Some((cause, reason)) = self.end.take() else {
            let how = match exit {
                WorkerExit::Status(code) => format!("worker exited unexpectedly: status {code}"),
                WorkerExit::Signal(signal) => format!("worker died: signal {signal}"),
                WorkerExit::Unknown => "worker died".to_owned(),
            };
            // The last lines of a worker's log do not explain a SIGKILL from outside.
            let words = last_words
                .filter(|_| *exit != WorkerExit::Signal(9))
                .map(|w| format!(": {w}"))
                .unwrap_or_default();
            self.enter(VmState::Crashed, &format!("{how}{words}"));
            return Next::Over;
        };
        let starts_again = asked_end.map(|end| end.starts_again);
        let config = self.config.as_ref();
        let restarts = config.is_ok_and(|c| c.on_reboot == OnReboot::Restart);
        match (cause, starts_again) {
            (EndCause::PoweredOff | EndCause::Rebooted, Some(true)) => {
                self.brake = Brake::default();
                self.enter(VmState::Starting, "guest rebooted on request");
                return Next::Reboot;
            }
            (EndCause::Rebooted, None) if restarts => {
                let wait_ms = self.brake.rebooted(lived_ms);
                let mut why = self.why_rebooted();
                if wait_ms > 0 {
                    self.boots_at_ms = Some(now_ms + wait_ms);
                    why.push_str(&format!("; it boots again after {} s", wait_ms / 1000));
                }
                self.enter(VmState::Starting, &why);
                return Next::Reboot;
            }
            (EndCause::Rebooted, Some(false)) => {
                self.enter(VmState::Stopped, &format!("{reason}; it was asked to stop"));
            }
            (EndCause::PoweredOff | EndCause::Rebooted, _) => {
                self.enter(VmState::Stopped, &reason);
            }
            (EndCause::Crashed | EndCause::StartFailed | EndCause::Failed, _) => {
                self.enter(VmState::Crashed, &reason);
            }
        }
        Next::Over
    }

    /// A new worker could not be started after a reboot.
    pub(super) fn restart_failed(&mut self, why: &str) {
        self.boots_at_ms = None;
        self.asked = Asked::default();
        self.enter(VmState::Crashed, &format!("guest rebooted, but {why}"));
    }

    /// One line, printable, never blank: a worker that its guest has taken over can't play
    /// with the user's terminal.
    fn enter(&mut self, state: VmState, reason: &str) {
        let line: String = reason
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .take(MAX_REASON)
            .collect();
        let line = line.trim();
        self.state = state;
        self.reason = if line.is_empty() {
            "no reason was given".to_owned()
        } else {
            line.to_owned()
        };
    }

    fn wrong_state(&self, advice: &str) -> Failure {
        Failure {
            kind: FailureKind::State,
            message: format!(
                "{} is {} ({}): {advice}",
                self.name, self.state, self.reason
            ),
        }
    }
}

#[cfg(test)]
mod tests;
