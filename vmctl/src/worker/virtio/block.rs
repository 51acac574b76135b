//! A disk (virtio 1.2 §5.2), whose requests are carried out on an [`Image`].
//!
//! A queue's thread takes the driver's requests (`request`) and carries out those that root's page
//! cache can serve. If one of them has to wait nevertheless, another thread takes the queue over
//! (`lead`). Requests that are known to wait for root's devices go to threads that wait at once
//! (`crew`).
//!
//! Before a write is answered, the image's metadata is written to its file. The data of an answered
//! write is therefore with root's kernel and survives the worker. A flush makes it survive root.

mod crew;
mod flights;
mod lead;
mod request;
mod server;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use guest_proto::control::DiskStatus;
use log::error;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};

use self::server::{Disk, Server};
use super::{Device, Kind, Serve, read_bytes};
use crate::config::{OnError, OnTimeout};
use crate::disk::{Image, SECTOR};
use crate::worker::stall::Stalls;

/// Largest size of a queue.
const QUEUE_SIZE: u16 = 256;
/// Buffers of a request: all descriptors of a queue, less those of the header and the status.
const MAX_SEGMENTS: u32 = QUEUE_SIZE as u32 - 2;
/// Ranges of one discard, and sectors of a range, at most.
const MAX_RANGES: u32 = 32;
const MAX_RANGE: u32 = (1 << 30) / SECTOR as u32;
/// Sectors of a physical block, as a power of two. Smaller writes make root read the block first.
const PHYSICAL_BLOCK_EXPONENT: u8 = 3;

/// A disk's settings.
#[derive(Clone, Debug)]
pub struct Options {
    /// Name in the log.
    pub name: String,
    /// Serial number, of at most 20 bytes.
    pub serial: String,
    /// Number of queues.
    pub queues: u16,
    /// A write is durable before it is answered.
    pub writethrough: bool,
    /// The policy when root has no space.
    pub on_enospc: OnError,
    /// The policy after any other error of the image.
    pub on_error: OnError,
    /// The time that root has for a request.
    pub io_timeout: Duration,
    /// The policy for a request that takes root longer.
    pub on_timeout: OnTimeout,
}

/// The device.
#[derive(Debug)]
pub struct Block {
    disk: Arc<Disk>,
    queues: Vec<u16>,
    config: [u8; 60],
}

impl Block {
    /// Makes a disk of `image`.
    pub fn new(image: Image, options: Options, stalls: Arc<Stalls>) -> Self {
        let queues = vec![QUEUE_SIZE; usize::from(options.queues.max(1))];
        Self {
            config: config(image.capacity() / SECTOR, queues.len() as u16),
            disk: Arc::new(Disk::new(image, options, stalls)),
            queues,
        }
    }

    /// Returns the view of the disk that `vmctl info` shows.
    pub fn monitor(&self) -> Monitor {
        Monitor(Arc::clone(&self.disk))
    }
}

/// The statistics of a disk, which can be read while its queues are served.
#[derive(Clone, Debug)]
pub struct Monitor(Arc<Disk>);

impl Monitor {
    /// Returns the disk's name.
    pub fn name(&self) -> &str {
        &self.0.options.name
    }

    /// Returns the disk's status.
    pub fn status(&self) -> DiskStatus {
        self.0.status()
    }
}

/// Error: a request is not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    Failed,
    Unsupported,
}

/// Returns `struct virtio_blk_config` (§5.2.4).
fn config(sectors: u64, queues: u16) -> [u8; 60] {
    let mut config = [0; 60];
    let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &sectors.to_le_bytes());
    put(12, &MAX_SEGMENTS.to_le_bytes());
    put(20, &(SECTOR as u32).to_le_bytes());
    put(24, &[PHYSICAL_BLOCK_EXPONENT]);
    put(26, &(1u16 << PHYSICAL_BLOCK_EXPONENT).to_le_bytes());
    put(34, &queues.to_le_bytes());
    put(36, &MAX_RANGE.to_le_bytes());
    put(40, &MAX_RANGES.to_le_bytes());
    put(44, &(1u32 << PHYSICAL_BLOCK_EXPONENT).to_le_bytes());
    put(48, &MAX_RANGE.to_le_bytes());
    put(52, &MAX_RANGES.to_le_bytes());
    put(56, &[1]);
    config
}

impl Device for Block {
    fn kind(&self) -> Kind {
        Kind::Block
    }

    fn name(&self) -> &str {
        &self.disk.options.name
    }

    fn features(&self) -> u64 {
        let mut features = 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_BLK_SIZE
            | 1 << VIRTIO_BLK_F_TOPOLOGY
            | 1 << VIRTIO_BLK_F_MQ;
        if !self.disk.options.writethrough {
            features |= 1 << VIRTIO_BLK_F_FLUSH;
        }
        features
            | match self.disk.image.is_read_only() {
                true => 1 << VIRTIO_BLK_F_RO,
                false => 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES,
            }
    }

    fn queues(&self) -> &[u16] {
        &self.queues
    }

    fn read_config(&self, at: usize, bytes: &mut [u8]) {
        read_bytes(&self.config, at, bytes);
    }

    fn server(&mut self, _index: u16, _features: u64) -> Box<dyn Serve> {
        Box::new(Server(Arc::clone(&self.disk)))
    }

    fn close(&mut self) {
        if let Err(e) = self.disk.image.flush() {
            error!("{}: {e}", self.disk.options.name);
        }
    }
}
