//! The daemon: one event loop that supervises every VM's worker.
//!
//! `record` is a VM's state machine, `store` what survives a restart, `process` a worker
//! process, `vms` all VMs together, `restore` those of an earlier daemon, `start` and `power` what clients ask of them, `supervise` what workers do,
//! `cleaner` what is left of them, `devices` the devices that come and go; this file has the loop and the
//! clients. Nothing here waits for a worker, a client, or a file: every socket is non-blocking, threads look at files that
//! users name (`jobs`), write the state directory (`keeper`) and the log (`journal`), and some answers come later (`Waiting`).
//! Ending the daemon, by whatever signal, leaves the VMs running; the next one finds them.

mod cleaner;
mod devices;
mod inbox;
mod jobs;
mod journal;
mod keeper;
mod listing;
mod opener;
mod power;
mod process;
mod record;
mod redefine;
mod request;
mod resources;
mod restore;
mod start;
mod store;
mod supervise;
mod usage;
mod vms;

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use ::log::{debug, info, warn};
use guest_proto::control::{Request, Response, Role, Until, VmStatus};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{FlockOperation, Mode, flock};
use rustix::io::Errno;
use rustix::process::umask;

use crate::console::log as console_log;
use crate::file::{FileError, at};
use crate::logging::Levels;
use crate::net;
use crate::wire::{Link, LinkError, timespec};
pub(crate) use process::listen;
use vms::{Ticket, Vms};

/// Of the numbers that systemd's `UIDS-GIDS` leaves to nobody.
pub const FIRST_WORKER_UID: u32 = 0x7000_0000;

/// Clients at once; more are turned away.
const MAX_CLIENTS: usize = 64;
/// The time that a worker has to tell its devices.
const DEVICES_TIMEOUT: Duration = Duration::from_secs(2);
/// Period at which CPU time is sampled while a VM is alive.
const SAMPLE_EVERY: Duration = Duration::from_secs(5);

/// Directory of definitions and logs, unless the user names another one.
pub const STATE_DIR: &str = "/var/lib/microvisor";

/// Options of `vmctl daemon`.
#[derive(Clone, Debug, clap::Args)]
pub struct DaemonArgs {
    /// Directory of definitions and logs
    #[arg(long, value_name = "DIR", default_value = STATE_DIR)]
    pub state_dir: PathBuf,
    /// The driver's device
    #[arg(long, value_name = "PATH", default_value = "/dev/microvisor")]
    pub device: PathBuf,
    /// First of 256 user and group IDs that no account has: the worker of partition N runs as this one plus N
    #[arg(long, value_name = "UID", default_value_t = FIRST_WORKER_UID,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(u32::MAX - 256)))]
    pub first_uid: u32,
    /// Messages that the daemon and its workers log: LEVEL and MODULE=LEVEL, separated by commas. A LEVEL is off, error,
    /// warn, info, debug or trace, a MODULE daemon, worker or one below them (worker::virtio)
    #[arg(long, value_name = "LEVELS", default_value = "info")]
    pub log: Levels,
    /// Executable started as "PATH worker NAME --device DEVICE --first-uid UID --log LEVELS" for each VM
    #[arg(
        long,
        value_name = "PATH",
        default_value = "/proc/self/exe",
        hide = true
    )]
    pub worker: PathBuf,
    /// The workers need no driver: a test's
    #[arg(long, hide = true)]
    pub without_driver: bool,
}

/// A VM's definition in a state directory.
pub(crate) fn definition_of(state_dir: &Path, name: &str) -> PathBuf {
    state_dir.join(name).join(store::CONFIG)
}

/// A VM's directory in a state directory, and in it the log of its console and that of its worker.
pub(crate) fn logs_of(state_dir: &Path, name: &str) -> (PathBuf, PathBuf, PathBuf) {
    let dir = state_dir.join(name);
    let console = dir.join(process::LOG_DIR).join(console_log::CURRENT);
    let worker = dir.join(process::WORKER_LOG);
    (dir, console, worker)
}

/// The control socket in a runtime directory.
pub fn socket_path(runtime_dir: &Path) -> PathBuf {
    runtime_dir.join("control.sock")
}

/// Error: there is no daemon.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// A directory or a socket of the daemon's can't be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// Another daemon has the directory.
    #[error("{}: another daemon runs there", .0.display())]
    Taken(PathBuf),
    /// A thread of this name is not started.
    #[error("thread \"{0}\": {1}")]
    Thread(&'static str, io::Error),
    /// There is no event descriptor.
    #[error("event descriptor: {0}")]
    Event(io::Error),
    /// The daemon can't wait for its descriptors.
    #[error("poll: {0}")]
    Poll(Errno),
}

/// Runs the daemon until it is killed.
///
/// # Errors
///
/// Fails with [`DaemonError`].
pub fn main(args: &DaemonArgs, runtime_dir: &Path) -> Result<(), DaemonError> {
    journal::begin(&args.log);
    Daemon::start(args, runtime_dir)?.serve()
}

