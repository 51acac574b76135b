//! Control messages: CLI → daemon, and daemon ↔ worker.
//!
//! Both speak over Unix stream sockets. Each side sends a [`Hello`] first, a fixed form that never
//! changes, so that two versions can always tell each other who they are; then come frames: a
//! little-endian `u32` length, and a postcard message of that length. The CLI sends a [`Request`]
//! and gets one [`Response`] each; the daemon sends [`WorkerCommand`]s and the worker sends
//! [`WorkerEvent`]s whenever it likes. Configurations travel as TOML text, which grows without a
//! new version. Any other change of a message is a new [`CONTROL_VERSION`].

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use serde::{Deserialize, Serialize};

mod devices;
mod worker;

pub use devices::{DeviceTable, DiskFile, DiskStatus, NicStatus};
pub use worker::{
    EndCause, WORKER_CONSOLE_FD, WORKER_CONTROL_FD, WORKER_LOG_DIR_FD, WORKER_VSOCK_FD,
    WorkerCommand, WorkerEvent,
};

/// Version of every message in this module. Both ends must have the same.
pub const CONTROL_VERSION: u32 = 6;

/// Longest frame, in bytes. A longer one is refused before anything is allocated for it.
pub const MAX_FRAME: usize = 1 << 20;

/// Longest name of a VM, so that it fits `CreateVm::name` with its NUL.
pub const MAX_NAME: usize = 47;

/// The first message of each side: magic, version, role. 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The sender's [`CONTROL_VERSION`].
    pub version: u32,
    /// The role of the sender.
    pub role: Role,
}

/// The role of one end of a control socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Role {
    /// The command line.
    Cli = 1,
    /// The daemon.
    Daemon = 2,
    /// A worker.
    Worker = 3,
}

impl Hello {
    /// Bytes on the wire.
    pub const SIZE: usize = 16;
    const MAGIC: [u8; 8] = *b"MVcontrl";

    /// This build's greeting.
    pub const fn new(role: Role) -> Self {
        Self {
            version: CONTROL_VERSION,
            role,
        }
    }

    /// Its wire form.
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[..8].copy_from_slice(&Self::MAGIC);
        bytes[8..12].copy_from_slice(&self.version.to_le_bytes());
        bytes[12..].copy_from_slice(&(self.role as u32).to_le_bytes());
        bytes
    }

    /// Reads a peer's greeting and checks that it is `expected` and speaks this version.
    ///
    /// # Errors
    ///
    /// [`WireError::NotControl`] for another protocol or role, [`WireError::Version`] for another
    /// version.
    pub fn check(bytes: &[u8; Self::SIZE], expected: Role) -> Result<(), WireError> {
        if bytes[..8] != Self::MAGIC {
            return Err(WireError::NotControl);
        }
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        if word(8) != CONTROL_VERSION {
            return Err(WireError::Version {
                ours: CONTROL_VERSION,
                theirs: word(8),
            });
        }
        if word(12) != expected as u32 {
            return Err(WireError::NotControl);
        }
        Ok(())
    }
}

/// An error in received bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WireError {
    /// The peer speaks something else, or has another role.
    NotControl,
    /// The peer has another version.
    Version {
        /// This side's.
        ours: u32,
        /// The peer's.
        theirs: u32,
    },
    /// A frame is longer than [`MAX_FRAME`].
    TooLong(usize),
    /// A frame does not hold a message of the expected type.
    Malformed,
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotControl => write!(f, "the peer does not speak Microvisor's control protocol"),
            Self::Version { ours, theirs } => write!(
                f,
                "control protocol versions differ: this side has {ours}, the peer has {theirs}"
            ),
            Self::TooLong(len) => write!(f, "a control frame of {len} bytes is too long"),
            Self::Malformed => write!(f, "a control frame is malformed"),
        }
    }
}

impl core::error::Error for WireError {}

/// Appends `message` to `out` as one frame.
///
/// # Errors
///
/// [`WireError::TooLong`] if it does not fit a frame; `out` is then unchanged.
pub fn encode<T: Serialize>(message: &T, out: &mut Vec<u8>) -> Result<(), WireError> {
    let body = postcard::to_allocvec(message).map_err(|_| WireError::Malformed)?;
    if body.len() > MAX_FRAME {
        return Err(WireError::TooLong(body.len()));
    }
    out.extend_from_slice(&(body.len() as u32).to_le_bytes());
    out.extend_from_slice(&body);
    Ok(())
}

