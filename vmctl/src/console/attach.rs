//! The user's end of a console: the terminal in raw mode, `^]` to leave.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcsetattr};

/// The byte that detaches: Ctrl and `]`, as telnet and virsh have it.
pub const ESCAPE: u8 = 0x1d;

/// How an attachment ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// The user typed `^]`.
    Detached,
    /// The worker closed the console.
    Closed,
}

/// Standard input in raw mode while it lives, if it is a terminal.
#[derive(Debug)]
pub struct RawTerminal {
    saved: Option<Termios>,
}

impl RawTerminal {
    /// Enters raw mode.
    ///
    /// # Errors
    ///
    /// The terminal refuses.
    pub fn enter() -> io::Result<Self> {
        let stdin = io::stdin();
        if !isatty(&stdin) {
            return Ok(Self { saved: None });
        }
        let saved = tcgetattr(&stdin)?;
        let mut raw = saved.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw)?;
        Ok(Self { saved: Some(saved) })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Some(saved) = &self.saved {
            // Nothing can be done about a terminal that has gone.
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, saved);
        }
    }
}

/// Connects the terminal with `console` until one side ends it. The end of standard input only
/// stops the typing, so that a script can pipe commands in and read all that comes.
///
/// # Errors
///
/// Standard input, standard output or the socket failed.
pub fn attach(console: &UnixStream) -> io::Result<Left> {
    let stdin = io::stdin();
    let mut stdout = io::stdout().lock();
    let mut chunk = [0; 4096];
    let mut typing = true;
    loop {
        let in_flags = if typing {
            PollFlags::IN
        } else {
            PollFlags::empty()
        };
        // The second entry is left out once there is nothing more to type.
        let mut fds = [
            PollFd::new(console, PollFlags::IN),
            PollFd::new(&stdin, in_flags),
        ];
        let watched = if typing { &mut fds[..] } else { &mut fds[..1] };
        match poll(watched, None) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(e) => return Err(e.into()),
        }
        let (from_guest, from_user) = (fds[0].revents(), fds[1].revents());
        if !from_guest.is_empty() {
            match rustix::io::read(console.as_fd(), &mut chunk) {
                Ok(0) | Err(rustix::io::Errno::CONNRESET) => return Ok(Left::Closed),
                Ok(n) => {
                    stdout.write_all(&chunk[..n])?;
                    stdout.flush()?;
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        if typing && !from_user.is_empty() {
            match rustix::io::read(stdin.as_fd(), &mut chunk) {
                Ok(0) => typing = false,
                Ok(n) => {
                    let typed = &chunk[..n];
                    let until = typed.iter().position(|&b| b == ESCAPE);
                    let keep = &typed[..until.unwrap_or(n)];
                    match (&mut &*console).write_all(keep) {
                        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => typing = false,
                        other => other?,
                    }
                    if until.is_some() {
                        return Ok(Left::Detached);
                    }
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}