#[derive(Debug)]
struct Daemon {
    listener: UnixListener,
    /// Held for their locks: one daemon per runtime directory, and per state directory.
    _locks: [File; 2],
    vms: Vms,
    clients: Vec<Client>,
    next_client: u64,
}

#[derive(Debug)]
struct Client {
    id: u64,
    link: Link,
    /// The event that the client waits for. Its further requests stay unread.
    waiting: Option<Waiting>,
    events: bool,
}

/// The event that a client waits for.
#[derive(Debug)]
enum Waiting {
    /// A VM's condition.
    Until(String, Until),
    /// The devices of a VM. Without them it has its answer at this time.
    Devices(String, Instant),
    /// The end of an attachment or detachment of a VM's device.
    Device(String, String),
    /// The answer to a request, or its way to the answer.
    Ticket(Ticket),
}

/// The owner of a descriptor in the loop.
#[derive(Clone, Debug)]
enum Source {
    Listener,
    Client(u64),
    WorkerLink(String),
    WorkerExit(String),
    Cleaner,
    Jobs,
    Keeper,
}

impl Client {
    fn deadline(&self) -> Option<Instant> {
        match &self.waiting {
            Some(Waiting::Devices(_, deadline)) => Some(*deadline),
            _ => None,
        }
    }
}

impl Daemon {
    fn start(args: &DaemonArgs, runtime_dir: &Path) -> Result<Self, DaemonError> {
        // Other users have files below the first one: the programs of networks.
        let locks = [lock(runtime_dir, 0o711)?, lock(&args.state_dir, 0o700)?];
        let vms = Vms::load(args, runtime_dir)?;
        let socket = socket_path(runtime_dir);
        let in_socket = at(&socket);
        // The locks are ours, so a socket that is there is a dead daemon's. The new one appears
        // under its name once it listens and is private.
        let temporary = runtime_dir.join("control.sock.new");
        let _ = fs::remove_file(&temporary);
        let mask = umask(Mode::from_raw_mode(0o177));
        let listener = UnixListener::bind(&temporary);
        umask(mask);
        let listener = listener.map_err(&in_socket)?;
        listener.set_nonblocking(true).map_err(&in_socket)?;
        fs::rename(&temporary, &socket).map_err(in_socket)?;
        thread::Builder::new()
            .name("networks".to_owned())
            .spawn(|| net::keep(|line| warn!("{line}")))
            .map_err(|e| DaemonError::Thread("networks", e))?;
        info!("listening on {}", socket.display());
        Ok(Self {
            listener,
            _locks: locks,
            vms,
            clients: Vec::new(),
            next_client: 0,
        })
    }

    fn serve(&mut self) -> Result<(), DaemonError> {
        loop {
            for source in self.wait()? {
                match source {
                    Source::Listener => self.accept(),
                    Source::Client(id) => self.client_ready(id),
                    Source::WorkerLink(name) => self.vms.worker_spoke(&name),
                    Source::WorkerExit(name) => self.vms.worker_exited(&name),
                    Source::Cleaner => {
                        for name in self.vms.cleaner.finished() {
                            self.vms.cleaned_up(&name);
                        }
                    }
                    Source::Jobs => {
                        for outcome in self.vms.jobs.take() {
                            self.vms.job_ended(outcome);
                        }
                    }
                    Source::Keeper => {
                        for done in self.vms.keeper.take() {
                            self.vms.kept(done);
                        }
                    }
                }
                self.tell_changes();
            }
            self.vms.tick(Instant::now());
            self.tell_changes();
            self.answer_without_devices(Instant::now());
        }
    }

