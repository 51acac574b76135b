//! `vmctl doctor`: what is here, what is missing, and what to do about it.

use std::convert::Infallible;
use std::fmt;
use std::path::Path;
use std::process::ExitCode;

use guest_proto::control::{DaemonInfo, Request, Response};
use guest_proto::cpuid::Features;
use guest_proto::limits::PAGE_SIZE;
use serde::Serialize;

use super::DeviceArgs;
use super::output::{self, Colour, Column, Format, FormatArgs, Style, Table};
use crate::client::Client;
use crate::config::format_size;
use crate::driver::DriverError;
use crate::exit::{ExitStatus, Failed};
use crate::platform::{self, Abi, Hypervisor, PlatformError};

#[derive(Debug, clap::Args)]
pub(super) struct DoctorArgs {
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

/// The outcome of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Outcome {
    /// The checked thing is there.
    Ok,
    /// The checked thing is missing, and VMs run without it.
    Absent,
    /// The checked thing is missing, and no VM runs without it.
    Missing,
}

/// One line of the answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Check {
    check: String,
    outcome: Outcome,
    detail: String,
    /// The exit status of `vmctl doctor` if it is missing.
    #[serde(skip)]
    exit: ExitStatus,
}

impl Check {
    fn new(check: &str, answer: Result<String, impl fmt::Display>, exit: ExitStatus) -> Self {
        let (outcome, detail) = match answer {
            Ok(detail) => (Outcome::Ok, detail),
            Err(error) => (Outcome::Missing, error.to_string()),
        };
        Self {
            check: check.to_owned(),
            outcome,
            detail,
            exit,
        }
    }
}

pub(super) fn run(args: &DoctorArgs, runtime_dir: &Path) -> Result<ExitCode, Failed> {
    let hypervisor = Hypervisor::detect();
    let mut checks = machine(&hypervisor);
    checks.push(Check::new(
        "driver",
        driver(&args.device.device),
        ExitStatus::Platform,
    ));
    checks.push(Check::new(
        "daemon",
        daemon(runtime_dir),
        ExitStatus::NoDaemon,
    ));
    match args.format.format {
        Format::Json => output::json(&checks)?,
        Format::Table => output::text(&table(&checks).render(Style::of_stdout()))?,
    }
    Ok(exit_status(&checks).into())
}

/// The first thing that is missing decides.
fn exit_status(checks: &[Check]) -> ExitStatus {
    checks
        .iter()
        .find(|check| check.outcome == Outcome::Missing)
        .map_or(ExitStatus::Done, |check| check.exit)
}

fn table(checks: &[Check]) -> Table {
    let mut table = Table::new(vec![
        Column::Left("CHECK"),
        Column::Left("RESULT"),
        Column::Left("DETAIL"),
    ]);
    for check in checks {
        let (result, colour) = match check.outcome {
            Outcome::Ok => ("ok", Colour::Green),
            Outcome::Absent => ("absent", Colour::Yellow),
            Outcome::Missing => ("missing", Colour::Red),
        };
        table.row([
            (check.check.clone(), Colour::Plain),
            (result.to_owned(), colour),
            (check.detail.clone(), Colour::Plain),
        ]);
    }
    table
}

/// The CPU, the microvisor, its ABI, and what it has of the CPU's features.
fn machine(hypervisor: &Hypervisor) -> Vec<Check> {
    let cpu = match hypervisor {
        // The microvisor keeps SVM to itself, and would not have started without it.
        Hypervisor::Microvisor { .. } => Ok("in use by the microvisor".to_owned()),
        _ => platform::check_cpu().map(|()| "AMD-V with nested paging".to_owned()),
    };
    let present = hypervisor.check().map(|()| "present".to_owned());
    let mut checks = vec![
        Check::new("cpu", cpu, ExitStatus::Platform),
        Check::new("microvisor", present, ExitStatus::Platform),
    ];
    if let Hypervisor::Microvisor { abi, features, .. } = hypervisor {
        let version = Abi(*abi).check().map(|()| Abi(*abi).to_string());
        checks.push(Check::new("microvisor abi", version, ExitStatus::Platform));
        checks.extend(feature_checks(*features));
    }
    checks
}

