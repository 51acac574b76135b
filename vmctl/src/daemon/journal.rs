//! The daemon's log: standard error, one line for each message.
//!
//! A thread of its own writes it: standard error can be a pipe that is full, and the event loop waits for nobody.
//! Lines that can't be written are lost and counted. They end nothing.

use std::fmt;
use std::io::{self, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

/// Lines that may wait for the reader of standard error.
const BACKLOG: usize = 256;

/// Lines that were lost because too many waited.
static LOST: AtomicU64 = AtomicU64::new(0);

/// Writes a line, soon.
pub(super) fn say(line: fmt::Arguments<'_>) {
    static LINES: OnceLock<SyncSender<String>> = OnceLock::new();
    let lines = LINES.get_or_init(|| {
        let (sender, lines) = sync_channel(BACKLOG);
        let thread = thread::Builder::new().name("log".to_owned());
        // Without a thread, the lines have no receiver and are lost.
        let _ = thread.spawn(move || write(&lines));
        sender
    });
    if lines.try_send(line.to_string()).is_err() {
        LOST.fetch_add(1, Ordering::Relaxed);
    }
}

fn write(lines: &Receiver<String>) {
    for line in lines {
        let lost = match LOST.swap(0, Ordering::Relaxed) {
            0 => String::new(),
            n => format!("vmctl daemon: {n} lines were lost: standard error was not read\n"),
        };
        // In one piece: others may write to the same file.
        let text = format!("{lost}vmctl daemon: {line}\n");
        let _ = io::stderr().write_all(text.as_bytes());
    }
}
