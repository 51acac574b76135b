//! `vmctl console`, and `vmctl run` once the VM runs.
//!
//! A guest that reboots gets a new worker with a new console; the user stays attached across it.

use std::io::{self, IsTerminal};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use guest_proto::control::{Request, VmInfo, VmStatus};

use super::lifecycle::{check_end, describe};
use super::output;
use crate::client::Client;
use crate::console::attach::{Left, RawTerminal, attach};
use crate::console::hub::MAX_CLIENTS;
use crate::exit::{ExitStatus, Failed};

/// The time in which a worker that has closed its console must exit.
const TIMEOUT: Duration = Duration::from_secs(15);

/// A connection to one worker's console.
#[derive(Debug)]
pub(super) struct Session {
    name: String,
    worker: Option<u32>,
    stream: UnixStream,
}

impl Session {
    /// Connects to the console of a VM that is alive.
    ///
    /// # Errors
    ///
    /// There is no such VM, it has ended, or its console can't be reached.
    pub(super) fn open(name: &str, client: &mut Client) -> Result<Self, Failed> {
        let info = client.info(name)?;
        if !info.status.state.is_alive() {
            let message = format!(
                "{}: it has no console now; \"vmctl start {name}\", or \"vmctl logs {name}\"",
                describe(&info.status)
            );
            return Err(Failed::new(ExitStatus::State, message));
        }
        Self::of(info)
    }

    fn of(info: VmInfo) -> Result<Self, Failed> {
        let stream = UnixStream::connect(&info.console)
            .map_err(|e| Failed::new(ExitStatus::Failed, format!("{}: {e}", info.console)))?;
        Ok(Self {
            name: info.status.name,
            worker: info.worker,
            stream,
        })
    }
}

/// `vmctl console`.
pub(super) fn open(name: &str, mut client: Client) -> Result<(), Failed> {
    let session = Session::open(name, &mut client)?;
    follow(session, &client)
}

/// Connects the terminal with a VM's console until the user detaches or the VM ends. That it
/// crashed is a failure.
pub(super) fn follow(mut session: Session, client: &Client) -> Result<(), Failed> {
    let name = session.name.clone();
    if io::stdin().is_terminal() {
        output::note(&format!("[attached to {name}; ^] detaches]"));
    }
    let resized = |columns, rows| {
        let name = name.clone();
        // A console without the terminal's size is of use nevertheless.
        let _ = client.again().and_then(|mut client| {
            client.tell(&Request::Resize {
                name,
                columns,
                rows,
            })
        });
    };
    loop {
        let left = {
            let _raw = RawTerminal::enter()?;
            attach(&session.stream, resized)?
        };
        if left == Left::Detached {
            output::note(&format!(
                "\n[detached from {name}; \"vmctl console {name}\" attaches again]"
            ));
            return Ok(());
        }
        if left == Left::Full {
            let message = format!(
                "{name}: {MAX_CLIENTS} users are attached to its console, and no more can be; \"vmctl logs {name} -f\" shows it"
            );
            return Err(Failed::new(ExitStatus::State, message));
        }
        match next_life(&name, session.worker, client)? {
            Life::Over(status) => {
                check_end(&status)?;
                output::note(&format!("\n[{}]", describe(&status)));
                return Ok(());
            }
            Life::Again(info) => {
                output::note(&format!("\n[{name} rebooted]"));
                session = Session::of(*info)?;
            }
        }
    }
}

/// The state of a VM after its worker ended.
enum Life {
    /// No worker: the VM has ended.
    Over(VmStatus),
    /// Another worker.
    Again(Box<VmInfo>),
}

fn next_life(name: &str, worker: Option<u32>, client: &Client) -> Result<Life, Failed> {
    // Events first, so that no change is missed between a look and the wait for the next.
    let mut events = client.again()?;
    events.subscribe()?;
    let mut client = client.again()?;
    let until = Instant::now() + TIMEOUT;
    loop {
        let info = client.info(name)?;
        if !info.status.state.is_alive() {
            return Ok(Life::Over(info.status));
        }
        if info.worker.is_some() && info.worker != worker {
            return Ok(Life::Again(Box::new(info)));
        }
        match events.event(Some(until)) {
            Ok(_) => {}
            Err(e) if e.exit == ExitStatus::TimedOut => {
                let message = format!("{name}: its console was closed, but it goes on");
                return Err(Failed::new(ExitStatus::Failed, message));
            }
            Err(e) => return Err(e),
        }
    }
}
