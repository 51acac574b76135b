//! `vmctl attach` and `vmctl detach`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;
use guest_proto::control::Request;

use super::output;
use crate::client::Client;
use crate::config::{DiskConfig, parse_duration};
use crate::exit::{Exit, Failed};

/// How long attaching and detaching may take unless the user says.
const PATIENCE: &str = "30s";

#[derive(Debug, clap::Args)]
pub(super) struct AttachArgs {
    /// Name of the VM
    vm: String,
    #[command(subcommand)]
    device: Device,
}

#[derive(Debug, Subcommand)]
enum Device {
    /// A disk
    #[command(
        after_help = "Example:\n  vmctl attach demo disk data.qcow2 --set serial=DATA --set cache=none"
    )]
    Disk(DiskArgs),
}

#[derive(Debug, clap::Args)]
struct DiskArgs {
    /// The disk's image
    image: PathBuf,
    /// Name of the disk; by default the file's name without its extension
    #[arg(long)]
    name: Option<String>,
    /// The guest can't write the disk
    #[arg(long)]
    readonly: bool,
    /// Sets another key of the table [[disk]]
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    #[command(flatten)]
    timeout: Timeout,
}

#[derive(Debug, clap::Args)]
pub(super) struct DetachArgs {
    /// Name of the VM
    vm: String,
    /// Name of the disk, as "vmctl info" shows it
    disk: String,
    #[command(flatten)]
    timeout: Timeout,
}

#[derive(Debug, clap::Args)]
struct Timeout {
    /// Wait for this long at most: 30s, 500ms, 2m
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = PATIENCE)]
    timeout: Duration,
}

pub(super) fn attach(args: &AttachArgs, mut client: Client) -> Result<(), Failed> {
    let Device::Disk(disk) = &args.device;
    let wrong = |e| Failed::new(Exit::Config, format!("{e}"));
    let mut settings = disk.set.clone();
    // Quoted, or a name of digits would be a number.
    let quoted = |name: &String| format!("name={}", toml::Value::from(name.as_str()));
    settings.extend(disk.name.iter().map(quoted));
    settings.extend(disk.readonly.then(|| "readonly=true".to_owned()));
    let config = DiskConfig::new(&disk.image, &settings).map_err(wrong)?;
    let request = Request::Attach {
        name: args.vm.clone(),
        disk: config.to_toml().map_err(wrong)?,
    };
    let timeout = disk.timeout.timeout;
    let late = || {
        let image = disk.image.display();
        format!("{}: {image} is not attached after {timeout:?}", args.vm)
    };
    let name = client.disk(&request, timeout, late)?;
    output::text(&format!("{}: disk {name} attached\n", args.vm))
}

pub(super) fn detach(args: &DetachArgs, mut client: Client) -> Result<(), Failed> {
    let request = Request::Detach {
        name: args.vm.clone(),
        disk: args.disk.clone(),
    };
    let timeout = args.timeout.timeout;
    let late = || {
        format!(
            "{}: the guest has not given up disk {} after {timeout:?}; it still may",
            args.vm, args.disk
        )
    };
    let name = client.disk(&request, timeout, late)?;
    output::text(&format!("{}: disk {name} detached\n", args.vm))
}
