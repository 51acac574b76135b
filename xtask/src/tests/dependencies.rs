//! Dependencies, by `deny.toml`: licences, duplicates, where they come from, and known vulnerabilities.

use std::process::{Command, Stdio};

use super::report::Report;
use crate::{Result, checked, root};

/// The version that reads `deny.toml`.
const VERSION: &str = "0.20.2";
const ADVISORIES: &str = "dependencies: known vulnerabilities";

pub(super) fn run(report: &mut Report) {
    report.test("dependencies: licences, duplicates and sources", || {
        install()?;
        checked(deny().args([
            "--log-level",
            "error",
            "check",
            "licenses",
            "bans",
            "sources",
        ]))
    });
    if !report.wants(ADVISORIES) {
        return;
    }
    let fetched = install().map(|()| succeeds(deny().args(["--log-level", "off", "fetch", "db"])));
    match fetched {
        Ok(false) => report.skip(ADVISORIES, "the advisory database can't be fetched"),
        Ok(true) => report.test(ADVISORIES, || {
            checked(deny().args([
                "--log-level",
                "error",
                "check",
                "--disable-fetch",
                "advisories",
            ]))
        }),
        Err(error) => report.test(ADVISORIES, || Err(error)),
    }
}

fn deny() -> Command {
    let mut command = Command::new("cargo");
    command.current_dir(root()).args(["deny", "--workspace"]);
    command
}

/// Installs cargo-deny if it is missing.
fn install() -> Result<()> {
    if succeeds(deny().arg("--version")) {
        return Ok(());
    }
    eprintln!(
        "installing cargo-deny: checks the dependencies' licences and sources; this takes a minute or two"
    );
    // A build without optimisation takes a quarter of the time, and a check still takes a second.
    let arguments = [
        "install",
        "--quiet",
        "--locked",
        "--debug",
        "--version",
        VERSION,
        "cargo-deny",
    ];
    checked(
        Command::new("cargo")
            .args(arguments)
            .env("CARGO_PROFILE_DEV_DEBUG", "0"),
    )
}

fn succeeds(command: &mut Command) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}
