//! A worker's process: how it is started, found again by a later daemon, watched and killed.
//!
//! The daemon holds a pidfd, so that no signal ever goes to a process that only inherited the
//! number. A worker gets its VM's descriptors and no others.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use command_fds::{CommandFdExt, FdMapping};
use guest_proto::control::{
    WORKER_CONSOLE_FD, WORKER_CONTROL_FD, WORKER_LOG_DIR_FD, WORKER_VSOCK_FD,
};
use log::warn;
use rustix::fs::{Mode, OFlags, open};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use super::record::WorkerExit;
use crate::config::check_name;
use crate::file::{FileError, at, make_private_dir};
use crate::logging::Levels;
use crate::proc;

/// Name of a worker's own log in its VM's state directory.
pub(super) const WORKER_LOG: &str = "worker.log";

/// A process: its id, and its start time, which tells it from later processes with the same id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    /// Process id.
    pub(super) pid: u32,
    /// Start time in clock ticks since boot, `proc_pid_stat(5)` field 22.
    pub(super) start_time: u64,
}

/// The record of a worker: its process, and the boot of the root partition in which the process id is valid.
#[derive(Debug, Serialize, Deserialize)]
struct Started {
    boot_id: String,
    worker: Identity,
}

/// A worker process.
#[derive(Debug)]
pub(super) struct Process {
    identity: Identity,
    pidfd: OwnedFd,
    /// Only a worker that this daemon started is its child.
    child: Option<Child>,
}

/// Paths of one VM's sockets.
#[derive(Clone, Debug)]
pub(super) struct Sockets {
    dir: PathBuf,
    vsock: PathBuf,
}

impl Sockets {
    /// Of the VM `name`.
    pub(super) fn new(runtime_dir: &Path, name: &str) -> Self {
        Self {
            dir: runtime_dir.join("vms").join(name),
            vsock: runtime_dir.join("vsock").join(name),
        }
    }

    /// The worker's control socket.
    pub(super) fn control(&self) -> PathBuf {
        self.dir.join("control.sock")
    }

    /// The file that says which process the worker is. It is in memory, where no disk is full, and goes with the sockets.
    fn identity(&self) -> PathBuf {
        self.dir.join("worker.toml")
    }

    /// Finds the worker that an earlier daemon started with these sockets, if it is alive.
    pub(super) fn find_worker(&self) -> Option<Process> {
        let text = fs::read_to_string(self.identity()).ok()?;
        let started: Started = toml::from_str(&text).ok()?;
        match started.boot_id == proc::boot_id() {
            true => Process::find(started.worker),
            false => None,
        }
    }

    /// Returns the path of the console's socket.
    pub(super) fn console(&self) -> PathBuf {
        self.dir.join("console.sock")
    }

    /// The socket by which programs of VM 0 reach the guest. Beside it are those by which the guest
    /// reaches programs of VM 0, which stay when the VM ends.
    pub(super) fn vsock(&self) -> &Path {
        &self.vsock
    }

    /// Connects to the program of VM 0 that listens on a port for the guest. Does not wait for it.
    ///
    /// # Errors
    ///
    /// No program listens, or too many connections wait for the program.
    pub(super) fn connect_to_port(&self, port: u32) -> io::Result<OwnedFd> {
        let mut path = self.vsock.clone().into_os_string();
        path.push(format!("_{port}"));
        connect_at_once(path.as_ref())
    }

    /// Connects to the worker. Does not wait for it.
    ///
    /// # Errors
    ///
    /// The worker has exited, or too many connections wait for it.
    pub(super) fn connect_to_worker(&self) -> io::Result<UnixStream> {
        connect_at_once(&self.control()).map(UnixStream::from)
    }

    fn bind(&self, has_unix_socket: bool) -> io::Result<Listeners> {
        self.remove();
        Ok(Listeners {
            control: listen(&self.control())?,
            console: listen(&self.console())?,
            vsock: has_unix_socket.then(|| listen(&self.vsock)).transpose()?,
        })
    }

    /// Removes them; those of a worker that is gone.
    pub(super) fn remove(&self) {
        // The sockets may not exist. One that can't be removed is an error when it is bound again.
        let _ = fs::remove_dir_all(&self.dir);
        let _ = fs::remove_file(&self.vsock);
    }
}

/// Names of the VMs that have a worker, alive or not, as far as it is on record.
pub(super) fn names_of_workers(runtime_dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(runtime_dir.join("vms"));
    let names = entries.into_iter().flatten().flatten();
    names
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| check_name(name).is_ok())
        .collect()
}

fn connect_at_once(path: &Path) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// The sockets of a worker.
struct Listeners {
    control: UnixListener,
    console: UnixListener,
    vsock: Option<UnixListener>,
}

/// Makes a socket in a directory that only root can enter.
///
/// # Errors
///
/// The file system's, and `AddrInUse` if there is one.
pub(crate) fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(dir) = path.parent() {
        make_private_dir(dir)?;
    }
    UnixListener::bind(path)
}

