//! A terminal's alternate screen, redrawn as a whole.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};

use crate::console::attach::RawTerminal;
use crate::wire::timespec;

/// Ctrl-C, which raw mode delivers as a byte.
const INTERRUPT: u8 = 3;

/// The screen while it lives; the user's own comes back with its end.
pub(super) struct Screen {
    _raw: RawTerminal,
    keys: bool,
}

impl Screen {
    pub(super) fn enter() -> io::Result<Self> {
        let raw = RawTerminal::enter()?;
        // Alternate screen on, cursor and wrapping of long lines off (xterm's private modes 1049, 25
        // and 7).
        print("\x1b[?1049h\x1b[?25l\x1b[?7l")?;
        Ok(Self {
            _raw: raw,
            keys: true,
        })
    }

    /// Shows `text`; lines beyond the screen are lost.
    pub(super) fn draw(&mut self, text: &str) -> io::Result<()> {
        let rows = rustix::termios::tcgetwinsize(io::stdout()).map_or(0, |size| size.ws_row);
        let rows = if rows == 0 { 24 } else { usize::from(rows) };
        let mut frame = "\x1b[H".to_owned();
        for (at, line) in text.lines().take(rows).enumerate() {
            if at > 0 {
                frame.push_str("\r\n");
            }
            frame.push_str(line);
            frame.push_str("\x1b[K");
        }
        frame.push_str("\x1b[J");
        print(&frame)
    }

    /// Waits; true once the user wants to leave.
    pub(super) fn quit_within(&mut self, time: Duration) -> io::Result<bool> {
        let until = Instant::now() + time;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            let stdin = io::stdin();
            let mut fds = [PollFd::new(&stdin, PollFlags::IN)];
            let watched = if self.keys { &mut fds[..] } else { &mut [] };
            match poll(watched, Some(&timespec(left))) {
                Ok(0) | Err(rustix::io::Errno::INTR) => continue,
                Ok(_) => {}
                Err(e) => return Err(e.into()),
            }
            let mut typed = [0; 64];
            match rustix::io::read(stdin.as_fd(), &mut typed)? {
                0 => self.keys = false,
                n if typed[..n].iter().any(|&b| b == b'q' || b == INTERRUPT) => return Ok(true),
                _ => {}
            }
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // The terminal may have gone.
        let _ = print("\x1b[?7h\x1b[?25h\x1b[?1049l");
    }
}

fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}
