//! The daemon's log: standard error, one line for each message.
//!
//! A thread of its own writes it: standard error can be a pipe that is full, and the event loop waits for nobody.
//! Lines that can't be written are lost and counted. They end nothing.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use log::{Level, Log, Metadata, Record};

use crate::logging::{self, Levels};

/// Lines that may wait for the reader of standard error.
const BACKLOG: usize = 256;

/// Lines that were lost because too many waited.
static LOST: AtomicU64 = AtomicU64::new(0);

/// The sink of messages.
struct Journal {
    levels: Levels,
    lines: SyncSender<String>,
}

/// Logs the messages that `levels` admit, from now on.
pub(super) fn begin(levels: &Levels) {
    let (sender, lines) = sync_channel(BACKLOG);
    let thread = thread::Builder::new().name("log".to_owned());
    // Without a thread, the lines have no receiver and are lost.
    let _ = thread.spawn(move || write(&lines));
    let journal = Journal {
        levels: levels.clone(),
        lines: sender,
    };
    log::set_max_level(levels.most());
    // There is one daemon in a process.
    let _ = log::set_boxed_logger(Box::new(journal));
}

impl Log for Journal {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.levels.admit(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let line = form(record.level(), &logging::line(record));
        if self.lines.try_send(line).is_err() {
            LOST.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn flush(&self) {}
}

fn form(level: Level, text: &str) -> String {
    format!("{}vmctl daemon: {text}\n", logging::priority(level))
}

fn write(lines: &Receiver<String>) {
    for line in lines {
        let lost = match LOST.swap(0, Ordering::Relaxed) {
            0 => String::new(),
            n => {
                let text = format!("{n} lines were lost: standard error was not read");
                form(Level::Warn, &text)
            }
        };
        // In one piece: others may write to the same file.
        let _ = io::stderr().write_all(format!("{lost}{line}").as_bytes());
    }
}
