//! The command line.

use std::process::ExitCode;

/// Runs `vmctl`.
pub fn main() -> ExitCode {
    ExitCode::FAILURE
}
