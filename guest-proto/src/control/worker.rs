//! Messages between the daemon and a worker, and what a worker is started with.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::{DeviceTable, DiskStatus, NicStatus, VmState};

/// File descriptor of the worker's control listener (a Unix stream socket).
pub const WORKER_CONTROL_FD: i32 = 3;
/// File descriptor of the worker's console listener (a Unix stream socket of raw bytes).
pub const WORKER_CONSOLE_FD: i32 = 4;
/// File descriptor of the directory of the VM's console log.
pub const WORKER_LOG_DIR_FD: i32 = 5;
/// File descriptor of the listener (a Unix stream socket) by which programs of VM 0 reach the guest's socket
/// device. It is open only if the worker serves such a device.
pub const WORKER_VSOCK_FD: i32 = 6;

/// A message of the daemon's to a worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WorkerCommand {
    /// Builds the VM and runs it. Once, first, to a new worker.
    Start {
        /// TOML text, paths absolute.
        config: String,
    },
    /// Says the present state: a daemon that came back asks. Answered by `State` (and `Ready`
    /// before it, if there is a partition).
    Report,
    /// Holds the virtual CPUs → `State(Paused)`.
    Pause,
    /// Lets them go on, or retries stalled I/O → `State(Running)`.
    Resume,
    /// Presses the ACPI power button. Has no answer, but for `Refused`.
    PowerButton,
    /// Asks for the disks and network cards → `Devices`.
    Devices,
    /// Adds a device. Its open files come along: a disk's image and the backing files, in their order, locked;
    /// a network card's queues of the tap and, if there are as many more, of vhost-net → `Attached`, or
    /// `DeviceRefused`.
    Attach {
        /// Name of the device.
        name: String,
        /// The device, with the name; a disk with the format, a network card with the address, the pairs of
        /// queues and the MTU.
        device: DeviceTable,
        /// Number of files that come along.
        files: u32,
    },
    /// Asks the guest to give up a device → `Detached` when it has, or `DeviceRefused`.
    Detach {
        /// Name of the device.
        name: String,
    },
    /// Plugs the cable of a network card in or out. Has no answer.
    SetLink {
        /// Name of the network card.
        name: String,
        /// Whether the cable is plugged in.
        is_up: bool,
    },
    /// The outcome of the worker's `Connect`. The connected socket comes along, if there is one.
    Connected {
        /// Number of the request.
        request: u64,
        /// Number of files that come along: 1, or 0 if nobody listens.
        files: u32,
    },
    /// Tells the size of the terminal at the console. Has no answer.
    Resize {
        /// Columns.
        columns: u16,
        /// Rows.
        rows: u16,
    },
}

/// A message of a worker's to the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WorkerEvent {
    /// The partition exists.
    Ready {
        /// Its id.
        partition: u64,
        /// Names of its disks and network cards.
        devices: Vec<String>,
    },
    /// The state changed, to one that is alive.
    State {
        /// New state.
        state: VmState,
        /// Why; never blank.
        reason: String,
        /// The virtual CPUs are held until `Resume`.
        is_held: bool,
    },
    /// A command could not be done; the state is what it was.
    Refused {
        /// One line.
        reason: String,
    },
    /// The VM is over. The worker has given back what it had (or leaves it to the daemon, which
    /// destroys the partition anyway) and exits.
    Ended {
        /// How.
        cause: EndCause,
        /// Why; never blank: "guest powered off", "triple fault at rip 0x…".
        reason: String,
    },
    /// The disks and network cards as they are now, in the order of the configuration.
    Devices {
        /// The disks.
        disks: Vec<DiskStatus>,
        /// The network cards.
        nics: Vec<NicStatus>,
    },
    /// The VM has a device more.
    Attached {
        /// Name of the device.
        name: String,
    },
    /// The VM has a device less; its files are closed.
    Detached {
        /// Name of the device.
        name: String,
    },
    /// The guest connects to a port of VM 0: asks for a connection to the Unix socket of that port → `Connected`.
    Connect {
        /// Number of the request.
        request: u64,
        /// The port.
        port: u32,
    },
    /// A device can't be attached or detached.
    DeviceRefused {
        /// Name of the device.
        name: String,
        /// One line.
        reason: String,
    },
}

/// How a VM ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EndCause {
    /// The guest powered off → `Stopped`.
    PoweredOff,
    /// The guest wants a reboot → a new worker, or `Stopped` if its configuration says so.
    Rebooted,
    /// The guest died: triple fault, panic → `Crashed`.
    Crashed,
    /// It could not be built, and never ran: kernel not readable, no memory → `Crashed`.
    StartFailed,
    /// The worker's own error → `Crashed`.
    Failed,
}
