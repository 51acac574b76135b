//! The tests that run on this machine, as `cargo test` runs them.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::report::Report;
use crate::files::folder;
use crate::packages::{self, Need};
use crate::{Result, checked, root};

const TOOLS: &[Need] = &[Need {
    file: "/usr/bin/iasl",
    packages: &["acpica-tools"],
    why: "reads the ACPI tables that guests get, to check them",
}];

/// All of them together.
const NAME: &str = "host";

pub(super) fn run(report: &mut Report) -> Result<()> {
    let filter = report.host_filter().map(str::to_owned);
    if filter.is_none() && !report.wants(NAME) {
        return Ok(());
    }
    packages::install(TOOLS)?;
    let output = cargo_test()
        .arg("--no-fail-fast")
        .args(&filter)
        // What is ignored by default needs something that is installed here, or VM 0.
        .args(["--", "--include-ignored", "--skip", "vm0::"])
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("cargo test: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    print!("{text}");
    let failed: Vec<&str> = text.lines().filter_map(failed).collect();
    report.count(text.lines().filter(|line| passed(line)).count(), &failed);
    if !output.status.success() && failed.is_empty() {
        // A crate that does not compile, or a test that takes its process with it.
        report.count(0, &["a host test's build or process: see above"]);
    }
    Ok(())
}

/// Returns the driver's tests, which run in VM 0 with the shared libraries of this machine. They are those of the
/// host's tests, so that they are compiled once.
pub(super) fn driver_tests() -> Result<PathBuf> {
    let output = cargo_test()
        .args(["--test", "driver", "--no-run", "--message-format=json"])
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("cargo test: {error}"))?;
    let built = test_program(&String::from_utf8_lossy(&output.stdout));
    let built = built
        .filter(|_| output.status.success())
        .ok_or_else(|| format!("building the driver's tests: {}", output.status))?;
    let stripped = folder()?.join("driver-tests");
    checked(
        Command::new("strip")
            .args(["--strip-debug", "-o"])
            .arg(&stripped)
            .arg(built),
    )?;
    Ok(stripped)
}

fn cargo_test() -> Command {
    let mut cargo = Command::new("cargo");
    cargo
        .current_dir(root())
        .args(["test", "--workspace", "--features=guest-proto/codegen"]);
    cargo
}

/// Returns the path of the test program from Cargo's messages, which are one JSON object in each line. The program
/// `vmctl` has an object too, before or behind.
fn test_program(messages: &str) -> Option<PathBuf> {
    let line = messages
        .lines()
        .find(|line| line.contains("\"kind\":[\"test\"]") && line.contains("\"executable\":\""))?;
    let path = line.split_once("\"executable\":\"")?.1.split('"').next()?;
    Some(path.into())
}

/// `test config::tests::name ... ok`
fn passed(line: &str) -> bool {
    line.starts_with("test ") && line.ends_with(" ... ok")
}

/// `test config::tests::name ... FAILED` → the name.
fn failed(line: &str) -> Option<&str> {
    line.strip_prefix("test ")?.strip_suffix(" ... FAILED")
}

#[cfg(test)]
mod tests {
    use super::{failed, passed, test_program};

    #[test]
    fn the_test_program_is_found() {
        let messages = "{\"kind\":[\"bin\"],\"executable\":\"/t/vmctl\"}\n\
                        {\"kind\":[\"test\"],\"executable\":\"/t/driver-1\"}\n";
        assert_eq!(test_program(messages), Some("/t/driver-1".into()));
        assert_eq!(
            test_program("{\"kind\":[\"test\"],\"executable\":null}"),
            None
        );
    }

    #[test]
    fn lines_are_read() {
        assert!(passed("test a::b ... ok") && !passed("test result: ok. 3 passed"));
        assert_eq!(failed("test a::b ... FAILED"), Some("a::b"));
        assert_eq!(failed("test a::b ... ok"), None);
    }
}
