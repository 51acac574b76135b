//! The end of a VM, for the daemon and as the process's exit status.

use std::fmt;
use std::process::ExitCode;

use guest_proto::control::{EndCause, WorkerEvent};

/// Exit status of a worker that did what its sandbox forbids.
pub(super) const EXIT_SANDBOX: u8 = 14;
/// Exit status of a worker that was not started as one.
pub(super) const EXIT_USAGE: u8 = 2;

/// The end of a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct End {
    /// The kind of the end.
    pub(super) cause: EndCause,
    /// The reason, in one line.
    pub(super) reason: String,
}

impl End {
    /// The VM could not be built.
    pub(super) fn start_failed(why: impl fmt::Display) -> Self {
        Self::new(EndCause::StartFailed, why)
    }

    /// The guest died.
    pub(super) fn crashed(why: impl fmt::Display) -> Self {
        Self::new(EndCause::Crashed, why)
    }

    /// The worker can't go on.
    pub(super) fn failed(why: impl fmt::Display) -> Self {
        Self::new(EndCause::Failed, why)
    }

    /// Any end.
    pub(super) fn new(cause: EndCause, why: impl fmt::Display) -> Self {
        Self {
            cause,
            reason: why.to_string(),
        }
    }

    /// Returns the message for the daemon.
    pub(super) fn event(&self) -> WorkerEvent {
        WorkerEvent::Ended {
            cause: self.cause,
            reason: self.reason.clone(),
        }
    }

    /// The process's exit status: 0 after a power-off, one of its own for each other cause. The
    /// daemon goes by the event; the status is for those who start a worker without one.
    pub(super) fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self.cause {
            EndCause::PoweredOff => 0,
            EndCause::Rebooted => 10,
            EndCause::Crashed => 11,
            EndCause::StartFailed => 12,
            EndCause::Failed => 13,
        })
    }
}
