//! The command line's connection to the daemon.
//!
//! Every failure is a [`Failed`]: one line for the user, and the exit code that goes with it.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use guest_proto::control::{Request, Response, Role, Until, VmInfo, VmStatus};

use crate::daemon::socket_path;
use crate::exit::{ExitStatus, Failed};
use crate::progress::{self, Progress};
use crate::wire::{Link, LinkError};

/// The time that the daemon has for an answer that it gives at once.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A connection.
#[derive(Debug)]
pub struct Client {
    link: Link,
    runtime_dir: PathBuf,
    /// The message about a wait for a user at a terminal.
    doing: Option<String>,
}

impl Client {
    /// Connects to the daemon of a runtime directory.
    ///
    /// # Errors
    ///
    /// [`ExitStatus::NoDaemon`]: names the socket and how the daemon is started.
    pub fn connect(runtime_dir: &Path) -> Result<Self, Failed> {
        let path = socket_path(runtime_dir);
        let failed = |e: &io::Error| {
            let why = match e.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                    "the daemon is not running: start it with \"vmctl daemon &\"".to_owned()
                }
                io::ErrorKind::PermissionDenied => "permission denied: run as root".to_owned(),
                _ => e.to_string(),
            };
            Failed::new(ExitStatus::NoDaemon, format!("{}: {why}", path.display()))
        };
        let stream = UnixStream::connect(&path).map_err(|e| failed(&e))?;
        let link = Link::new(stream, Role::Cli, Role::Daemon).map_err(|e| failed(&e))?;
        Ok(Self {
            link,
            runtime_dir: runtime_dir.to_owned(),
            doing: None,
        })
    }

    /// Opens another connection to the same daemon.
    ///
    /// # Errors
    ///
    /// The errors of [`Self::connect`].
    pub fn again(&self) -> Result<Self, Failed> {
        Self::connect(&self.runtime_dir)
    }

    /// Sends a request, and returns the answer.
    ///
    /// # Errors
    ///
    /// The daemon answers with a failure, or the connection breaks.
    pub fn ask(&mut self, request: &Request) -> Result<Response, Failed> {
        self.send(request)?;
        self.receive(deadline(TIMEOUT))
    }

    /// Sends a request, and a second one that waits for its result, and returns the first answer. Both are sent at once, so
    /// that no event in between is missed. [`Self::finish`] returns the second answer. After a failure of the first request
    /// the connection can't be used any more.
    ///
    /// # Errors
    ///
    /// The errors of [`Self::ask`].
    pub fn begin(&mut self, request: &Request, name: &str, until: Until) -> Result<(), Failed> {
        self.doing = Some(doing(request, name));
        self.link.queue(request)?;
        self.link.queue(&wait_for(name, until))?;
        self.receive(deadline(TIMEOUT)).map(drop)
    }

    /// Waits for the second answer of [`Self::begin`].
    ///
    /// # Errors
    ///
    /// The errors of [`Self::ask`], and [`ExitStatus::TimedOut`] after `timeout`.
    pub fn finish(&mut self, name: &str, timeout: Option<Duration>) -> Result<VmStatus, Failed> {
        match self.outcome(timeout) {
            Err(e) if e.exit == ExitStatus::TimedOut => Err(self.too_late(name, timeout)),
            other => other,
        }
    }

    /// Does the same as [`Self::finish`], but can be called again after `timeout`.
    ///
    /// # Errors
    ///
    /// The errors of [`Self::finish`].
    pub fn outcome(&mut self, timeout: Option<Duration>) -> Result<VmStatus, Failed> {
        match self.receive(timeout.and_then(deadline))? {
            Response::Status(status) => Ok(status),
            _ => Err(confused()),
        }
    }

    /// Returns the failure of a wait for the VM `name` that took longer than `timeout`. It names the VM's state.
    pub fn too_late(&self, name: &str, timeout: Option<Duration>) -> Failed {
        let seconds = timeout.unwrap_or_default().as_secs_f32();
        match self.again().and_then(|mut client| client.info(name)) {
            Ok(VmInfo { status, .. }) => {
                let VmStatus { state, reason, .. } = status;
                let message = format!("{name}: still {state} after {seconds} s ({reason})");
                Failed::new(ExitStatus::TimedOut, message)
            }
            Err(e) => e,
        }
    }

    /// Calls [`Self::begin`], then [`Self::finish`].
    ///
    /// # Errors
    ///
    /// The errors of both.
    pub fn ask_and_wait(
        &mut self,
        request: &Request,
        name: &str,
        until: Until,
        timeout: Option<Duration>,
    ) -> Result<VmStatus, Failed> {
        self.begin(request, name, until)?;
        self.finish(name, timeout)
    }

    /// Waits until the VM `name` meets a condition.
    ///
    /// # Errors
    ///
    /// The errors of [`Self::ask_and_wait`].
    pub fn wait(
        &mut self,
        name: &str,
        until: Until,
        timeout: Option<Duration>,
    ) -> Result<VmStatus, Failed> {
        let request = wait_for(name, until);
        self.doing = Some(doing(&request, name));
        self.send(&request)?;
        self.finish(name, timeout)
    }

    /// Sends a request whose answer is a VM's status, and returns the status.
    ///
    /// # Errors
    ///
    /// The errors of [`Self::ask`].
    pub fn status(&mut self, request: &Request) -> Result<VmStatus, Failed> {
        match self.ask(request)? {
            Response::Status(status) => Ok(status),
            _ => Err(confused()),
        }
    }

    /// Returns the status of every VM.
    ///
    /// # Errors
    ///
    /// The errors of [`Self::ask`].
    pub fn list(&mut self) -> Result<Vec<VmStatus>, Failed> {
        match self.ask(&Request::List)? {
            Response::List(vms) => Ok(vms),
            _ => Err(confused()),
        }
    }

    /// Returns all facts about one VM.
    ///
    /// # Errors
    ///
    /// The errors of [`Self::ask`].
    pub fn info(&mut self, name: &str) -> Result<VmInfo, Failed> {
        let name = name.to_owned();
        match self.ask(&Request::Info { name })? {
            Response::Info(info) => Ok(*info),
            _ => Err(confused()),
        }
    }

    /// Attaches or detaches a device, and returns its name. `late` is the message if that takes longer than `timeout`.
    ///
    /// # Errors
    ///
    /// The errors of [`Self::ask`], and [`ExitStatus::TimedOut`] after `timeout`.
    pub fn device(
        &mut self,
        request: &Request,
        timeout: Duration,
        late: impl FnOnce() -> String,
    ) -> Result<String, Failed> {
        self.doing = Some("the guest's driver has to answer".to_owned());
        self.send(request)?;
        match self.receive(deadline(timeout)) {
            Ok(Response::Device(name)) => Ok(name),
            Ok(_) => Err(confused()),
            Err(e) if e.exit == ExitStatus::TimedOut => {
                Err(Failed::new(ExitStatus::TimedOut, late()))
            }
            Err(e) => Err(e),
        }
    }

    /// Asks for something and waits for no answer.
    ///
    /// # Errors
    ///
    /// The daemon can't be spoken to.
    pub fn tell(&mut self, request: &Request) -> Result<(), Failed> {
        self.send(request)
    }

    /// Asks for events; [`Self::event`] takes them.
    ///
    /// # Errors
    ///
    /// The daemon can't be spoken to.
    pub fn subscribe(&mut self) -> Result<(), Failed> {
        self.send(&Request::Events)
    }

    /// Waits for the next event, until `until` if there is one.
    ///
    /// # Errors
    ///
    /// The daemon is gone, or it is [`ExitStatus::TimedOut`].
    pub fn event(&mut self, until: Option<Instant>) -> Result<VmStatus, Failed> {
        match self.receive(until)? {
            Response::Event(status) => Ok(status),
            _ => Err(confused()),
        }
    }

    fn send(&mut self, request: &Request) -> Result<(), Failed> {
        Ok(self.link.send(request)?)
    }

    /// Waits for the next message, and shows a user at a terminal that it does.
    fn await_response(&mut self, until: Option<Instant>) -> Result<Response, LinkError> {
        let Some(mut progress) = self.doing.clone().and_then(Progress::begin) else {
            return self.link.receive(until);
        };
        loop {
            let soon = Instant::now() + progress::INTERVAL;
            let next = until.map_or(soon, |until| until.min(soon));
            match self.link.receive(Some(next)) {
                Err(LinkError::TimedOut) if until.is_none_or(|until| Instant::now() < until) => {
                    progress.show();
                }
                other => return other,
            }
        }
    }

    fn receive(&mut self, until: Option<Instant>) -> Result<Response, Failed> {
        match self.await_response(until)? {
            Response::Error(failure) => Err(failure.into()),
            response => Ok(response),
        }
    }
}

