//! Completions for shells, and the man pages. Both are made of the definition of the command line.
//!
//! A shell's script calls this program with `COMPLETE` in its environment for each word that it completes, so that the names of
//! VMs are those that are there.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use clap_complete::env::CompleteEnv;
use clap_complete::{ArgValueCandidates, CompletionCandidate};

use super::output;
use crate::client::Client;
use crate::exit::{ExitStatus, Failed};

/// Shells that have a script.
const SHELLS: [&str; 3] = ["bash", "fish", "zsh"];

#[derive(Debug, clap::Args)]
pub(super) struct CompletionsArgs {
    /// Shell: bash, fish or zsh
    #[arg(value_parser = SHELLS)]
    shell: String,
}

#[derive(Debug, clap::Args)]
pub(super) struct ManArgs {
    /// Directory for the pages
    directory: PathBuf,
}

/// If a shell asks for completions, prints them and ends the process.
pub(super) fn answer_shell() {
    CompleteEnv::with_factory(super::command)
        .bin("vmctl")
        .completer("vmctl")
        .complete();
}

/// Prints the script of a shell.
pub(super) fn completions(args: &CompletionsArgs) -> Result<(), Failed> {
    let shells = clap_complete::env::Shells::builtins();
    let mut script = Vec::new();
    if let Some(shell) = shells.completer(&args.shell) {
        shell
            .write_registration("COMPLETE", "vmctl", "vmctl", "vmctl", &mut script)
            .map_err(output::unwritten)?;
    }
    output::text(&String::from_utf8_lossy(&script))
}

/// Writes the man pages.
pub(super) fn man(args: &ManArgs) -> Result<(), Failed> {
    let in_directory = |e: io::Error| {
        let message = format!("{}: {e}", args.directory.display());
        Failed::new(ExitStatus::Failed, message)
    };
    clap_mangen::generate_to(super::command(), &args.directory).map_err(in_directory)
}

/// Completes the name of a VM.
pub(super) fn vms() -> ArgValueCandidates {
    ArgValueCandidates::new(names)
}

fn names() -> Vec<CompletionCandidate> {
    let set = std::env::var_os("MICROVISOR_RUNTIME_DIR");
    let runtime_dir = set.as_deref().unwrap_or(OsStr::new("/run/microvisor"));
    let vms = Client::connect(Path::new(runtime_dir)).and_then(|mut client| client.list());
    let vms = vms.unwrap_or_default().into_iter();
    let guests = vms.filter(|vm| vm.name != "root");
    guests
        .map(|vm| CompletionCandidate::new(vm.name).help(Some(vm.state.name().into())))
        .collect()
}