/// Takes the first frame off `buffer`; `None` until a whole one is there.
///
/// # Errors
///
/// [`WireError`] if the frame is too long or holds something else; the stream is then useless.
pub fn decode<T: for<'a> Deserialize<'a>>(buffer: &mut Vec<u8>) -> Result<Option<T>, WireError> {
    let Some(header) = buffer.first_chunk::<4>() else {
        return Ok(None);
    };
    let len = u32::from_le_bytes(*header) as usize;
    if len > MAX_FRAME {
        return Err(WireError::TooLong(len));
    }
    let Some(body) = buffer.get(4..4 + len) else {
        return Ok(None);
    };
    let (message, rest) = postcard::take_from_bytes(body).map_err(|_| WireError::Malformed)?;
    if !rest.is_empty() {
        return Err(WireError::Malformed);
    }
    buffer.drain(..4 + len);
    Ok(Some(message))
}

/// State of a VM, as every listing shows it, always beside a reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VmState {
    /// Never started since it was defined.
    Defined,
    /// The worker builds it.
    Starting,
    /// Its virtual CPUs run.
    Running,
    /// Its virtual CPUs are held.
    Paused,
    /// Being killed.
    Stopping,
    /// It ended as its guest or its user wanted.
    Stopped,
    /// It ended otherwise, or could not start.
    Crashed,
    /// Root does not carry out a device's request. The virtual CPUs are held until `resume`, or run
    /// on, as the configuration of the device says.
    IoStalled,
}

impl VmState {
    /// Every state.
    pub const ALL: [Self; 8] = [
        Self::Defined,
        Self::Starting,
        Self::Running,
        Self::Paused,
        Self::Stopping,
        Self::Stopped,
        Self::Crashed,
        Self::IoStalled,
    ];

    /// Its name in listings.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Defined => "defined",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Crashed => "crashed",
            Self::IoStalled => "io-stalled",
        }
    }

    /// Whether a worker stands behind it.
    pub const fn is_alive(self) -> bool {
        match self {
            Self::Starting | Self::Running | Self::Paused | Self::Stopping | Self::IoStalled => {
                true
            }
            Self::Defined | Self::Stopped | Self::Crashed => false,
        }
    }
}

impl fmt::Display for VmState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A request of the CLI's. Each is answered at once, except for `Wait`, `Events`, `Attach` and `Detach`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Asks for facts of the daemon → `Daemon`.
    Ping,
    /// Defines a VM from a configuration whose paths are absolute → `Status`.
    Define {
        /// TOML text.
        config: String,
    },
    /// Starts a VM: → `Status` with `Starting`; `Wait` tells the outcome.
    Start {
        /// Name.
        name: String,
    },
    /// Presses the power button, or does so once the VM runs → `Status`.
    Stop {
        /// Name.
        name: String,
        /// The VM is started again when the guest has powered off.
        starts_again: bool,
    },
    /// Ends a VM at once; one that has ended stays as it is → `Status`.
    Kill {
        /// Name.
        name: String,
    },
    /// Holds the virtual CPUs, or does so once the VM runs → `Status`.
    Pause {
        /// Name.
        name: String,
    },
    /// Lets them go on → `Status`.
    Resume {
        /// Name.
        name: String,
    },
    /// Withdraws what was asked by `Stop` and not done yet → `Status`.
    Withdraw {
        /// Name.
        name: String,
    },
    /// Removes a VM that is not alive, with its logs → `Done`.
    Delete {
        /// Name.
        name: String,
    },
    /// → `List`.
    List,
    /// → `Info`.
    Info {
        /// Name.
        name: String,
    },
    /// Answers when the VM meets the condition → `Status`.
    Wait {
        /// Name.
        name: String,
        /// The event to wait for.
        until: Until,
    },
    /// Answers with one `Event` per change of any VM's state until the CLI hangs up.
    Events,
    /// Adds a device to a VM and its configuration. Answers when the VM has it → `Device`.
    Attach {
        /// Name of the VM.
        name: String,
        /// The device.
        device: DeviceTable,
    },
    /// Takes a device from a VM and its configuration. Answers when the guest has given it up → `Device`.
    Detach {
        /// Name of the VM.
        name: String,
        /// Name of the device.
        device: String,
    },
    /// Changes a key of a VM's configuration, also while the VM runs → `Status`.
    Set {
        /// Name of the VM.
        name: String,
        /// `key=value`.
        setting: String,
    },
    /// Tells the size of the terminal at a VM's console → `Done`, also if its console has no size.
    Resize {
        /// Name of the VM.
        name: String,
        /// Columns.
        columns: u16,
        /// Rows.
        rows: u16,
    },
    /// Gives a VM that is not alive another name → `Status`.
    Rename {
        /// Name.
        name: String,
        /// New name.
        to: String,
    },
    /// Gives a VM that is not alive another configuration, with the same name → `Status`.
    Redefine {
        /// Name.
        name: String,
        /// TOML text, paths absolute.
        config: String,
    },
}

