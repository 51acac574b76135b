//! Faults of the microvisor's own: an image that makes one on purpose, and what it says of it.

use std::fs::{self, File};
use std::process::Stdio;
use std::time::Duration;

use super::report::Report;
use crate::files::context;
use crate::run_folder::RunFolder;
use crate::{Result, freestanding, supervise, test_kernel};

/// What the image does on purpose, and what its report must have: cause, and callers' addresses.
const FAULTS: [(&str, &str); 7] = [
    ("panic", "on purpose"),
    ("invalid-opcode", "exception 6 (#UD), error 0x0"),
    ("read-absent", "exception 14 (#PF), error 0x0"),
    ("write-text", "exception 14 (#PF), error 0x3"),
    ("execute-data", "exception 14 (#PF), error 0x11"),
    ("execute-startup", "exception 14 (#PF), error 0x10"),
    ("stack-overflow", "exception 14 (#PF), error 0x2"),
];
/// Some seconds are usual.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Makes each fault, and looks for its report.
pub(super) fn run(report: &mut Report) {
    for (kind, cause) in FAULTS {
        report.test(&format!("reports a fault of its own: {kind}"), || {
            let text = console(kind)?;
            match missing(&text, cause) {
                None => Ok(()),
                Some(part) => Err(format!("no {part:?} in the report:\n{text}")),
            }
        });
    }
}

/// The first thing that a report of `cause` lacks.
fn missing<'a>(report: &str, cause: &'a str) -> Option<&'a str> {
    // In the test kernel's early exits there are hypercalls, 0x81.
    let parts = [
        cause,
        "on CPU 0",
        "  backtrace 0xffffffff80",
        "  exit 0x81 (",
        "of VM 0 CPU 0",
    ];
    parts.into_iter().find(|part| !report.contains(part))
}

/// What a microvisor says that runs the test kernel and makes a fault.
fn console(kind: &str) -> Result<String> {
    let (image, kernel) = (freestanding::build_faulty()?, test_kernel::build()?);
    let folder = RunFolder::new()?;
    let log = folder.join("console.log");
    File::create(&log).map_err(context(&log))?;
    let module = format!("{} microvisor.fault={kind}", kernel.display());
    let mut qemu = test_kernel::qemu(1, &image, &module, &log);
    qemu.stderr(Stdio::null());
    supervise::until(&mut qemu, &log, TIMEOUT, "microvisor: stopped").map_err(|why| {
        format!(
            "{why}; the console:\n{}",
            fs::read_to_string(&log).unwrap_or_default()
        )
    })
}
