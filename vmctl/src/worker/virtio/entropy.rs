//! A source of random numbers (virtio 1.2 §5.4), which come from the root partition's kernel.

use rustix::rand::{GetRandomFlags, getrandom};

use super::thread::serve_chains;
use super::{Device, Kind, Malformed, Serve, Vring};
use crate::worker::event::Event;
use crate::worker::memory::Memory;

/// Bytes that one request gets at most. A driver that wants more asks again.
const MAX_BYTES: usize = 4096;

/// Largest size of the queue.
const QUEUE_SIZE: u16 = 64;

/// The device.
#[derive(Debug, Default)]
pub struct Entropy;

impl Device for Entropy {
    fn kind(&self) -> Kind {
        Kind::Entropy
    }

    fn name(&self) -> &str {
        "rng"
    }

    fn queues(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn server(&mut self, _index: u16, _features: u64) -> Box<dyn Serve> {
        Box::new(Self)
    }
}

impl Serve for Entropy {
    fn run(&mut self, memory: &Memory, vring: &Vring, stop: &Event) -> Result<(), Malformed> {
        serve_chains(memory, vring, stop, |_, writable| {
            let mut bytes = vec![0; writable.len().min(MAX_BYTES)];
            // The kernel's generator is ready long before there are guests.
            let count = getrandom(&mut bytes, GetRandomFlags::empty()).unwrap_or(0);
            Ok(writable.write(memory, &bytes[..count]) as u32)
        })
    }
}
