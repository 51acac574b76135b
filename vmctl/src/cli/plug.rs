//! `vmctl attach` and `vmctl detach`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;
use guest_proto::control::Request;

use super::complete;
use super::output;
use crate::client::Client;
use crate::config::{ConfigError, DeviceConfig, DiskConfig, NicConfig, parse_duration};
use crate::exit::{ExitStatus, Failed};

/// Timeout of attaching and detaching, unless the user gives another one.
const TIMEOUT: &str = "30s";

#[derive(Debug, clap::Args)]
pub(super) struct AttachArgs {
    /// Name of the VM
    #[arg(add = complete::vms())]
    vm: String,
    #[command(subcommand)]
    device: Device,
}

#[derive(Debug, Subcommand)]
enum Device {
    /// Add a disk
    #[command(
        after_help = "Example:\n  vmctl attach demo disk data.qcow2 --set serial=DATA --set cache=none"
    )]
    Disk(DiskArgs),
    /// Add a network card
    #[command(after_help = "Example:\n  vmctl attach demo nic network=lan0 vlan=10")]
    Nic(NicArgs),
}

#[derive(Debug, clap::Args)]
struct NicArgs {
    /// Keys of the configuration's table [[nic]]
    #[arg(required = true, value_name = "KEY=VALUE")]
    settings: Vec<String>,
    #[command(flatten)]
    timeout: Timeout,
}

#[derive(Debug, clap::Args)]
struct DiskArgs {
    /// Image of the disk
    image: PathBuf,
    /// Name of the disk, in place of the file's name without its extension
    #[arg(long)]
    name: Option<String>,
    /// Refuse writes of the guest
    #[arg(long)]
    readonly: bool,
    /// Set another key of the configuration's table [[disk]]
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    #[command(flatten)]
    timeout: Timeout,
}

#[derive(Debug, clap::Args)]
pub(super) struct DetachArgs {
    /// Name of the VM
    #[arg(add = complete::vms())]
    vm: String,
    /// Name of the disk or network card, as "vmctl info" shows it
    device: String,
    #[command(flatten)]
    timeout: Timeout,
}

#[derive(Debug, clap::Args)]
struct Timeout {
    /// Wait for at most this time: 30s, 500ms, 2m
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = TIMEOUT)]
    timeout: Duration,
}

#[derive(Debug, clap::Args)]
pub(super) struct SetArgs {
    /// Name of the VM
    #[arg(add = complete::vms())]
    vm: String,
    /// nic.NIC.link=up or nic.NIC.link=down: NIC is a number from 0 on, or a name
    #[arg(value_name = "KEY=VALUE")]
    setting: String,
}

pub(super) fn attach(args: &AttachArgs, mut client: Client) -> Result<(), Failed> {
    let wrong = |e: ConfigError| Failed::new(ExitStatus::Config, e);
    let (device, what, timeout) = match &args.device {
        Device::Disk(disk) => (
            DeviceConfig::Disk(disk.config().map_err(wrong)?),
            disk.image.display().to_string(),
            disk.timeout.timeout,
        ),
        Device::Nic(nic) => (
            DeviceConfig::Nic(NicConfig::new(&nic.settings).map_err(wrong)?),
            "the NIC".to_owned(),
            nic.timeout.timeout,
        ),
    };
    let request = Request::Attach {
        name: args.vm.clone(),
        device: device.to_table().map_err(wrong)?,
    };
    let late = || format!("{}: {what} is not attached after {timeout:?}", args.vm);
    let name = client.device(&request, timeout, late)?;
    let kind = match device {
        DeviceConfig::Disk(_) => "disk",
        DeviceConfig::Nic(_) => "NIC",
    };
    output::text(&format!("{}: {kind} {name} attached\n", args.vm))
}

impl DiskArgs {
    fn config(&self) -> Result<DiskConfig, ConfigError> {
        let mut settings = self.set.clone();
        // Quoted, or a name of digits would be a number.
        let quoted = |name: &String| format!("name={}", toml::Value::from(name.as_str()));
        settings.extend(self.name.iter().map(quoted));
        settings.extend(self.readonly.then(|| "readonly=true".to_owned()));
        DiskConfig::new(&self.image, &settings)
    }
}

pub(super) fn detach(args: &DetachArgs, mut client: Client) -> Result<(), Failed> {
    let request = Request::Detach {
        name: args.vm.clone(),
        device: args.device.clone(),
    };
    let timeout = args.timeout.timeout;
    let late = || {
        format!(
            "{}: the guest has not released {} within {timeout:?}; the request stands",
            args.vm, args.device
        )
    };
    let name = client.device(&request, timeout, late)?;
    output::text(&format!("{}: {name} detached\n", args.vm))
}

pub(super) fn set(args: &SetArgs, mut client: Client) -> Result<(), Failed> {
    client.status(&Request::Set {
        name: args.vm.clone(),
        setting: args.setting.clone(),
    })?;
    output::text(&format!("{}: {} set\n", args.vm, args.setting))
}
