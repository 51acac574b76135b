//! The tests that run on this machine, as `cargo test` runs them.

use std::process::{Command, Stdio};

use super::report::Report;
use crate::packages::{self, Need};
use crate::{Result, root};

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
    let output = Command::new("cargo")
        .current_dir(root())
        .args(["test", "--workspace", "--features=guest-proto/codegen"])
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
    use super::{failed, passed};

    #[test]
    fn lines_are_read() {
        assert!(passed("test a::b ... ok") && !passed("test result: ok. 3 passed"));
        assert_eq!(failed("test a::b ... FAILED"), Some("a::b"));
        assert_eq!(failed("test a::b ... ok"), None);
    }
}