/// The event that `Request::Wait` waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Until {
    /// It is no longer `Starting`.
    Started,
    /// It is in this state, or it is no longer alive.
    State(VmState),
    /// It is no longer alive.
    Ended,
    /// It has done what `Stop` with `starts_again` asked, or it is no longer alive.
    Rebooted,
}

/// An answer of the daemon's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Response {
    /// Done.
    Done,
    /// Not done.
    Error(Failure),
    /// The VM's state now.
    Status(VmStatus),
    /// Every VM, by name.
    List(Vec<VmStatus>),
    /// All about one.
    Info(Box<VmInfo>),
    /// The daemon.
    Daemon(DaemonInfo),
    /// A state changed.
    Event(VmStatus),
    /// The device with this name was attached or detached.
    Device(String),
}

/// Why a request failed; decides the CLI's exit code.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The kind of the failure.
    pub kind: FailureKind,
    /// One line that names the thing and what to do next.
    pub message: String,
}

/// Kinds of failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// The configuration is wrong.
    Config,
    /// No VM has this name.
    NotFound,
    /// The VM exists, or is not in a state that allows this.
    State,
    /// The machine has too little of something.
    Resources,
    /// The microvisor or its driver is missing.
    Platform,
    /// The VM ended while something was to be done with it.
    Ended,
    /// Anything else.
    Internal,
}

/// One line of `vmctl list`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VmStatus {
    /// Partition id while there is one. Root is 0.
    pub id: Option<u64>,
    /// Name.
    pub name: String,
    /// State.
    pub state: VmState,
    /// Why it is in that state; never blank.
    pub reason: String,
    /// Virtual CPUs; root: physical ones; 0 if its definition can't be read.
    pub vcpus: u32,
    /// RAM in bytes; 0 if its definition can't be read.
    pub memory: u64,
    /// Per cent of one CPU lately; `None` while there is no worker.
    pub cpu_percent: Option<f32>,
    /// Milliseconds since it began to run; `None` while it is not alive.
    pub uptime_ms: Option<u64>,
    /// Milliseconds since it was asked to power off, while it has not done so.
    pub stop_asked_ms: Option<u64>,
    /// Milliseconds since it was asked to power off and boot again, while it has not done so.
    pub reboot_asked_ms: Option<u64>,
    /// It will be paused as soon as it runs.
    pub pause_asked: bool,
}

/// The contents of `vmctl info`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VmInfo {
    /// As in the list.
    pub status: VmStatus,
    /// Its configuration, TOML; `None` if its definition can't be read.
    pub config: Option<String>,
    /// Process id of the worker.
    pub worker: Option<u32>,
    /// Resident bytes of the worker's own, without guest RAM.
    pub worker_rss: Option<u64>,
    /// Bytes of guest RAM that the guest has touched.
    pub memory_used: Option<u64>,
    /// How often the guest rebooted since it was started.
    pub reboots: u32,
    /// Path of the console socket.
    pub console: String,
    /// Path of the Unix socket by which programs of VM 0 reach the guest, if the VM has one.
    pub vsock: Option<String>,
    /// Path of the console log.
    pub console_log: String,
    /// Path of the worker's own log.
    pub worker_log: String,
    /// Its disks, as the worker has them; empty without a worker, or if it does not answer.
    pub disks: Vec<DiskStatus>,
    /// Its network cards, likewise.
    pub nics: Vec<NicStatus>,
}

/// Facts of the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DaemonInfo {
    /// Version of the package.
    pub version: String,
    /// Process id.
    pub pid: u32,
    /// Where definitions and logs are.
    pub state_dir: String,
    /// Where sockets are.
    pub runtime_dir: String,
}

#[cfg(test)]
mod tests;
