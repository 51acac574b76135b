//! The command line.
//!
//! Every command is a function that answers `Ok` or a [`Failed`] with its exit code. Those about a
//! VM ask the daemon; `doctor`, `top`, `hv-log` and `verify` ask the driver and `net` the kernel, and work
//! without one; `disk` and `image` ask nobody.

mod complete;
mod console;
mod disk;
mod doctor;
mod edit;
mod help;
mod hv_log;
mod image;
mod lifecycle;
mod net;
mod output;
mod plug;
mod show;
mod ssh;
mod top;
mod verify;
mod version;
mod vsock;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::client::Client;
use crate::daemon::{self, DaemonArgs};
use crate::driver::{Device, DriverError};
use crate::exit::{ExitStatus, Failed};
use crate::platform;
use crate::worker::{self, WorkerArgs};

/// Manages the virtual machines of Microvisor
#[derive(Debug, Parser)]
#[command(name = "vmctl", version, disable_help_subcommand = false)]
struct Cli {
    /// Directory of the daemon's sockets
    #[arg(
        long,
        global = true,
        hide = true,
        value_name = "DIR",
        env = "MICROVISOR_RUNTIME_DIR",
        default_value = "/run/microvisor"
    )]
    runtime_dir: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check this machine: whether VMs can run on it, and which parts are missing
    #[command(after_help = "Example:\n  vmctl doctor --format json")]
    Doctor(doctor::DoctorArgs),
    /// Create and start a VM, and attach to its console; ^] detaches
    #[command(after_help = "Example:\n  vmctl run demo.toml --set vcpus=2 --name web")]
    Run(lifecycle::RunArgs),
    /// Define a VM without starting it
    #[command(
        alias = "define",
        after_help = "Example:\n  vmctl create demo.toml --set memory=512M"
    )]
    Create(lifecycle::CreateArgs),
    /// Edit the configuration of a VM that has ended
    #[command(after_help = "Example:\n  vmctl edit demo")]
    Edit(edit::EditArgs),
    /// Rename a VM that has ended
    #[command(after_help = "Example:\n  vmctl rename demo web")]
    Rename(lifecycle::RenameArgs),
    /// Start VMs
    #[command(after_help = "Example:\n  vmctl start demo --wait --timeout 10s")]
    Start(lifecycle::StartArgs),
    /// Log in to a guest by ssh, at its address on a host network
    #[command(after_help = "Example:\n  vmctl ssh root@web uname -a")]
    Ssh(ssh::SshArgs),
    /// Connect standard input and output to a port of a VM's socket device
    #[command(after_help = "Example:\n  vmctl vsock web 52 </etc/hostname")]
    Vsock(vsock::VsockArgs),
    /// Ask guests to shut down: presses the VMs' power buttons
    #[command(
        alias = "shutdown",
        after_help = "Example:\n  vmctl stop demo --timeout 1m --force"
    )]
    Stop(lifecycle::StopArgs),
    /// Ask a guest to shut down, and start its VM again afterwards
    #[command(after_help = "Example:\n  vmctl reboot demo --wait")]
    Reboot(lifecycle::RebootArgs),
    /// Stop a VM, or kill it if its guest does not shut down in time, and start it again
    #[command(after_help = "Example:\n  vmctl restart demo --timeout 30s")]
    Restart(lifecycle::RestartArgs),
    /// End VMs at once, without asking their guests
    #[command(alias = "destroy", after_help = "Example:\n  vmctl kill demo")]
    Kill(lifecycle::NamesArgs),
    /// Pause a VM: its virtual CPUs stop, and it keeps its state
    #[command(alias = "suspend", after_help = "Example:\n  vmctl pause demo")]
    Pause(NameArgs),
    /// Continue a paused or stalled VM, or wake a sleeping guest
    #[command(after_help = "Example:\n  vmctl resume demo")]
    Resume(NameArgs),
    /// Delete VMs that have ended, and their logs
    #[command(
        visible_alias = "rm",
        alias = "undefine",
        after_help = "Example:\n  vmctl delete demo web"
    )]
    Delete(lifecycle::NamesArgs),
    /// List the VMs, and with ID 0 the root partition
    #[command(
        visible_alias = "ls",
        alias = "ps",
        after_help = "Example:\n  vmctl list --addresses"
    )]
    List(show::ListArgs),
    /// Show a VM's state, configuration, devices and counters
    #[command(after_help = "Example:\n  vmctl info demo")]
    Info(show::InfoArgs),
    /// Attach to a VM's console; ^] detaches
    #[command(after_help = "Example:\n  vmctl console demo")]
    Console(NameArgs),
    /// Print the output of a VM's console
    #[command(after_help = "Example:\n  vmctl logs demo -n 20 -f")]
    Logs(show::LogsArgs),
    /// Add a disk or network card to a VM, which may be running
    #[command(after_help = "Example:\n  vmctl attach demo disk data.qcow2")]
    Attach(plug::AttachArgs),
    /// Remove a disk or network card from a VM; a running guest must release it first
    #[command(after_help = "Example:\n  vmctl detach demo data --timeout 10s")]
    Detach(plug::DetachArgs),
    /// Change a key in the configuration of a VM, which may be running
    #[command(after_help = "Example:\n  vmctl set demo nic.0.link=down")]
    Set(plug::SetArgs),
    /// Wait until a VM has ended, or has reached a state
    #[command(after_help = "Example:\n  vmctl wait demo --for paused --timeout 5s")]
    Wait(lifecycle::WaitArgs),
    /// Create, inspect and resize disk images
    #[command(after_help = "Example:\n  vmctl disk create disk.qcow2 20G")]
    Disk(disk::DiskArgs),
    /// Build disk images of whole systems
    #[command(after_help = "Example:\n  vmctl image build debian web.qcow2")]
    Image(image::ImageArgs),
    /// Show CPU time, and exits per second by kind, of each VM and each CPU of root's
    #[command(after_help = "Example:\n  vmctl top -b -i 5s")]
    Top(top::TopArgs),
    /// Print the microvisor's own log
    #[command(after_help = "Example:\n  vmctl hv-log -f --level warn")]
    HvLog(hv_log::HvLogArgs),
    /// Check that root and each VM can reach no memory but their own
    #[command(after_help = "Example:\n  vmctl verify")]
    Verify(verify::VerifyArgs),
    /// Create, change, delete and list host networks
    #[command(
        subcommand,
        after_help = "Example:\n  vmctl net create lan0 --address 10.77.0.1/24 --nat --dhcp"
    )]
    Net(net::NetCommand),
    /// Print a line of JSON for each change of a VM's state
    #[command(after_help = "Example:\n  vmctl events | jq .name")]
    Events,
    /// Print the versions of vmctl, of the daemon and of the driver
    #[command(after_help = "Example:\n  vmctl version")]
    Version(version::VersionArgs),
    /// Print a script that makes a shell complete commands, options and names of VMs
    #[command(
        hide = true,
        after_help = "Example:\n  vmctl completions bash >/etc/bash_completion.d/vmctl"
    )]
    Completions(complete::CompletionsArgs),
    /// Write the man pages
    #[command(
        hide = true,
        after_help = "Example:\n  vmctl man /usr/local/share/man/man1"
    )]
    Man(complete::ManArgs),
    /// Run the daemon that supervises the VMs, in the foreground; the VMs outlive it
    #[command(after_help = "Example:\n  vmctl daemon 2>/var/log/vmctl.log &")]
    Daemon(DaemonArgs),
    /// Run one VM; the daemon starts this process
    #[command(hide = true, after_help = "Example:\n  vmctl worker demo 3<… 4<… 5<…")]
    Worker(WorkerArgs),
}