    /// Sleeps until something is ready.
    fn wait(&self) -> Result<Vec<Source>, DaemonError> {
        let mut sources = vec![
            Source::Listener,
            Source::Cleaner,
            Source::Jobs,
            Source::Keeper,
        ];
        let mut fds = vec![
            PollFd::new(&self.listener, PollFlags::IN),
            PollFd::new(&self.vms.cleaner, PollFlags::IN),
            PollFd::new(&self.vms.jobs, PollFlags::IN),
            PollFd::new(&self.vms.keeper, PollFlags::IN),
        ];
        for client in &self.clients {
            let mut interest = client.link.interest();
            if client.waiting.is_some() {
                // POLLHUP comes unasked; reading on would only fill a buffer.
                interest.remove(PollFlags::IN);
            }
            sources.push(Source::Client(client.id));
            fds.push(PollFd::from_borrowed_fd(client.link.as_fd(), interest));
        }
        for (name, worker) in self.vms.workers() {
            if let Some(link) = worker.link() {
                sources.push(Source::WorkerLink(name.to_owned()));
                fds.push(PollFd::from_borrowed_fd(link.as_fd(), link.interest()));
            }
            sources.push(Source::WorkerExit(name.to_owned()));
            fds.push(PollFd::from_borrowed_fd(worker.pidfd(), PollFlags::IN));
        }
        let now = Instant::now();
        let deadlines = self.clients.iter().filter_map(Client::deadline);
        let timeouts = deadlines.map(|at| at.saturating_duration_since(now));
        let timeout = timeouts.chain(self.vms.next_tick(now)).min().map(timespec);
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(Vec::new()),
            Err(e) => return Err(DaemonError::Poll(e)),
        }
        let ready = fds.iter().map(|fd| !fd.revents().is_empty());
        Ok(sources
            .into_iter()
            .zip(ready)
            .filter_map(|(source, ready)| ready.then_some(source))
            .collect())
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            if self.clients.len() >= MAX_CLIENTS {
                continue;
            }
            if let Ok(link) = Link::new(stream, Role::Daemon, Role::Cli) {
                self.next_client += 1;
                self.clients.push(Client {
                    id: self.next_client,
                    link,
                    waiting: None,
                    events: false,
                });
            }
        }
    }

    fn client_ready(&mut self, id: u64) {
        let Some(at) = self.clients.iter().position(|c| c.id == id) else {
            return;
        };
        match serve_client(&mut self.clients[at], &mut self.vms) {
            Ok(()) => {}
            Err(LinkError::Closed) => drop(self.clients.swap_remove(at)),
            Err(e) => {
                warn!("a client was cut off: {e}");
                self.clients.swap_remove(at);
            }
        }
    }

    /// Answers those who have waited long enough for a worker's devices.
    fn answer_without_devices(&mut self, now: Instant) {
        self.clients.retain_mut(|client| match &client.waiting {
            Some(Waiting::Devices(name, deadline)) if *deadline <= now => {
                let answer = request::info(&mut self.vms, name);
                client.waiting = None;
                client.link.send(&answer).is_ok()
            }
            _ => true,
        });
    }

    /// Answers those who wait for what has changed, and those whose requests have come to something.
    fn tell_changes(&mut self) {
        loop {
            self.tell_those_who_wait();
            let answers = self.vms.take_answers();
            if answers.is_empty() {
                return;
            }
            for (ticket, answer) in answers {
                self.answer_ticket(ticket, &answer);
            }
        }
    }

    fn answer_ticket(&mut self, ticket: Ticket, answer: &Response) {
        let asked = |client: &&mut Client| matches!(client.waiting, Some(Waiting::Ticket(t)) if t == ticket);
        let Some(client) = self.clients.iter_mut().find(asked) else {
            return;
        };
        client.waiting = None;
        // A client that can't be written to is noticed below.
        let _ = client.link.send(answer);
        let id = client.id;
        // The client's next request may have been read already.
        self.client_ready(id);
    }

    fn tell_those_who_wait(&mut self) {
        for change in self.vms.take_changes() {
            let status = &change.status;
            self.clients.retain_mut(|client| {
                let answer = match &client.waiting {
                    Some(Waiting::Until(name, until)) if *name == change.name => {
                        request::met(*until, &change)
                    }
                    Some(Waiting::Device(name, device)) if *name == change.name => {
                        request::device_met(device, &change)
                    }
                    Some(Waiting::Devices(name, _)) if *name == change.name => {
                        let is_alive = |status: &VmStatus| status.state.is_alive();
                        let is_over = !status.as_ref().is_some_and(is_alive);
                        (change.has_devices || is_over).then(|| request::info(&mut self.vms, name))
                    }
                    None if client.events && change.news => status.clone().map(Response::Event),
                    _ => None,
                };
                let Some(answer) = answer else { return true };
                client.waiting = None;
                client.link.send(&answer).is_ok()
            });
        }
    }
}

/// Makes a directory, and locks it for this daemon.
fn lock(dir: &Path, mode: u32) -> Result<File, DaemonError> {
    let failed = at(dir);
    fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(dir)
        .map_err(&failed)?;
    let file = File::open(dir).map_err(&failed)?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)
        .map_err(|_| DaemonError::Taken(dir.to_owned()))?;
    Ok(file)
}

/// Reads a client's requests and answers them.
fn serve_client(client: &mut Client, vms: &mut Vms) -> Result<(), LinkError> {
    client.link.flush().or_else(|e| match e {
        // Requests that the client sent before it hung up still count.
        LinkError::Closed => Ok(()),
        e => Err(e),
    })?;
    client.link.fill()?;
    if client.waiting.is_some() && client.link.is_closed() {
        return Err(LinkError::Closed);
    }
    while client.waiting.is_none()
        && let Some(asked) = client.link.message::<Request>()?
    {
        debug!("client {}: {asked:?}", client.id);
        match request::answer(vms, asked) {
            request::Answer::Now(response) => client.link.send(&*response)?,
            request::Answer::When(name, until) => {
                client.waiting = Some(Waiting::Until(name, until));
            }
            request::Answer::Info(name) => {
                let deadline = Instant::now() + DEVICES_TIMEOUT;
                client.waiting = Some(Waiting::Devices(name, deadline));
            }
            request::Answer::Device(name, device) => {
                client.waiting = Some(Waiting::Device(name, device));
            }
            request::Answer::Later(ticket) => client.waiting = Some(Waiting::Ticket(ticket)),
            request::Answer::Events => client.events = true,
        }
    }
    Ok(())
}
