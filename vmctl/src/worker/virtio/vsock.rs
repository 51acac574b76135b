//! A socket device (virtio 1.2 §5.10): streams between programs in the guest and programs in VM 0.
//!
//! Where root's kernel is to serve it (`vhost`), guests and VM 0 have addresses of `vsock(7)`. Otherwise the worker
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

use self::receive::Receive;
use self::transmit::Transmit;
use super::{Device, Kind, Malformed, Serve, Vring, read_bytes};
use crate::worker::event::{Event, wait_any};
use crate::worker::memory::Memory;

pub use self::mux::Mux;

/// The device's name.
pub const NAME: &str = "vsock";
/// Largest size of a queue.
const QUEUE_SIZE: u16 = 256;
/// The queue by which the guest receives.
const RECEIVE: u16 = 0;
/// The queue by which the guest sends.
const TRANSMIT: u16 = 1;

/// The device.
#[derive(Debug)]
pub struct Vsock(Arc<Mux>);

impl Vsock {
    /// A device whose connections are those of `mux`.
    pub fn new(mux: Arc<Mux>) -> Self {
        Self(mux)
    }
}

impl Device for Vsock {
    fn kind(&self) -> Kind {
        Kind::Socket
    }

    fn name(&self) -> &str {
        NAME
    }

    fn queues(&self) -> &[u16] {
        &[QUEUE_SIZE; 3]
    }

    /// `struct virtio_vsock_config` (§5.10.4).
    fn read_config(&self, at: usize, bytes: &mut [u8]) {
        read_bytes(&self.0.cid().to_le_bytes(), at, bytes);
    }

    fn activate(&mut self, _features: u64) {
        self.0.reset();
    }

    fn server(&mut self, index: u16, _features: u64) -> Box<dyn Serve> {
        let mux = Arc::clone(&self.0);
        match index {
            RECEIVE => Box::new(Receive::new(mux)),
            TRANSMIT => Box::new(Transmit::new(mux)),
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
