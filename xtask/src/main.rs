//! The project's commands: everything that is more than one `cargo` invocation.
//!
//! `cargo xtask build` makes the freestanding image, `cargo xtask test` runs every check and test.

mod freestanding;
mod packages;
mod tests;

use std::path::PathBuf;
use std::process::{Command, ExitCode};

/// What a step answers: an error is one line for the user.
type Result<T> = std::result::Result<T, String>;

const USAGE: &str = "usage: cargo xtask build | test";

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let result = match (args.next().as_deref(), args.next()) {
        (Some("build"), None) => freestanding::build().map(|image| println!("{}", image.display())),
        (Some("test"), None) => tests::run(),
        _ => Err(USAGE.into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("xtask: {message}");
            ExitCode::FAILURE
        }
    }
}

/// The workspace's folder.
fn root() -> PathBuf {
    let manifest = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    manifest
        .parent()
        .map_or_else(|| manifest.clone(), PathBuf::from)
}

/// Runs a command; a failure names it and its status.
fn checked(command: &mut Command) -> Result<()> {
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{command:?}: {status}")),
        Err(error) => Err(format!("{command:?}: {error}")),
    }
}
