//! Exit statuses, and failures that carry one.

use std::fmt;
use std::io;
use std::process::ExitCode;

use guest_proto::control::{Failure, FailureKind};

/// The exit status of `vmctl`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitStatus {
    /// Done.
    Done = 0,
    /// Something that has no code of its own.
    Failed = 1,
    /// Wrong usage.
    Usage = 2,
    /// The configuration, or a file it names, is wrong.
    Config = 3,
    /// No VM or network has this name.
    NotFound = 4,
    /// The VM or network exists, or its state does not allow this.
    State = 5,
    /// The machine has too little of something.
    Resources = 6,
    /// The microvisor or its driver is missing.
    Platform = 7,
    /// The daemon can't be reached.
    NoDaemon = 8,
    /// The command took longer than `--timeout`.
    TimedOut = 9,
    /// The VM crashed, or it ended before it reached the state that the command waited for.
    Ended = 10,
}

impl ExitStatus {
    /// Every code with what it means.
    pub const ALL: [(Self, &str); 11] = [
        (Self::Done, "done"),
        (
            Self::Failed,
            "failed for a reason that has no code of its own",
        ),
        (Self::Usage, "wrong usage"),
        (
            Self::Config,
            "the configuration, or a file that it names, is wrong",
        ),
        (Self::NotFound, "no VM or network has this name"),
        (
            Self::State,
            "the VM or network exists already, or its state does not allow this",
        ),
        (Self::Resources, "the machine has too little memory"),
        (Self::Platform, "the microvisor or its driver is missing"),
        (
            Self::NoDaemon,
            "the daemon is not running or can't be reached",
        ),
        (Self::TimedOut, "not done within --timeout"),
        (
            Self::Ended,
            "the VM crashed, or ended before it reached the awaited state",
        ),
    ];
}

impl From<ExitStatus> for ExitCode {
    fn from(exit: ExitStatus) -> Self {
        Self::from(exit as u8)
    }
}

/// A command that failed: one line, and the exit code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// The code.
    pub exit: ExitStatus,
    /// One line; none if whoever reads has gone.
    pub message: Option<String>,
}

impl Failed {
    /// A failure with a line.
    pub fn new(exit: ExitStatus, message: impl fmt::Display) -> Self {
        Self {
            exit,
            message: Some(message.to_string()),
        }
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.message.as_deref().unwrap_or_default())
    }
}

impl std::error::Error for Failed {}

impl From<Failure> for Failed {
    fn from(failure: Failure) -> Self {
        let exit = match failure.kind {
            FailureKind::Config => ExitStatus::Config,
            FailureKind::NotFound => ExitStatus::NotFound,
            FailureKind::State => ExitStatus::State,
            FailureKind::Resources => ExitStatus::Resources,
            FailureKind::Platform => ExitStatus::Platform,
            FailureKind::Ended => ExitStatus::Ended,
            FailureKind::Internal => ExitStatus::Failed,
        };
        Self::new(exit, failure.message)
    }
}

/// Output that can't be written. A reader that has seen enough (`vmctl list | head -1`) is told
/// nothing.
impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self {
            exit: ExitStatus::Failed,
            message: (error.kind() != io::ErrorKind::BrokenPipe).then(|| error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_order() {
        for (code, (exit, meaning)) in ExitStatus::ALL.iter().enumerate() {
            assert_eq!(*exit as usize, code);
            assert!(!meaning.is_empty());
        }
    }

    #[test]
    fn a_reader_that_left_is_told_nothing() {
        let quiet = Failed::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!((quiet.exit, quiet.message), (ExitStatus::Failed, None));
        assert!(Failed::from(io::Error::other("x")).message.is_some());
    }
}