#[derive(Debug, clap::Args)]
struct NameArgs {
    /// Name of the VM
    #[arg(add = complete::vms())]
    name: String,
}

/// The driver's device, for commands that ask it themselves.
#[derive(Debug, clap::Args)]
struct DeviceArgs {
    /// The driver's device
    #[arg(long, hide = true, value_name = "PATH", default_value = platform::DEVICE)]
    device: PathBuf,
}

impl DeviceArgs {
    fn open(&self) -> Result<Device, Failed> {
        platform::open_driver(&self.device).map_err(|e| Failed::new(ExitStatus::Platform, e))
    }
}

impl From<DriverError> for Failed {
    fn from(error: DriverError) -> Self {
        Self::new(ExitStatus::Platform, error.to_string())
    }
}

/// Runs `vmctl`.
pub fn main() -> ExitCode {
    complete::answer_shell();
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    match args.as_slice() {
        [] => {
            output::note(help::overview().trim_end());
            return ExitStatus::Usage.into();
        }
        [only] if only == "help" || only == "-h" => {
            let printed = output::text(&help::overview());
            return printed
                .map_or_else(|failed| failed.exit, |()| ExitStatus::Done)
                .into();
        }
        _ => {}
    }
    let parsed = command()
        .try_get_matches()
        .and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(e) => match help::usage_error(&e) {
            Some(line) => {
                output::complain(&line);
                return ExitStatus::Usage.into();
            }
            // Help is no error.
            None => e.exit(),
        },
    };
    // A guest's console may hold whatever it likes; a message to a terminal may not.
    match cli.run() {
        Ok(code) => code,
        Err(failed) => {
            if let Some(message) = &failed.message {
                output::complain(message);
            }
            failed.exit.into()
        }
    }
}

