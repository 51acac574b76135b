//! Checks of the source that a tool makes: each passes when its command does.

use std::process::Command;

use super::report::Report;
use crate::{checked, driver, freestanding, root};

/// Name and arguments of `cargo`.
const CHECKS: &[(&str, &[&str])] = &[
    ("formatting", &["fmt", "--all", "--check"]),
    (
        "clippy",
        &[
            "clippy",
            "--quiet",
            "--workspace",
            "--all-targets",
            "--features=guest-proto/codegen",
            "--",
            "-Dwarnings",
        ],
    ),
    (
        "documentation",
        &[
            "doc",
            "--quiet",
            "--workspace",
            "--no-deps",
            "--features=guest-proto/codegen",
        ],
    ),
];

pub(super) fn run(report: &mut Report) {
    for (name, args) in CHECKS {
        report.test(name, || {
            checked(
                Command::new("cargo")
                    .current_dir(root())
                    .env("RUSTDOCFLAGS", "-Dwarnings")
                    .args(*args),
            )
        });
    }
    report.test("clippy, freestanding", freestanding::clippy);
    report.test("driver, for the oldest kernel", driver::build_for_oldest);
    report.test("loom: every interleaving of the rings", || {
        checked(
            Command::new("cargo")
                .current_dir(root())
                .env("RUSTFLAGS", "--cfg loom")
                .args(["test", "--quiet", "--release", "--package", "guest-proto"])
                // Its own folder: the flags would have everything else built again.
                .args(["--lib", "--target-dir", "target/loom"]),
        )
    });
}
