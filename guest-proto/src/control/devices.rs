//! A worker's messages about its devices.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

/// The configuration of a device: TOML text, paths absolute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceTable {
    /// A table `[[disk]]`.
    Disk(String),
    /// A table `[[nic]]`.
    Nic(String),
}

/// A disk of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskStatus {
    /// Name in messages.
    pub name: String,
    /// The image, and behind it its backing files.
    pub files: Vec<DiskFile>,
    /// Size of the disk, in bytes.
    pub size: u64,
    /// Bytes that the guest has read.
    pub read: u64,
    /// Bytes that the guest has written.
    pub written: u64,
    /// Requests that have no answer yet.
    pub in_flight: u32,
    /// Requests that were answered with an error.
    pub errors: u64,
}

/// A network card of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicStatus {
    /// Name in messages.
    pub name: String,
    /// Network, bridge or tap that it is plugged into.
    pub place: String,
    /// Tap device of VM 0 that is the other end of its cable.
    pub tap: String,
    /// MAC address.
    pub mac: String,
    /// Bytes of the largest packet.
    pub mtu: u16,
    /// Whether the cable is plugged in.
    pub is_up: bool,
    /// The mover of frames: `vhost-net`, which is root's kernel, or `worker`.
    pub data_plane: String,
    /// Pairs of queues that the guest uses.
    pub pairs: u16,
    /// Pairs of queues that there are.
    pub max_pairs: u16,
    /// Frames that were lost because the guest had no buffers for them.
    pub lost: u64,
    /// Frames of the guest that were refused because they are malformed.
    pub refused: u64,
}

/// A file of a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskFile {
    /// Its path.
    pub path: String,
    /// Its format.
    pub format: String,
}