/// One line per feature; none but nested paging is needed.
fn feature_checks(features: Features) -> Vec<Check> {
    let lines = [
        (
            Features::NESTED_PAGING,
            "nested-paging",
            "guest memory has its own tables",
        ),
        (
            Features::NEXT_RIP,
            "next-rip",
            "no instruction is decoded to step over it",
        ),
        (
            Features::DECODE_ASSISTS,
            "decode-assists",
            "no instruction bytes are fetched",
        ),
        (
            Features::FLUSH_BY_ASID,
            "flush-by-asid",
            "one guest's TLB entries go alone",
        ),
        (
            Features::CLEAN_BITS,
            "clean-bits",
            "unchanged state is not loaded again",
        ),
        (
            Features::TSC_SCALING,
            "tsc-scaling",
            "a guest can have another TSC frequency",
        ),
        (
            Features::PRIVATE_MEMORY,
            "private-memory",
            "a guest's memory can be hidden from root",
        ),
    ];
    lines
        .into_iter()
        .map(|(bit, name, gain)| {
            let present = features.contains(bit);
            let mut check = Check::new(
                &format!("feature {name}"),
                Ok::<_, Infallible>(gain.to_owned()),
                ExitStatus::Platform,
            );
            if !present && bit == Features::NESTED_PAGING {
                check.outcome = Outcome::Missing;
                check.detail = "no VM can run without it".to_owned();
            } else if !present {
                check.outcome = Outcome::Absent;
                check.detail = format!("not needed; with it, {gain}");
            }
            check
        })
        .collect()
}

/// Error: the driver has no answer.
#[derive(Debug, thiserror::Error)]
enum NoDriver {
    #[error(transparent)]
    NotThere(#[from] PlatformError),
    #[error(transparent)]
    NoAnswer(#[from] DriverError),
}

fn driver(device: &Path) -> Result<String, NoDriver> {
    let (info, machine) = platform::open_driver(device)?.info()?;
    let held = (info.ram_pages + info.metadata_pages) * PAGE_SIZE;
    Ok(format!(
        "ABI {}; {}, {} of RAM; {} with {}",
        Abi(info.driver_abi),
        output::count(u64::from(machine.cpus), "CPU"),
        format_size((machine.frames * PAGE_SIZE) >> 20 << 20),
        output::count(info.partitions, "partition"),
        format_size(held),
    ))
}

/// Error: the daemon has no answer.
#[derive(Debug, thiserror::Error)]
enum NoDaemon {
    #[error("{0}")]
    NoAnswer(Failed),
    #[error("it gave an unexpected answer")]
    AnotherAnswer,
}

fn daemon(runtime_dir: &Path) -> Result<String, NoDaemon> {
    let answer = Client::connect(runtime_dir).and_then(|mut client| client.ask(&Request::Ping));
    match answer {
        Ok(Response::Daemon(DaemonInfo {
            version,
            pid,
            state_dir,
            ..
        })) => Ok(format!(
            "version {version}, process {pid}, state in {state_dir}"
        )),
        Ok(_) => Err(NoDaemon::AnotherAnswer),
        Err(e) => Err(NoDaemon::NoAnswer(e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_needed_makes_it_fail() {
        let checks = feature_checks(Features::NESTED_PAGING);
        assert_eq!(exit_status(&checks), ExitStatus::Done);
        assert!(checks.iter().any(|c| c.outcome == Outcome::Absent));
        assert_eq!(
            exit_status(&feature_checks(Features::empty())),
            ExitStatus::Platform
        );
        assert_eq!(
            Features::LAYOUT.variants.len(),
            feature_checks(Features::empty()).len()
        );
        let no_daemon = Check::new(
            "daemon",
            Err("not running".to_owned()),
            ExitStatus::NoDaemon,
        );
        assert_eq!(exit_status(&[no_daemon]), ExitStatus::NoDaemon);
    }

    #[test]
    fn another_hypervisor_is_named() {
        let checks = machine(&Hypervisor::Other("KVMKVMKVM".to_owned()));
        assert_eq!(checks[1].outcome, Outcome::Missing);
        assert!(checks[1].detail.contains("KVMKVMKVM"));
        assert_eq!(checks.len(), 2);
    }
}
