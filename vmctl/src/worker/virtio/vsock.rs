//! A socket device (virtio 1.2 §5.10): streams between programs in the guest and programs in VM 0.
//!
//! If root's kernel serves the device (`vhost`), guests and VM 0 have addresses of `vsock(7)`. Otherwise the worker
//! does, with Unix sockets in VM 0 as Firecracker has them: who connects to the VM's socket and writes
//! `CONNECT 52` reaches port 52 of the guest, and the guest's connection to port 52 of CID 2 reaches the
//! socket of that name with `_52` behind it. The worker's sandbox lets it make no connection, so the daemon makes
//! the latter ones ([`Mux::take_requests`]).
//!
//! A [`Mux`] has the `connection`s. The thread of the guest's transmit queue (`transmit`) hands packets to it,
//! and that of the receive queue (`receive`) waits for all sockets and has packets from it.

mod connection;
mod mux;
mod packet;
mod receive;
#[cfg(test)]
mod tests;
mod transmit;

use std::os::fd::AsFd;
use std::sync::Arc;

use log::warn;

use self::receive::Receive;
use self::transmit::Transmit;
use super::vhost::{Relay, Vhost};
use super::{Device, Kind, Malformed, Serve, Vring, read_bytes};
use crate::worker::event::{Event, wait_any};
use crate::worker::memory::Memory;

pub use self::mux::Mux;

/// The device's name.
pub const NAME: &str = "vsock";
/// Feature: sockets that keep the borders of messages (§5.10.3).
const SEQPACKET: u64 = 1 << 1;
/// Largest size of a queue.
const QUEUE_SIZE: u16 = 256;
/// The queue by which the guest receives.
const RECEIVE: u16 = 0;
/// The queue by which the guest sends.
const TRANSMIT: u16 = 1;

/// The device.
#[derive(Debug)]
pub enum Vsock {
    /// The worker serves its queues.
    Worker(Arc<Mux>),
    /// Root's kernel does.
    Kernel {
        /// The guest's address.
        cid: u64,
        /// The kernel's part.
        vhost: Arc<Vhost>,
    },
}

impl Device for Vsock {
    fn kind(&self) -> Kind {
        Kind::Socket
    }

    fn name(&self) -> &str {
        NAME
    }

    fn features(&self) -> u64 {
        match self {
            Self::Worker(_) => 0,
            Self::Kernel { .. } => SEQPACKET,
        }
    }

    fn queues(&self) -> &[u16] {
        &[QUEUE_SIZE; 3]
    }

    /// `struct virtio_vsock_config` (§5.10.4).
    fn read_config(&self, at: usize, bytes: &mut [u8]) {
        let cid = match self {
            Self::Worker(mux) => mux.cid(),
            Self::Kernel { cid, .. } => *cid,
        };
        read_bytes(&cid.to_le_bytes(), at, bytes);
    }

    fn activate(&mut self, features: u64) {
        match self {
            Self::Worker(mux) => mux.reset(),
            Self::Kernel { vhost, .. } => {
                if let Err(e) = vhost.prepare(features, SEQPACKET) {
                    warn!("{NAME}: vhost-vsock: {e}");
                }
            }
        }
    }

    fn server(&mut self, index: u16, _features: u64) -> Box<dyn Serve> {
        match (self, index) {
            (Self::Worker(mux), RECEIVE) => Box::new(Receive::new(Arc::clone(mux))),
            (Self::Worker(mux), TRANSMIT) => Box::new(Transmit::new(Arc::clone(mux))),
            (Self::Kernel { vhost, .. }, RECEIVE | TRANSMIT) => {
                Box::new(Relay::to_sockets(Arc::clone(vhost), usize::from(index)))
            }
            _ => Box::new(Events),
        }
    }
}

/// The queue by which the device tells that the guest has moved to another machine, which it never has.
struct Events;

impl Serve for Events {
    fn run(&mut self, _memory: &Memory, _vring: &Vring, stop: &Event) -> Result<(), Malformed> {
        wait_any(&[stop.as_fd()], None);
        Ok(())
    }
}
