//! A disk (virtio 1.2 §5.2), whose requests are carried out on an [`Image`].
//!
//! A queue's thread takes all available requests, carries them out in order, writes the image's
//! metadata to its file, and then answers them. The data of an answered write is therefore with
//! root's kernel and survives the worker. A flush makes it survive root.

#[cfg(test)]
mod tests;

use std::sync::Arc;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
};

use super::buffers::Buffers;
use super::thread::serve_kicks;
use super::{Chain, Device, Kind, Malformed, Serve, Vring, read_bytes};
use crate::config::OnError;
use crate::disk::{Image, IoError, SECTOR};
use crate::worker::event::Event;
use crate::worker::journal;
use crate::worker::memory::Memory;
use crate::worker::stall::Stalls;

/// Largest size of a queue.
const QUEUE_SIZE: u16 = 256;
/// Buffers of a request: all descriptors of a queue, less those of the header and the status.
const MAX_SEGMENTS: u32 = QUEUE_SIZE as u32 - 2;
/// Bytes of a request, at most, so that no request takes its thread for long.
const MAX_BYTES: usize = 64 << 20;
/// Ranges of one discard, and sectors of a range, at most.
const MAX_RANGES: u32 = 32;
const MAX_RANGE: u32 = (1 << 30) / SECTOR as u32;
/// Sectors of a physical block, as a power of two. Smaller writes make root read the block first.
const PHYSICAL_BLOCK_EXPONENT: u8 = 3;
/// Bytes of the serial number (§5.2.6).
const SERIAL_LEN: usize = 20;
/// Errors of the image that a queue logs.
const MAX_REPORTS: u32 = 16;
/// Bytes of a request's header, and of a range to discard.
const HEADER: usize = 16;
/// Flag of a range to write zeroes to: the device may free its blocks.
const UNMAP: u32 = 1;

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
    /// What happens when root has no space.
    pub on_enospc: OnError,
    /// What happens after another error of the image.
    pub on_error: OnError,
}

/// The device.
#[derive(Debug)]
pub struct Block {
    image: Arc<Image>,
    options: Options,
    queues: Vec<u16>,
    config: [u8; 60],
    stalls: Arc<Stalls>,
}

impl Block {
    /// Makes a disk of `image`.
    pub fn new(image: Image, options: Options, stalls: Arc<Stalls>) -> Self {
        let queues = vec![QUEUE_SIZE; usize::from(options.queues.max(1))];
        Self {
            config: config(image.capacity() / SECTOR, queues.len() as u16),
            image: Arc::new(image),
            options,
            queues,
            stalls,
        }
    }
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
        &self.options.name
    }

    fn features(&self) -> u64 {
        let mut features = 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_BLK_SIZE
            | 1 << VIRTIO_BLK_F_TOPOLOGY
            | 1 << VIRTIO_BLK_F_MQ;
        if !self.options.writethrough {
            features |= 1 << VIRTIO_BLK_F_FLUSH;
        }
        features
            | match self.image.is_read_only() {
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
        Box::new(Disk {
            image: Arc::clone(&self.image),
            stalls: Arc::clone(&self.stalls),
            options: self.options.clone(),
            reports: 0,
        })
    }

    fn close(&mut self) {
        if let Err(e) = self.image.flush() {
            journal::say(format_args!("{}: flush: {e}", self.options.name));
        }
    }
}

/// The server of a queue.
struct Disk {
    image: Arc<Image>,
    stalls: Arc<Stalls>,
    options: Options,
    reports: u32,
}

/// A request that was carried out and not yet answered.
struct Done<'a> {
    head: u16,
    status: Buffers<'a>,
    status_value: u32,
    /// Bytes written to the guest before the status.
    written: u32,
    is_write: bool,
}

impl Serve for Disk {
    fn run(&mut self, memory: &Memory, vring: &mut Vring, stop: &Event) -> Result<(), Malformed> {
        serve_kicks(memory, vring, stop, |vring| self.serve(memory, vring, stop))
    }
}

impl Disk {
    /// Carries out all available requests, in batches of a queue's size.
    fn serve(&mut self, memory: &Memory, vring: &mut Vring, stop: &Event) -> Result<(), Malformed> {
        loop {
            let mut batch = Vec::new();
            while batch.len() < usize::from(QUEUE_SIZE)
                && let Some(chain) = vring.pop(memory)?
            {
                batch.push(self.carry_out(memory, chain, stop)?);
            }
            if batch.is_empty() {
                return Ok(());
            }
            if batch.iter().any(|done| done.is_write) && self.complete_writes(stop).is_err() {
                let writes = batch.iter_mut().filter(|done| done.is_write);
                writes.for_each(|done| done.status_value = VIRTIO_BLK_S_IOERR);
            }
            for done in batch {
                done.status.write(&[done.status_value as u8]);
                vring.push(memory, done.head, done.written + 1)?;
            }
            vring.notify(memory)?;
            if stop.is_signalled() {
                return Ok(());
            }
        }
    }

    /// Makes the writes of a batch as safe as their answer promises.
    fn complete_writes(&mut self, stop: &Event) -> Result<(), Refusal> {
        match self.options.writethrough {
            true => self.attempt(stop, Image::flush),
            false => self.attempt(stop, Image::write_back),
        }
    }

