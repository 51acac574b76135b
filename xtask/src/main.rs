//! The project's commands: everything that is more than one `cargo` invocation.
//!
//! `build` makes the freestanding image, `run` boots it with a stock Linux as VM 0, `test` runs
//! every check and test.

mod freestanding;
mod machine;
mod packages;
mod tests;

use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

/// What a step answers: an error is one line for the user.
type Result<T> = std::result::Result<T, String>;

const USAGE: &str = "usage: cargo xtask build | run [--script FILE] [--cpus N] [--mem SIZE] | test";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["build"] => freestanding::build().map(|image| println!("{}", image.display())),
        ["run", options @ ..] => match run(options) {
            Ok(status) => return ExitCode::from(status),
            Err(message) => Err(message),
        },
        ["test"] => tests::run(),
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

/// Boots VM 0: to its shell, or for a script, whose exit status this is.
fn run(mut options: &[&str]) -> Result<u8> {
    let mut machine = machine::Machine::default();
    let mut script = None;
    while let [name, value, rest @ ..] = options {
        match *name {
            "--script" => script = Some(PathBuf::from(value)),
            "--cpus" => machine.cpus = (*value).into(),
            "--mem" => machine.memory = (*value).into(),
            _ => return Err(format!("{name}: no such option; {USAGE}")),
        }
        options = rest;
    }
    if let [name] = options {
        return Err(format!(
            "{name}: no such option, or its value is missing; {USAGE}"
        ));
    }
    match script {
        None => machine.interactive().map(|()| 0),
        Some(script) => Ok(machine.script(&script, Stdio::inherit())? as u8),
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