/// The parameters of a worker's start.
#[derive(Debug)]
pub(super) struct Launch<'a> {
    /// The executable.
    pub(super) program: &'a Path,
    /// Name of the VM.
    pub(super) name: &'a str,
    /// The driver's device.
    pub(super) device: &'a Path,
    /// First user ID of the workers.
    pub(super) first_uid: u32,
    /// Messages that it logs.
    pub(super) log: &'a Levels,
    /// The VM's state directory.
    pub(super) state_dir: &'a Path,
    /// The VM's sockets.
    pub(super) sockets: &'a Sockets,
    /// Whether programs of VM 0 reach the guest by a Unix socket.
    pub(super) has_unix_socket: bool,
}

/// Error: a worker can't be started.
#[derive(Debug, thiserror::Error)]
pub(super) enum LaunchError {
    /// A file or a directory is not as it must be, or the program does not start.
    #[error(transparent)]
    File(#[from] FileError),
    /// The process of this number can't be watched.
    #[error("worker {0}: {1}")]
    Lost(u32, io::Error),
    /// The worker can't be spoken with.
    #[error("worker: {0}")]
    Link(io::Error),
    /// The VM has no configuration that can be written.
    #[error("{0}")]
    Configuration(String),
    /// The VM is gone.
    #[error("no such VM")]
    NoSuchVm,
}

impl Launch<'_> {
    /// Starts a worker and connects to it.
    ///
    /// # Errors
    ///
    /// Fails with [`LaunchError`]; no process is left then.
    pub(super) fn start(&self) -> Result<(Process, UnixStream), LaunchError> {
        let listeners = self.sockets.bind(self.has_unix_socket);
        let listeners = listeners.map_err(at(&self.sockets.dir))?;
        let result = self.spawn(listeners);
        if result.is_err() {
            self.sockets.remove();
        }
        result
    }

    fn spawn(&self, listeners: Listeners) -> Result<(Process, UnixStream), LaunchError> {
        let in_state_dir = at(self.state_dir);
        let log = open_log(self.state_dir).or_else(|e| {
            warn!(
                "{}: {}: {e}; this worker has no log",
                self.name,
                self.state_dir.join(WORKER_LOG).display()
            );
            File::options().write(true).open("/dev/null")
        });
        let log = log.map_err(&in_state_dir)?;
        let also_log = log.try_clone().map_err(&in_state_dir)?;
        let dir = open_log_dir(self.state_dir).map_err(&in_state_dir)?;
        let vsock = listeners.vsock.map(|vsock| (vsock.into(), WORKER_VSOCK_FD));
        let mappings = [
            (listeners.control.into(), WORKER_CONTROL_FD),
            (listeners.console.into(), WORKER_CONSOLE_FD),
            (dir, WORKER_LOG_DIR_FD),
        ];
        let child = Command::new(self.program)
            .arg0("vmctl")
            .arg("worker")
            .arg(self.name)
            .arg("--device")
            .arg(self.device)
            .arg("--first-uid")
            .arg(self.first_uid.to_string())
            .arg("--log")
            .arg(self.log.to_string())
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(also_log)
            // Ctrl-C at the daemon's terminal is not for the VMs.
            .process_group(0)
            .fd_mappings(
                mappings
                    .into_iter()
                    .chain(vsock)
                    .map(|(parent_fd, child_fd)| FdMapping {
                        parent_fd,
                        child_fd,
                    })
                    .collect(),
            )
            .map_err(|e| at(self.program)(io::Error::other(e)))?
            .spawn()
            .map_err(at(self.program))?;
        let mut child = child;
        let watched = watch(child.id()).and_then(|(identity, pidfd)| {
            let started = Started {
                boot_id: proc::boot_id(),
                worker: identity,
            };
            let text = toml::to_string(&started).map_err(io::Error::other)?;
            fs::write(self.sockets.identity(), text)?;
            let stream = UnixStream::connect(self.sockets.control())?;
            Ok((identity, pidfd, stream))
        });
        match watched {
            Ok((identity, pidfd, stream)) => {
                let process = Process {
                    identity,
                    pidfd,
                    child: Some(child),
                };
                Ok((process, stream))
            }
            Err(e) => {
                // The worker is a child of this process that was not waited for, so its id is still valid.
                let _ = child.kill();
                let _ = child.wait();
                Err(LaunchError::Lost(child.id(), e))
            }
        }
    }
}

impl Process {
    /// Finds the worker that an earlier daemon started; `None` if it is gone.
    pub(super) fn find(identity: Identity) -> Option<Self> {
        Self::of_pid(identity.pid).filter(|found| found.identity == identity)
    }

    /// Finds a process by its number alone, which the driver vouches for.
    pub(super) fn of_pid(pid: u32) -> Option<Self> {
        let (identity, pidfd) = watch(pid).ok()?;
        Some(Self {
            identity,
            pidfd,
            child: None,
        })
    }

