//! Commands that change a VM.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use guest_proto::control::{Request, Until, VmInfo, VmState, VmStatus};
use guest_proto::limits::ROOT_PARTITION;

use super::{complete, console, output};
use crate::client::Client;
use crate::config::{Loaded, VmConfig, parse_duration};
use crate::disk::Chain;
use crate::exit::{ExitStatus, Failed};
use crate::worker::loader::{Initrd, Kernel};

/// The time in which a worker must hold or release its virtual CPUs.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The time that `stop --force` waits for the guest, unless the user gives another one.
const FORCE_AFTER: Duration = Duration::from_secs(60);
/// Time between the first two presses of the power button; each next one is twice as long, up to the longest.
const FIRST_GAP: Duration = Duration::from_secs(2);
const LONGEST_GAP: Duration = Duration::from_secs(30);

#[derive(Debug, clap::Args)]
pub(super) struct CreateArgs {
    /// The VM's TOML file
    config: PathBuf,
    /// Set a key in place of the file's; dots lead into tables: nic.0.mtu=1400
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Name of the VM, in place of the file's
    #[arg(long)]
    name: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(super) struct RunArgs {
    #[command(flatten)]
    create: CreateArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct WaitOptions {
    /// Wait until the operation is complete
    #[arg(long)]
    wait: bool,
    /// Wait for at most this time: 30s, 500ms, 2m
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    timeout: Option<Duration>,
}

impl WaitOptions {
    fn wanted(&self) -> bool {
        self.wait || self.timeout.is_some()
    }
}

/// The VMs of a command that takes several.
#[derive(Debug, clap::Args)]
pub(super) struct NamesArgs {
    /// Names of VMs
    #[arg(value_name = "NAME", required_unless_present = "all", add = complete::vms())]
    names: Vec<String>,
    /// All VMs whose state allows the command
    #[arg(long, conflicts_with = "names")]
    all: bool,
}

impl NamesArgs {
    /// Does `act` with each named VM; with `--all`, with each VM that `applies`. A failure for one VM does not stop the
    /// others.
    fn each(
        &self,
        client: &mut Client,
        applies: impl Fn(VmState) -> bool,
        mut deed: impl FnMut(&str, Client) -> Result<(), Failed>,
    ) -> Result<(), Failed> {
        if let [name] = &*self.names {
            return deed(name, client.again()?);
        }
        let names = match self.all {
            false => self.names.clone(),
            true => {
                let vms = client.list()?.into_iter();
                let own = vms.filter(|vm| vm.id != Some(ROOT_PARTITION) && applies(vm.state));
                own.map(|vm| vm.name).collect()
            }
        };
        let mut first = None;
        for name in names {
            if let Err(failed) = client.again().and_then(|client| deed(&name, client)) {
                if let Some(message) = &failed.message {
                    output::complain(message);
                }
                first.get_or_insert(failed.exit);
            }
        }
        first.map_or(Ok(()), |exit| {
            let message = None;
            Err(Failed { exit, message })
        })
    }
}

#[derive(Debug, clap::Args)]
pub(super) struct RenameArgs {
    /// Name of the VM
    #[arg(add = complete::vms())]
    name: String,
    /// New name
    to: String,
}

#[derive(Debug, clap::Args)]
pub(super) struct StartArgs {
    #[command(flatten)]
    names: NamesArgs,
    #[command(flatten)]
    wait: WaitOptions,
}

#[derive(Debug, clap::Args)]
pub(super) struct StopArgs {
    #[command(flatten)]
    names: NamesArgs,
    #[command(flatten)]
    wait: WaitOptions,
    /// Kill the VM if the guest has not shut down within --timeout, or within a minute
    #[arg(long)]
    force: bool,
    /// Withdraw the request of an earlier stop or reboot
    #[arg(long, conflicts_with_all = ["wait", "timeout", "force"])]
    cancel: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct RebootArgs {
    /// Name of the VM
    #[arg(add = complete::vms())]
    name: String,
    #[command(flatten)]
    wait: WaitOptions,
}

#[derive(Debug, clap::Args)]
pub(super) struct RestartArgs {
    /// Name of the VM
    #[arg(add = complete::vms())]
    name: String,
    /// Kill the VM if the guest has not shut down within this time: 30s, 500ms, 2m
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "60s")]
    timeout: Duration,
}

#[derive(Debug, clap::Args)]
pub(super) struct WaitArgs {
    /// Name of the VM
    #[arg(add = complete::vms())]
    name: String,
    /// The state to wait for, instead of the VM's end
    #[arg(long = "for", value_name = "STATE", value_parser = parse_state)]
    state: Option<VmState>,
    /// Wait for at most this time: 30s, 500ms, 2m
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    timeout: Option<Duration>,
}

fn parse_state(text: &str) -> Result<VmState, String> {
    let all = VmState::ALL;
    all.into_iter()
        .find(|state| state.name() == text)
        .ok_or_else(|| {
            let names: Vec<_> = all.iter().map(|state| state.name()).collect();
            format!("not a state: one of {}", names.join(", "))
        })
}

/// Reads a VM's configuration.
fn load(args: &CreateArgs) -> Result<Loaded, Failed> {
    let mut set = args.set.clone();
    // Quoted, or a name of digits would be a number.
    let quoted = |name: &String| format!("name={}", toml::Value::from(name.as_str()));
    set.extend(args.name.iter().map(quoted));
    Loaded::read(&args.config, &set).map_err(|e| wrong(&e))
}

fn wrong(what: &dyn Display) -> Failed {
    Failed::new(ExitStatus::Config, what.to_string())
}

/// Defines a VM.
fn define(loaded: &Loaded, client: &mut Client) -> Result<VmStatus, Failed> {
    loaded.check_files().map_err(|e| wrong(&e))?;
    // The worker checks these contents again; here the user learns of an error before the VM exists.
    let config = &loaded.config;
    let wrong_at =
        |key: &str, e: &dyn Display| wrong(&format!("{}: {key}: {e}", loaded.locate(key)));
    Kernel::open(&config.kernel).map_err(|e| wrong_at("kernel", &e))?;
    if let Some(initrd) = &config.initrd {
        Initrd::open(initrd).map_err(|e| wrong_at("initrd", &e))?;
    }
    for disk in &config.disks {
        Chain::check_disk(disk).map_err(|e| wrong_at("disk", &e))?;
    }
    let config = config.to_toml().map_err(|e| wrong(&e))?;
    client.status(&Request::Define { config })
}

pub(super) fn create(args: &CreateArgs, mut client: Client) -> Result<(), Failed> {
    say(&define(&load(args)?, &mut client)?)
}

pub(super) fn run(args: &RunArgs, mut client: Client) -> Result<(), Failed> {
    let loaded = load(&args.create)?;
    let name = &loaded.config.name;
    match client.again()?.info(name) {
        Ok(info) => {
            check_same(&info, &loaded.config)?;
            if info.status.state.is_alive() {
                return console::open(name, client);
            }
            let started = start_attached(name, &mut client)?;
            return follow(started, &client);
        }
        Err(e) if e.exit == ExitStatus::NotFound => {}
        Err(e) => return Err(e),
    }
    define(&loaded, &mut client)?;
    let started = start_attached(name, &mut client);
    if started.is_err() {
        // The VM never ran, so its files are removed. The reason is in the error.
        let name = name.clone();
        let _ = client
            .again()
            .and_then(|mut client| client.ask(&Request::Delete { name }));
    }
    follow(started?, &client)
}

/// Checks that the existing VM has the wanted configuration.
fn check_same(info: &VmInfo, wanted: &VmConfig) -> Result<(), Failed> {
    let name = &info.status.name;
    let Some(there) = &info.config else {
        return Err(wrong(&describe(&info.status)));
    };
    let table = |text: &str| toml::from_str::<toml::Table>(text).map_err(|e| wrong(&e.message()));
    let there = table(there)?;
    let wanted = table(&wanted.to_toml().map_err(|e| wrong(&e))?)?;
    let keys: BTreeSet<_> = there.keys().chain(wanted.keys()).collect();
    let differing = keys
        .into_iter()
        .filter(|&key| there.get(key) != wanted.get(key));
    let value = |table: &toml::Table, key: &str| {
        table
            .get(key)
            .map_or_else(|| "nothing".to_owned(), ToString::to_string)
    };
    let differing = differing.map(|key| {
        let (there, wanted) = (value(&there, key), value(&wanted, key));
        format!("{key} is {there} there, and {wanted} here")
    });
    let differing: Vec<_> = differing.collect();
    if differing.is_empty() {
        return Ok(());
    }
    let message = format!(
        "{name} is defined already, with another configuration: {}; choose another --name, or \"vmctl edit {name}\", or \"vmctl delete {name}\"",
        differing.join("; ")
    );
    Err(Failed::new(ExitStatus::State, message))
}

fn follow(started: Started, client: &Client) -> Result<(), Failed> {
    match started {
        (_, Ok(session)) => console::follow(session, client),
        (status, Err(_)) if !status.state.is_alive() => say(&status),
        (_, Err(e)) => Err(e),
    }
}

/// A VM that was started, and the connection to its console.
type Started = (VmStatus, Result<console::Session, Failed>);

/// Starts a VM and connects to its console before the guest writes anything. Fails if the VM never ran. The VM may have
/// ended already when this returns.
fn start_attached(name: &str, client: &mut Client) -> Result<Started, Failed> {
    let request = Request::Start {
        name: name.to_owned(),
    };
    client.begin(&request, name, Until::Started)?;
    let session = console::Session::open(name, &mut client.again()?);
    let status = client.finish(name, None)?;
    check_end(&status)?;
    Ok((status, session))
}

pub(super) fn start(args: &StartArgs, mut client: Client) -> Result<(), Failed> {
    let applies = |state: VmState| !state.is_alive();
    args.names.each(&mut client, applies, |name, mut client| {
        if !args.wait.wanted() {
            let name = name.to_owned();
            return say(&client.status(&Request::Start { name })?);
        }
        say(&start_and_wait(name, args.wait.timeout, client)?)
    })
}

fn start_and_wait(
    name: &str,
    timeout: Option<Duration>,
    mut client: Client,
) -> Result<VmStatus, Failed> {
    let request = Request::Start {
        name: name.to_owned(),
    };
    let status = client.ask_and_wait(&request, name, Until::Started, timeout)?;
    check_end(&status)?;
    Ok(status)
}

pub(super) fn stop(args: &StopArgs, mut client: Client) -> Result<(), Failed> {
    let stop = |name: &str, client| stop_one(name, args, client);
    args.names.each(&mut client, VmState::is_alive, stop)
}

fn stop_one(name: &str, args: &StopArgs, mut client: Client) -> Result<(), Failed> {
    if args.cancel {
        let name = name.to_owned();
        return say(&client.status(&Request::Withdraw { name })?);
    }
    if args.force {
        let timeout = args.wait.timeout.unwrap_or(FORCE_AFTER);
        return say(&stop_or_kill(name, timeout, client)?);
    }
    let request = stop_request(name, false);
    if !args.wait.wanted() {
        return say(&client.status(&request)?);
    }
    say(&press_until(
        &request,
        name,
        Until::Ended,
        args.wait.timeout,
        client,
    )?)
}

fn stop_request(name: &str, starts_again: bool) -> Request {
    Request::Stop {
        name: name.to_owned(),
        starts_again,
    }
}

/// Asks a guest to power off, and kills the VM if the guest has not done so in time.
fn stop_or_kill(name: &str, timeout: Duration, client: Client) -> Result<VmStatus, Failed> {
    let again = client.again()?;
    let request = stop_request(name, false);
    match press_until(&request, name, Until::Ended, Some(timeout), client) {
        // A guest that can't see the power button now will not do so later.
        Err(e) if matches!(e.exit, ExitStatus::TimedOut | ExitStatus::State) => {
            end_now(name, again)
        }
        other => other,
    }
}

/// Presses the power button, and again after a while, as long as the condition is not met: a guest that boots, or that
/// asks its user, has not seen the first press.
fn press_until(
    request: &Request,
    name: &str,
    until: Until,
    timeout: Option<Duration>,
    mut client: Client,
) -> Result<VmStatus, Failed> {
    let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    client.begin(request, name, until)?;
    let mut gap = FIRST_GAP;
    loop {
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        let is_last = left.is_some_and(|left| left <= gap);
        let wait = left.map_or(gap, |left| left.min(gap));
        match client.outcome(Some(wait)) {
            Err(e) if e.exit == ExitStatus::TimedOut && is_last => {
                return Err(client.too_late(name, timeout));
            }
            Err(e) if e.exit == ExitStatus::TimedOut => {}
            other => return other,
        }
        gap = (gap * 2).min(LONGEST_GAP);
        match client.again()?.ask(request) {
            // The VM is paused now, for example, and goes on later.
            Err(e) if e.exit == ExitStatus::State => {}
            other => drop(other?),
        }
    }
}

pub(super) fn reboot(args: &RebootArgs, mut client: Client) -> Result<(), Failed> {
    let request = stop_request(&args.name, true);
    if !args.wait.wanted() {
        return say(&client.status(&request)?);
    }
    let status = press_until(
        &request,
        &args.name,
        Until::Rebooted,
        args.wait.timeout,
        client,
    )?;
    expect(&status, VmState::Running)?;
    say(&status)
}

pub(super) fn restart(args: &RestartArgs, client: Client) -> Result<(), Failed> {
    let again = client.again()?;
    stop_or_kill(&args.name, args.timeout, client)?;
    let status = start_and_wait(&args.name, None, again)?;
    say(&status)
}

pub(super) fn kill(args: &NamesArgs, mut client: Client) -> Result<(), Failed> {
    args.each(&mut client, VmState::is_alive, |name, client| {
        say(&end_now(name, client)?)
    })
}

fn end_now(name: &str, mut client: Client) -> Result<VmStatus, Failed> {
    let request = Request::Kill {
        name: name.to_owned(),
    };
    client.ask_and_wait(&request, name, Until::Ended, None)
}

pub(super) fn pause(name: String, client: Client) -> Result<(), Failed> {
    let request = Request::Pause { name: name.clone() };
    hold(&request, &name, VmState::Paused, client)
}

pub(super) fn resume(name: String, client: Client) -> Result<(), Failed> {
    let request = Request::Resume { name: name.clone() };
    hold(&request, &name, VmState::Running, client)
}

fn hold(request: &Request, name: &str, wanted: VmState, mut client: Client) -> Result<(), Failed> {
    let until = Until::State(wanted);
    let status = client.ask_and_wait(request, name, until, Some(TIMEOUT))?;
    expect(&status, wanted)?;
    say(&status)
}

pub(super) fn delete(args: &NamesArgs, mut client: Client) -> Result<(), Failed> {
    let applies = |state: VmState| !state.is_alive();
    args.each(&mut client, applies, |name, mut client| {
        let request = Request::Delete {
            name: name.to_owned(),
        };
        client.ask(&request)?;
        output::done(&format!("{name}: deleted"))
    })
}

pub(super) fn rename(args: &RenameArgs, mut client: Client) -> Result<(), Failed> {
    let request = Request::Rename {
        name: args.name.clone(),
        to: args.to.clone(),
    };
    client.status(&request)?;
    output::done(&format!("{}: renamed to {}", args.name, args.to))
}

pub(super) fn wait(args: &WaitArgs, mut client: Client) -> Result<(), Failed> {
    let until = args.state.map_or(Until::Ended, Until::State);
    let status = client.wait(&args.name, until, args.timeout)?;
    match args.state {
        Some(wanted) => expect(&status, wanted)?,
        None => check_end(&status)?,
    }
    say(&status)
}

/// Prints the state of a VM in a line.
fn say(status: &VmStatus) -> Result<(), Failed> {
    output::done(&describe(status))
}

pub(super) fn describe(status: &VmStatus) -> String {
    let asked = asked(status).map_or_else(String::new, |asked| format!(", {asked}"));
    let line = format!(
        "{}: {}{asked} ({})",
        status.name, status.state, status.reason
    );
    output::printable(&line)
}

/// Returns the requests to the VM that are pending.
pub(super) fn asked(status: &VmStatus) -> Option<String> {
    let since = |ms: u64| output::duration(ms / 1000);
    let stop = status
        .stop_asked_ms
        .map(|ms| format!("stop asked {} ago", since(ms)));
    let reboot = status
        .reboot_asked_ms
        .map(|ms| format!("reboot asked {} ago", since(ms)));
    let pause = status.pause_asked.then(|| "pause asked".to_owned());
    let all: Vec<_> = [stop, reboot, pause].into_iter().flatten().collect();
    (!all.is_empty()).then(|| all.join(", "))
}

/// Fails if the VM crashed.
pub(super) fn check_end(status: &VmStatus) -> Result<(), Failed> {
    if status.state == VmState::Crashed {
        return Err(Failed::new(ExitStatus::Ended, describe(status)));
    }
    Ok(())
}

/// Fails if the VM has reached another state than the expected one.
fn expect(status: &VmStatus, wanted: VmState) -> Result<(), Failed> {
    if status.state != wanted {
        return Err(Failed::new(ExitStatus::Ended, describe(status)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_named_as_listed() {
        assert_eq!(parse_state("io-stalled"), Ok(VmState::IoStalled));
        let error = parse_state("gone").unwrap_err();
        assert!(error.contains("defined, starting, running"), "{error}");
    }
}
