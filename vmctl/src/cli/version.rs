//! `vmctl version`.

use guest_proto::ABI_VERSION;
use guest_proto::control::{CONTROL_VERSION, DaemonInfo, Request, Response};
use serde::Serialize;

use super::DeviceArgs;
use super::output::{self, Format, FormatArgs};
use crate::client::Client;
use crate::exit::Failed;
use crate::platform::Abi;

#[derive(Debug, clap::Args)]
pub(super) struct VersionArgs {
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Versions of what is here; of what does not run there is none.
#[derive(Debug, Serialize)]
struct Versions {
    vmctl: &'static str,
    control: u32,
    abi: String,
    daemon: Option<String>,
    driver_abi: Option<String>,
}

pub(super) fn run(args: &VersionArgs, client: Option<Client>) -> Result<(), Failed> {
    let daemon = client.and_then(|mut client| match client.ask(&Request::Ping) {
        Ok(Response::Daemon(DaemonInfo { version, .. })) => Some(version),
        _ => None,
    });
    let device = args.device.open().ok();
    let driver = device.and_then(|device| device.info().ok());
    let versions = Versions {
        vmctl: env!("CARGO_PKG_VERSION"),
        control: CONTROL_VERSION,
        abi: Abi(ABI_VERSION).to_string(),
        daemon,
        driver_abi: driver.map(|(info, _)| Abi(info.driver_abi).to_string()),
    };
    match args.format.format {
        Format::Json => output::json(&versions),
        Format::Table => output::text(&describe(&versions)),
    }
}

fn describe(versions: &Versions) -> String {
    let or_none = |version: &Option<String>| version.clone().unwrap_or_else(|| "-".to_owned());
    format!(
        "vmctl       {} (control protocol {}, ABI {})\ndaemon      {}\ndriver ABI  {}\n",
        versions.vmctl,
        versions.control,
        versions.abi,
        or_none(&versions.daemon),
        or_none(&versions.driver_abi),
    )
}