    /// Returns the process's id and start time.
    pub(super) fn identity(&self) -> Identity {
        self.identity
    }

    /// Kills it at once.
    pub(super) fn kill(&self) {
        // The only failure is that it has gone already.
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
    }

    /// Returns how the process exited. Call it when the pidfd is readable.
    pub(super) fn reap(mut self) -> WorkerExit {
        let Some(Ok(status)) = self.child.as_mut().map(Child::wait) else {
            return WorkerExit::Unknown;
        };
        match (status.code(), status.signal()) {
            (Some(code), _) => WorkerExit::Status(code),
            (None, Some(signal)) => WorkerExit::Signal(signal),
            (None, None) => WorkerExit::Unknown,
        }
    }
}

impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

fn watch(pid: u32) -> io::Result<(Identity, OwnedFd)> {
    let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let raw = raw.ok_or(io::ErrorKind::InvalidInput)?;
    let pidfd = pidfd_open(raw, PidfdFlags::empty())?;
    // Read after the pidfd was opened: if it is the start time we know, so is the pidfd's process.
    let start_time = proc::process(pid)?.start_time;
    Ok((Identity { pid, start_time }, pidfd))
}

/// Name of the directory of a VM's console log in its state directory: all that its worker may write to.
pub(super) const LOG_DIR: &str = "log";

/// Makes the directory of the console's log if there is none.
///
/// # Errors
///
/// The file system's.
pub(super) fn make_log_dir(state_dir: &Path) -> io::Result<()> {
    make_private_dir(&state_dir.join(LOG_DIR))
}

fn open_log_dir(state_dir: &Path) -> io::Result<OwnedFd> {
    make_log_dir(state_dir)?;
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(open(state_dir.join(LOG_DIR), flags, Mode::empty())?)
}

fn open_log(state_dir: &Path) -> io::Result<File> {
    let path = state_dir.join(WORKER_LOG);
    if path.exists() {
        fs::rename(&path, state_dir.join(format!("{WORKER_LOG}.1")))?;
    }
    File::create(path)
}

/// The last line of a worker's log.
pub(super) fn last_words(state_dir: &Path) -> Option<String> {
    let mut file = File::open(state_dir.join(WORKER_LOG)).ok()?;
    let len = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(1024))).ok()?;
    let mut tail = Vec::new();
    file.take(1024).read_to_end(&mut tail).ok()?;
    let text = String::from_utf8_lossy(&tail);
    text.lines()
        .rev()
        .map(str::trim)
        .find(|line| !line.is_empty())
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_process_of_the_same_number_is_another() {
        let (me, _) = watch(std::process::id()).unwrap();
        let found = Process::find(me).unwrap();
        assert_eq!(found.identity(), me);
        let earlier = Identity {
            start_time: me.start_time - 1,
            ..me
        };
        assert!(Process::find(earlier).is_none());
    }

    #[test]
    fn how_a_process_went() {
        let run = |script: &str| {
            let child = Command::new("sh").args(["-c", script]).spawn().unwrap();
            let (identity, pidfd) = watch(child.id()).unwrap();
            let child = Some(child);
            Process {
                identity,
                pidfd,
                child,
            }
        };
        assert_eq!(run("exit 12").reap(), WorkerExit::Status(12));
        let sleeper = run("exec sleep 1000");
        sleeper.kill();
        assert_eq!(sleeper.reap(), WorkerExit::Signal(9));
    }

    #[test]
    fn last_words_are_the_last_line_that_says_something() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(last_words(dir.path()), None);
        open_log(dir.path()).unwrap();
        assert_eq!(last_words(dir.path()), None);
        let text = format!("{}\nfirst\nthe end\n \n", "x".repeat(5000));
        fs::write(dir.path().join(WORKER_LOG), text).unwrap();
        assert_eq!(last_words(dir.path()).as_deref(), Some("the end"));
        // A new life keeps the former one's log.
        open_log(dir.path()).unwrap();
        assert_eq!(last_words(dir.path()), None);
        assert!(dir.path().join("worker.log.1").exists());
    }

    #[test]
    fn a_program_that_is_not_there_leaves_no_socket() {
        let dir = tempfile::tempdir().unwrap();
        let sockets = Sockets::new(dir.path(), "demo");
        let launch = Launch {
            program: Path::new("/no/such/program"),
            name: "demo",
            device: Path::new("/dev/null"),
            first_uid: 1000,
            log: &"info".parse().unwrap(),
            state_dir: dir.path(),
            sockets: &sockets,
            has_unix_socket: true,
        };
        let error = launch.start().unwrap_err();
        assert!(error.to_string().contains("/no/such/program"), "{error}");
        assert!(!sockets.control().exists());
        assert!(!sockets.vsock().exists());
    }
}
