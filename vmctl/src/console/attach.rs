//! The user's end of a console: the terminal in raw mode, `^]` to leave.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use super::hub::FULL;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};

/// The byte that detaches: Ctrl and `]`, as telnet and virsh have it.
pub const ESCAPE: u8 = 0x1d;

/// The end of an attachment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// The user typed `^]`.
    Detached,
    /// The worker closed the console.
    Closed,
    /// Too many users are attached.
    Full,
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
            // The terminal may have gone.
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, saved);
        }
    }
}

/// Changes of the terminal's size.
#[derive(Debug)]
struct Resizes(SignalFd);

impl Resizes {
    /// Watches the terminal, if standard output is one.
    fn watch() -> io::Result<Option<Self>> {
        if !isatty(io::stdout()) {
            return Ok(None);
        }
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGWINCH);
        signals.thread_block()?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        Ok(Some(Self(SignalFd::with_flags(&signals, flags)?)))
    }

    /// Takes the signals that came since the last call, and returns the terminal's columns and rows.
    fn size(&self) -> Option<(u16, u16)> {
        while let Ok(Some(_)) = self.0.read_signal() {}
        let size = tcgetwinsize(io::stdout()).ok()?;
        Some((size.ws_col, size.ws_row))
    }
}

/// Connects the terminal with `console` until one side ends it. The end of standard input only
/// stops the typing, so that a script can pipe commands in and read all that comes; what is piped in goes to the guest whatever
/// it is, and [`ESCAPE`] detaches a terminal alone. `resized` is called with the terminal's columns and rows, now and whenever they change.
///
/// # Errors
///
/// Standard input, standard output or the socket failed.
pub fn attach(console: &UnixStream, resized: impl Fn(u16, u16)) -> io::Result<Left> {
    let stdin = io::stdin();
    let resizes = Resizes::watch()?;
    let tell_size = |resizes: &Resizes| {
        let size = resizes.size();
        size.inspect(|&(columns, rows)| resized(columns, rows));
    };
    resizes.as_ref().inspect(|resizes| tell_size(resizes));
    let mut stdout = io::stdout().lock();
    let mut chunk = [0; 4096];
    let mut typing = true;
    let is_terminal = isatty(&stdin);
    // The first output, as far as it may be that of a console that has no room.
    let mut first = Some(Vec::new());
    loop {
        // Standard output tells of itself that its reader is gone.
        let mut fds = vec![
            PollFd::new(console, PollFlags::IN),
            PollFd::new(&stdout, PollFlags::empty()),
        ];
        // Standard input is left out once there is nothing more to type: its end would be told for ever.
        if typing {
            fds.push(PollFd::new(&stdin, PollFlags::IN));
        }
        let changes = resizes
            .iter()
            .map(|resizes| PollFd::new(&resizes.0, PollFlags::IN));
        fds.extend(changes);
        match poll(&mut fds, None) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(e) => return Err(e.into()),
        }
        let is_ready = |index: usize| fds.get(index).is_some_and(|fd| !fd.revents().is_empty());
        let (from_guest, is_reader_gone) = (is_ready(0), is_ready(1));
        let from_user = typing && is_ready(2);
        let is_resized = is_ready(2 + usize::from(typing));
        drop(fds);
        if is_reader_gone {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if is_resized {
            resizes.as_ref().inspect(|resizes| tell_size(resizes));
        }
        if from_guest {
            match rustix::io::read(console.as_fd(), &mut chunk) {
                Ok(0) | Err(rustix::io::Errno::CONNRESET) => {
                    return Ok(match first {
                        Some(text) if text == FULL.as_bytes() => Left::Full,
                        _ => Left::Closed,
                    });
                }
                Ok(n) => {
                    let output = &chunk[..n];
                    if let Some(text) = &mut first {
                        text.extend_from_slice(output);
                    }
                    let is_other = |text: &Vec<u8>| !FULL.as_bytes().starts_with(text);
                    match first.take_if(|text| is_other(text)) {
                        Some(text) => stdout.write_all(&text)?,
                        None if first.is_some() => {}
                        None => stdout.write_all(output)?,
                    }
                    stdout.flush()?;
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        if from_user {
            match rustix::io::read(stdin.as_fd(), &mut chunk) {
                Ok(0) => typing = false,
                Ok(n) => {
                    let typed = &chunk[..n];
                    let is_escape = |&b: &u8| is_terminal && b == ESCAPE;
                    let until = typed.iter().position(is_escape);
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
