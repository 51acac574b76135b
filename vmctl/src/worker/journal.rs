//! The worker's log: standard error, one line for each message, with the time since the worker
//! began.

use std::fmt;
use std::io::Write;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use log::{Log, Metadata, Record, warn};

use crate::logging::{self, Levels};

/// Messages about the guest's mistakes that are logged at once.
const GUEST_BURST: u32 = 32;
/// Time after which one more of them is logged.
const GUEST_INTERVAL: Duration = Duration::from_secs(10);

/// The sink of messages.
struct Journal(Levels);

/// Logs the messages that `levels` admit, from now on.
pub(super) fn begin(levels: &Levels) {
    log::set_max_level(levels.most());
    // There is one worker in a process.
    let _ = log::set_boxed_logger(Box::new(Journal(levels.clone())));
}

impl Log for Journal {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.0.admit(metadata)
    }

    /// A log that can't be written is no reason to end the VM.
    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let since = start().elapsed().as_secs_f64();
            let line = logging::line(record);
            let _ = writeln!(std::io::stderr(), "[{since:8.3}] {line}");
        }
    }

    fn flush(&self) {}
}

/// Writes a line about a mistake of the guest. A guest that makes many does not fill the log: lines
/// beyond a limit are counted instead.
pub(super) fn guest(line: fmt::Arguments<'_>) {
    static LIMIT: Mutex<Limit> = Mutex::new(Limit::new(GUEST_BURST));
    let admitted = {
        let mut limit = LIMIT.lock().unwrap_or_else(PoisonError::into_inner);
        limit.admit(start().elapsed())
    };
    match admitted {
        None => {}
        Some(0) => warn!("guest: {line}"),
        Some(n) => warn!("guest: {line} ({n} lines about the guest left out)"),
    }
}

fn start() -> Instant {
    static START: OnceLock<Instant> = OnceLock::new();
    *START.get_or_init(Instant::now)
}

/// A token bucket for lines.
#[derive(Debug)]
struct Limit {
    tokens: u32,
    capacity: u32,
    /// When the last token was added.
    filled: Duration,
    left_out: u64,
}

impl Limit {
    const fn new(capacity: u32) -> Self {
        Self {
            tokens: capacity,
            capacity,
            filled: Duration::ZERO,
            left_out: 0,
        }
    }

    /// Returns whether a line may be written at time `now`, and how many were left out before it.
    fn admit(&mut self, now: Duration) -> Option<u64> {
        while self.tokens < self.capacity && now >= self.filled + GUEST_INTERVAL {
            self.tokens += 1;
            self.filled += GUEST_INTERVAL;
        }
        if self.tokens == self.capacity {
            self.filled = now;
        }
        if self.tokens == 0 {
            self.left_out += 1;
            return None;
        }
        self.tokens -= 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_beyond_the_limit_are_counted() {
        let mut limit = Limit::new(2);
        let now = Duration::from_secs(1000);
        assert_eq!(limit.admit(now), Some(0));
        assert_eq!(limit.admit(now), Some(0));
        assert_eq!(limit.admit(now), None);
        assert_eq!(limit.admit(now + GUEST_INTERVAL / 2), None);
        assert_eq!(limit.admit(now + GUEST_INTERVAL), Some(2));
        assert_eq!(limit.admit(now + GUEST_INTERVAL), None);
        let later = now + 100 * GUEST_INTERVAL;
        assert_eq!(limit.admit(later), Some(1));
        assert_eq!(limit.admit(later), Some(0));
        assert_eq!(limit.admit(later), None);
    }
}