    fn carry_out<'a>(
        &mut self,
        memory: &'a Memory,
        chain: Chain<'_>,
        stop: &Event,
    ) -> Result<Done<'a>, Malformed> {
        let head = chain.head_index();
        let (mut header, mut writable) = Buffers::of(memory, chain)?;
        let mut bytes = [0; HEADER];
        if header.read(&mut bytes) < HEADER {
            return Err(Malformed("a request has no header"));
        }
        let last = writable.len().checked_sub(1);
        let status = last.and_then(|last| writable.split_off(last));
        let (Some(status), Some(data)) = (status, header.split_off(HEADER)) else {
            return Err(Malformed("a request has no byte for its status"));
        };
        let [kind, _, low, high] = words(&bytes);
        let offset = (u64::from(low) | u64::from(high) << 32).checked_mul(SECTOR);
        let mut written = 0;
        let outcome = match (kind, offset) {
            _ if data.len().max(writable.len()) > MAX_BYTES => Err(Refusal::Failed),
            (VIRTIO_BLK_T_IN, Some(offset)) => {
                written = writable.len() as u32;
                check_sectors(&writable)
                    .and_then(|()| self.attempt(stop, |i| i.read_guest(offset, writable.slices())))
            }
            (VIRTIO_BLK_T_OUT, Some(offset)) => check_sectors(&data)
                .and_then(|()| self.attempt(stop, |i| i.write_guest(offset, data.slices()))),
            (VIRTIO_BLK_T_FLUSH, _) => self.attempt(stop, Image::flush),
            (VIRTIO_BLK_T_GET_ID, _) => {
                let mut serial = [0; SERIAL_LEN];
                read_bytes(self.options.serial.as_bytes(), 0, &mut serial);
                written = writable.write(&serial) as u32;
                Ok(())
            }
            (VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES, _) => {
                self.clear(kind == VIRTIO_BLK_T_DISCARD, &data, stop)
            }
            (VIRTIO_BLK_T_IN | VIRTIO_BLK_T_OUT, None) => Err(Refusal::Failed),
            _ => Err(Refusal::Unsupported),
        };
        let is_write = matches!(
            kind,
            VIRTIO_BLK_T_OUT | VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES
        );
        Ok(Done {
            head,
            status,
            status_value: match outcome {
                Ok(()) => VIRTIO_BLK_S_OK,
                Err(Refusal::Failed) => VIRTIO_BLK_S_IOERR,
                Err(Refusal::Unsupported) => VIRTIO_BLK_S_UNSUPP,
            },
            written,
            is_write,
        })
    }

    /// Discards the ranges in `data`, or writes zeroes to them (§5.2.6.2).
    fn clear(&mut self, discards: bool, data: &Buffers<'_>, stop: &Event) -> Result<(), Refusal> {
        let count = data.len() / HEADER;
        if !data.len().is_multiple_of(HEADER) || count > MAX_RANGES as usize {
            return Err(Refusal::Unsupported);
        }
        let mut bytes = vec![0; data.len()];
        data.read(&mut bytes);
        for range in bytes.as_chunks::<HEADER>().0 {
            let [low, high, sectors, flags] = words(range);
            let known = if discards { 0 } else { UNMAP };
            if flags & !known != 0 {
                return Err(Refusal::Unsupported);
            }
            let first = u64::from(low) | u64::from(high) << 32;
            let offset = first.checked_mul(SECTOR).ok_or(Refusal::Failed)?;
            let len = u64::from(sectors) * SECTOR;
            if sectors > MAX_RANGE {
                return Err(Refusal::Failed);
            }
            self.attempt(stop, |image| match discards {
                true => image.discard(offset, len),
                false => image.write_zeroes(offset, len),
            })?;
        }
        Ok(())
    }

    /// Calls `act` on the image. After an error for which the VM is to stop, waits until the user
    /// resumes the VM and tries again.
    fn attempt(
        &mut self,
        stop: &Event,
        act: impl Fn(&Image) -> Result<(), IoError>,
    ) -> Result<(), Refusal> {
        loop {
            let error = match act(&self.image) {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            let on_error = match error {
                IoError::NoSpace => self.options.on_enospc,
                IoError::Other(_) => self.options.on_error,
                // The guest's own mistakes.
                IoError::ReadOnly | IoError::OutOfRange => return Err(Refusal::Failed),
            };
            let reason = format!("{}: {error}", self.options.name);
            if on_error == OnError::Pause {
                if self.stalls.wait(stop, reason) {
                    continue;
                }
            } else if self.reports < MAX_REPORTS {
                self.reports += 1;
                journal::say(format_args!("{reason}"));
            }
            return Err(Refusal::Failed);
        }
    }
}

/// Why a request is not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    Failed,
    Unsupported,
}

fn check_sectors(data: &Buffers<'_>) -> Result<(), Refusal> {
    match (data.len() as u64).is_multiple_of(SECTOR) {
        true => Ok(()),
        false => Err(Refusal::Failed),
    }
}

fn words(bytes: &[u8; HEADER]) -> [u32; 4] {
    let words = bytes.as_chunks::<4>().0;
    std::array::from_fn(|i| u32::from_le_bytes(words[i]))
}