/// Says what a request waits for.
fn doing(request: &Request, name: &str) -> String {
    let doing = match request {
        Request::Start { .. } => "starting",
        Request::Stop { .. } => "the guest was asked to power off",
        Request::Kill { .. } => "being killed",
        Request::Pause { .. } => "pausing",
        Request::Resume { .. } => "resuming",
        _ => "waiting",
    };
    format!("{name}: {doing}")
}

/// The moment after a time; `None` for one beyond what a clock can say.
fn deadline(after: Duration) -> Option<Instant> {
    Instant::now().checked_add(after)
}

fn wait_for(name: &str, until: Until) -> Request {
    Request::Wait {
        name: name.to_owned(),
        until,
    }
}

fn confused() -> Failed {
    Failed::new(
        ExitStatus::Failed,
        "the daemon gave an unexpected answer".to_owned(),
    )
}

impl From<LinkError> for Failed {
    fn from(error: LinkError) -> Self {
        let exit = match error {
            LinkError::TimedOut => ExitStatus::TimedOut,
            LinkError::Closed | LinkError::Wire(_) | LinkError::Io(_) => ExitStatus::NoDaemon,
            LinkError::Backlog => ExitStatus::Failed,
        };
        Self::new(exit, format!("daemon: {error}"))
    }
}
