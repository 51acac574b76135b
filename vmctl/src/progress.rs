//! The display of a command that takes longer than a second, for a user at a terminal.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

/// A command that takes no longer shows nothing.
const DELAY: Duration = Duration::from_secs(1);
/// Time between two pictures.
pub(crate) const INTERVAL: Duration = Duration::from_millis(150);

const PICTURES: [char; 4] = ['|', '/', '-', '\\'];

/// A line on standard error that moves, and goes with this value.
#[derive(Debug)]
pub(crate) struct Progress {
    text: String,
    begun: Instant,
    pictures: usize,
}

impl Progress {
    /// Begins, if standard error is a terminal that can take a line back.
    pub(crate) fn begin(text: String) -> Option<Self> {
        let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        (io::stderr().is_terminal() && !is_dumb).then(|| Self {
            text,
            begun: Instant::now(),
            pictures: 0,
        })
    }

    /// Shows the next picture, if it is time.
    pub(crate) fn show(&mut self) {
        let elapsed = self.begun.elapsed();
        if elapsed < DELAY {
            return;
        }
        let picture = PICTURES[self.pictures % PICTURES.len()];
        self.pictures += 1;
        let (text, seconds) = (&self.text, elapsed.as_secs());
        // Erase to the end of the line (ECMA-48 EL).
        let _ = write!(io::stderr(), "\r{picture} {text} ({seconds}s)\x1b[K");
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.pictures > 0 {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}
