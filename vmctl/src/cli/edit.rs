//! `vmctl edit`: a VM's configuration in the user's editor.

use std::fs;
use std::io::{self, BufRead, IsTerminal, Write};
use std::path::Path;
use std::process::Command;

use guest_proto::control::{Request, Response};

use super::complete;
use super::output;
use crate::client::Client;
use crate::config::VmConfig;
use crate::daemon;
use crate::exit::{ExitStatus, Failed};

#[derive(Debug, clap::Args)]
pub(super) struct EditArgs {
    /// Name of the VM
    #[arg(add = complete::vms())]
    name: String,
}

pub(super) fn run(args: &EditArgs, mut client: Client) -> Result<(), Failed> {
    let name = &args.name;
    let status = client.info(name)?.status;
    if status.state.is_alive() {
        let message = format!(
            "{}: \"vmctl stop {name}\" first",
            super::lifecycle::describe(&status)
        );
        return Err(Failed::new(ExitStatus::State, message));
    }
    let Response::Daemon(daemon) = client.ask(&Request::Ping)? else {
        return Err(Failed::new(
            ExitStatus::Failed,
            "daemon: no answer".to_owned(),
        ));
    };
    // The file itself: what can't be read as a configuration is there to be mended.
    let stored = daemon::definition_of(Path::new(&daemon.state_dir), name);
    let in_stored =
        |e: io::Error| Failed::new(ExitStatus::Failed, format!("{}: {e}", stored.display()));
    let old = fs::read_to_string(&stored).map_err(in_stored)?;
    let in_draft = |e: io::Error| Failed::new(ExitStatus::Failed, format!("temporary file: {e}"));
    let mut draft = tempfile::Builder::new()
        .prefix(&format!("vmctl-{name}-"))
        .suffix(".toml")
        .tempfile()
        .map_err(in_draft)?;
    draft.write_all(old.as_bytes()).map_err(in_draft)?;
    loop {
        edit(draft.path())?;
        let text = fs::read_to_string(draft.path()).map_err(in_draft)?;
        if text == old {
            return output::done(&format!("{name}: not changed"));
        }
        match change(name, &text, &mut client) {
            Ok(()) => return output::done(&format!("{name}: changed")),
            Err(e) if e.exit == ExitStatus::Config && asks_again(&e)? => {}
            Err(e) => return Err(e),
        }
    }
}

fn change(name: &str, text: &str, client: &mut Client) -> Result<(), Failed> {
    let wrong = |e: String| Failed::new(ExitStatus::Config, e);
    let config = VmConfig::parse(name, text).map_err(|e| wrong(e.to_string()))?;
    if config.name != name {
        let message = format!(
            "{name}: name = \"{0}\": \"vmctl rename {name} {0}\" changes the name",
            config.name
        );
        return Err(wrong(message));
    }
    let config = config.to_toml().map_err(|e| wrong(e.to_string()))?;
    let name = name.to_owned();
    client.status(&Request::Redefine { name, config }).map(drop)
}

/// Asks a user at a terminal whether to go on.
fn asks_again(error: &Failed) -> Result<bool, Failed> {
    if !io::stdin().is_terminal() {
        return Ok(false);
    }
    output::complain(&error.to_string());
    let mut stderr = io::stderr();
    let _ = stderr.write_all(b"Edit again? [Y/n] ");
    let mut answer = String::new();
    let count = io::stdin().lock().read_line(&mut answer)?;
    Ok(count > 0 && !answer.trim_start().to_lowercase().starts_with('n'))
}

/// Runs the user's editor.
fn edit(path: &Path) -> Result<(), Failed> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let editor = set("VISUAL").or_else(|| set("EDITOR"));
    let editor = editor.unwrap_or_else(|| "vi".into());
    // The variable may hold options. git reads it in the same way.
    let mut line = editor.clone();
    line.push(" \"$@\"");
    let mut command = Command::new("sh");
    command.arg("-c").arg(line).arg(&editor).arg(path);
    let failed = |what: String| {
        let editor = editor.display();
        Failed::new(
            ExitStatus::Failed,
            format!("editor {editor}: {what}; nothing was changed"),
        )
    };
    let status = command.status().map_err(|e| failed(e.to_string()))?;
    match status.success() {
        true => Ok(()),
        false => Err(failed(status.to_string())),
    }
}