/// The commands, with the exit codes in the help.
fn command() -> clap::Command {
    let codes: String = ExitStatus::ALL
        .iter()
        .map(|(exit, meaning)| format!("  {:>2}  {meaning}\n", *exit as u8))
        .collect();
    Cli::command().after_help(format!("Exit codes:\n{}", codes.trim_end()))
}

impl Cli {
    fn run(self) -> Result<ExitCode, Failed> {
        let connect = || Client::connect(&self.runtime_dir);
        match self.command {
            Command::Doctor(args) => return doctor::run(&args, &self.runtime_dir),
            Command::Run(args) => lifecycle::run(&args, connect()?)?,
            Command::Create(args) => lifecycle::create(&args, connect()?)?,
            Command::Start(args) => lifecycle::start(&args, connect()?)?,
            Command::Stop(args) => lifecycle::stop(&args, connect()?)?,
            Command::Reboot(args) => lifecycle::reboot(&args, connect()?)?,
            Command::Restart(args) => lifecycle::restart(&args, connect()?)?,
            Command::Kill(args) => lifecycle::kill(&args, connect()?)?,
            Command::Edit(args) => edit::run(&args, connect()?)?,
            Command::Rename(args) => lifecycle::rename(&args, connect()?)?,
            Command::Completions(args) => complete::completions(&args)?,
            Command::Man(args) => complete::man(&args)?,
            Command::Version(args) => version::run(&args, connect().ok())?,
            Command::Pause(args) => lifecycle::pause(args.name, connect()?)?,
            Command::Resume(args) => lifecycle::resume(args.name, connect()?)?,
            Command::Delete(args) => lifecycle::delete(&args, connect()?)?,
            Command::List(args) => show::list(&args, connect()?)?,
            Command::Info(args) => show::info(&args, connect()?)?,
            Command::Console(args) => console::open(&args.name, connect()?)?,
            Command::Ssh(args) => ssh::run(&args, connect()?)?,
            Command::Vsock(args) => vsock::run(&args, &self.runtime_dir)?,
            Command::Logs(args) => show::logs(&args, connect())?,
            Command::Attach(args) => plug::attach(&args, connect()?)?,
            Command::Detach(args) => plug::detach(&args, connect()?)?,
            Command::Set(args) => plug::set(&args, connect()?)?,
            Command::Wait(args) => lifecycle::wait(&args, connect()?)?,
            Command::Disk(args) => disk::run(&args)?,
            Command::Image(args) => image::run(&args)?,
            Command::Top(args) => top::run(&args)?,
            Command::HvLog(args) => hv_log::run(&args)?,
            Command::Verify(args) => verify::run(&args)?,
            Command::Net(command) => net::run(command)?,
            Command::Events => show::events(connect()?)?,
            Command::Daemon(args) => daemon::main(&args, &self.runtime_dir)
                .map_err(|e| Failed::new(ExitStatus::Failed, format!("daemon: {e}")))?,
            Command::Worker(args) => return Ok(worker::main(&args)),
        }
        Ok(ExitStatus::Done.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_help_with_an_example() {
        let command = command();
        command.clone().debug_assert();
        for sub in command.get_subcommands() {
            let help = sub.get_after_help().map(ToString::to_string);
            let help = help.unwrap_or_default();
            let call = format!("Example:\n  vmctl {}", sub.get_name());
            assert!(help.starts_with(&call), "{}: {help}", sub.get_name());
            assert!(sub.get_about().is_some());
        }
        let help = command.get_after_help().map(ToString::to_string);
        assert!(help.unwrap_or_default().contains(" 8  the daemon"));
    }

    /// Every option that a user sees, of a command and those below it.
    fn options(command: &clap::Command) -> Vec<String> {
        let own = command.get_arguments().filter(|arg| !arg.is_hide_set());
        let mut all: Vec<_> = own
            .filter_map(|arg| Some(format!("--{}", arg.get_long()?)))
            .collect();
        for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
            all.extend(options(sub));
        }
        all
    }

    #[test]
    fn the_manual_and_the_commands_have_the_same_options() {
        let manual = [
            include_str!("../../docs/vmctl.md"),
            include_str!("../../docs/networking.md"),
        ]
        .concat();
        let is_part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        // Lines of other programs' commands have other options.
        let others = [
            "qemu-img",
            "cargo xtask",
            "iptables",
            "docker",
            "ssh -o",
            "nft ",
            "firewall-cmd",
        ];
        let own_lines = manual
            .lines()
            .filter(|line| !others.iter().any(|other| line.contains(other)));
        let words = own_lines.flat_map(|line| line.split(|c| !is_part(c)));
        let named: Vec<_> = words
            .filter(|word| word.starts_with("--") && word.len() > 3)
            .collect();
        let options = options(&command());
        for word in &named {
            assert!(
                options.iter().any(|option| option == word),
                "{word}: no such option"
            );
        }
        let missing: Vec<_> = options
            .iter()
            .filter(|option| !named.contains(&&***option))
            .collect();
        assert!(missing.is_empty(), "not in the manual: {missing:?}");
    }

    #[test]
    fn the_manual_has_every_key_of_a_configuration() {
        use crate::config::{DiskConfig, NicConfig, VmConfig};
        let manual = include_str!("../../docs/vmctl.md");
        let unknown = ["unknown=1".to_owned()];
        let base = "name = 'a'\nmemory = '64M'\nkernel = '/k'\n";
        let errors = [
            DiskConfig::new(std::path::Path::new("/d"), &unknown).unwrap_err(),
            NicConfig::new(&unknown).unwrap_err(),
            VmConfig::parse("a", &format!("{base}unknown = 1")).unwrap_err(),
            VmConfig::parse("a", &format!("{base}[console]\nunknown = 1")).unwrap_err(),
            VmConfig::parse("a", &format!("{base}[vsock]\nunknown = 1")).unwrap_err(),
        ];
        let prefixes = ["", "", "", "console.", "vsock."];
        for (error, prefix) in errors.iter().zip(prefixes) {
            let text = error.to_string();
            let (_, expected) = text.split_once("expected").unwrap();
            let keys: Vec<_> = expected.split('"').skip(1).step_by(2).collect();
            assert!(keys.len() > 1, "{text}");
            // These are tables, described in sections of their own.
            for key in keys
                .iter()
                .filter(|key| !["console", "disk", "nic"].contains(key))
            {
                let row = format!("| `{prefix}{key}` |");
                assert!(manual.contains(&row), "{row}");
            }
        }
    }

    #[test]
    fn the_manual_has_every_command_state_and_exit_code() {
        let manual = include_str!("../../docs/vmctl.md");
        for sub in command().get_subcommands().filter(|sub| !sub.is_hide_set()) {
            let name = sub.get_name();
            let row = [format!("`{name}`"), format!("`{name} ")];
            assert!(row.iter().any(|row| manual.contains(row)), "{name}");
        }
        let help = command().render_help().to_string();
        assert!(help.contains("\nExit codes:\n"), "{help}");
        for (exit, meaning) in ExitStatus::ALL {
            let row = format!("| {} | {meaning} |\n", exit as u8);
            assert!(manual.contains(&row), "{row}");
            assert!(help.contains(meaning), "{meaning}");
        }
        for state in guest_proto::control::VmState::ALL {
            assert!(manual.contains(&format!("| `{state}` |")), "{state}");
        }
    }
}
