//! `cargo xtask test`: every check, then every test, and one line that counts them.

use std::process::{Command, Stdio};

use crate::machine::Machine;
use crate::{Result, root};

/// A check that passes when its command does.
const CHECKS: &[(&str, &[&str])] = &[
    ("formatting", &["fmt", "--all", "--check"]),
    (
        "clippy",
        &[
            "clippy",
            "--quiet",
            "--workspace",
            "--all-targets",
            "--",
            "-Dwarnings",
        ],
    ),
    (
        "documentation",
        &["doc", "--quiet", "--workspace", "--no-deps"],
    ),
];

#[derive(Default)]
struct Count {
    passed: usize,
    failed: usize,
    skipped: usize,
}

impl Count {
    fn record(&mut self, name: &str, result: &Result<()>) {
        match result {
            Ok(()) => {
                println!("ok - {name}");
                self.passed += 1;
            }
            Err(why) => {
                println!("not ok - {name}: {why}");
                self.failed += 1;
            }
        }
    }
}

pub(crate) fn run() -> Result<()> {
    let mut count = Count::default();
    for (name, args) in CHECKS {
        let result = crate::checked(
            Command::new("cargo")
                .current_dir(root())
                .env("RUSTDOCFLAGS", "-Dwarnings")
                .args(*args),
        );
        count.record(name, &result);
    }
    host_tests(&mut count)?;
    machine_tests(&mut count);
    let Count {
        passed,
        failed,
        skipped,
    } = count;
    println!("{passed} passed, {failed} failed, {skipped} skipped");
    if failed > 0 {
        return Err(format!("{failed} tests failed"));
    }
    Ok(())
}

/// Boots the image.
fn machine_tests(count: &mut Count) {
    let scripts = root().join("root-partition/tests");
    for (cpus, name) in [
        ("1", "one-cpu.sh"),
        ("2", "two-cpus.sh"),
        ("4", "protection.sh"),
    ] {
        let machine = Machine {
            cpus: cpus.into(),
            ..Machine::default()
        };
        let result = machine.script(&scripts.join(name), Stdio::inherit());
        let result = result.and_then(|status| match status {
            0 => Ok(()),
            _ => Err(format!("exit status {status}")),
        });
        count.record(&format!("VM 0 with {cpus} CPUs: {name}"), &result);
    }
    let good = Machine::default;
    let refused = [
        (
            "no SVM",
            Machine {
                cpu: "EPYC-Milan,svm=off",
                ..good()
            },
            "this CPU has no SVM",
        ),
        (
            "no nested paging",
            Machine {
                cpu: "EPYC-Milan,npt=off",
                ..good()
            },
            "no nested paging",
        ),
        (
            "256 MiB",
            Machine {
                memory: "256M".into(),
                ..good()
            },
            "at least 512 MiB are needed",
        ),
        (
            "no modules",
            Machine {
                modules: false,
                ..good()
            },
            "no boot modules",
        ),
    ];
    for (name, machine, expected) in refused {
        let result = machine.console(8).and_then(|text| {
            let line = text.lines().find(|line| line.contains("cannot start: "));
            match line {
                Some(line) if line.contains(expected) => Ok(()),
                other => Err(format!("the console says {other:?}")),
            }
        });
        count.record(&format!("refuses to start: {name}"), &result);
    }
}

/// Runs the host's tests and adds up what the test runner's closing lines say.
fn host_tests(count: &mut Count) -> Result<()> {
    let output = Command::new("cargo")
        .current_dir(root())
        .args(["test", "--workspace", "--no-fail-fast"])
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("cargo test: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    print!("{text}");
    let failed_before = count.failed;
    for line in text.lines() {
        if let Some([passed, failed, ignored]) = closing_line(line) {
            count.passed += passed;
            count.failed += failed;
            count.skipped += ignored;
        }
    }
    // A crate that does not compile has no closing line.
    if !output.status.success() && count.failed == failed_before {
        count.record("host tests build", &Err(output.status.to_string()));
    }
    Ok(())
}

/// `test result: ok. 16 passed; 0 failed; 1 ignored; ...` → passed, failed, ignored.
fn closing_line(line: &str) -> Option<[usize; 3]> {
    let counts = line.strip_prefix("test result: ")?.split_once(". ")?.1;
    let mut numbers = counts
        .split("; ")
        .filter_map(|part| part.split_once(' ')?.0.parse().ok());
    Some([numbers.next()?, numbers.next()?, numbers.next()?])
}

#[cfg(test)]
mod closing_lines {
    use super::closing_line;

    #[test]
    fn are_read() {
        let line = "test result: FAILED. 16 passed; 2 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s";
        assert_eq!(closing_line(line), Some([16, 2, 1]));
        assert_eq!(closing_line("test config::tests::name ... ok"), None);
    }
}
