//! The worker's log: standard error, one line each, with the time since the worker began.

use std::fmt;
use std::sync::OnceLock;
use std::time::Instant;

/// Writes a line.
pub(super) fn say(line: fmt::Arguments<'_>) {
    static START: OnceLock<Instant> = OnceLock::new();
    let since = START.get_or_init(Instant::now).elapsed();
    eprintln!("[{:8.3}] {line}", since.as_secs_f64());
}
