//! `cargo xtask test`: every check, then every test, and one line that counts them.

mod checks;
mod dependencies;
mod door;
mod faults;
mod host;
mod machines;
mod report;
mod script;

use std::cell::OnceCell;

use crate::parts::Parts;
use crate::{Result, test_kernel};
use report::Report;

/// Options of `cargo xtask test`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only what has FILTER in its name; with `::` in it, only the host's tests
    filter: Option<String>,
    /// The long ones too
    #[arg(long)]
    long: bool,
}

/// The test kernel's cases begin with this.
const TEST_KERNEL: &str = "test kernel";

/// What machines are made of, built for the first test that needs it.
#[derive(Default)]
struct LazyParts(OnceCell<Result<Parts>>);

impl LazyParts {
    fn get(&self) -> Result<&Parts> {
        let parts = self.0.get_or_init(|| Parts::prepare(None));
        parts.as_ref().map_err(String::clone)
    }
}

/// Runs what was asked for.
pub(crate) fn run(options: &Options) -> Result<()> {
    let mut report = Report::new(options.filter.clone());
    checks::run(&mut report);
    dependencies::run(&mut report);
    host::run(&mut report)?;
    if report.wants_some_of(TEST_KERNEL) {
        test_kernel::run(&mut |name, result| report.record(name, result));
        if options.long {
            test_kernel::run_long(&mut |name, result| report.record(name, result));
        } else {
            report.skip("test kernel, long", "takes long; --long runs it");
        }
    }
    faults::run(&mut report);
    let parts = LazyParts::default();
    machines::run(&mut report, &parts, options.long)?;
    report.close()
}

/// `cargo xtask test-kernel`: its cases alone, or only those of the long run.
pub(crate) fn run_test_kernel(is_long: bool) -> Result<()> {
    let mut report = Report::new(None);
    let mut record = |name: &str, result: &Result<()>| report.record(name, result);
    if is_long {
        test_kernel::run_long(&mut record);
    } else {
        test_kernel::run(&mut record);
    }
    report.close()
}
