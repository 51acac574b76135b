//! A request of the driver, taken from its chain of descriptors (virtio 1.2 §5.2.6).

use std::fmt;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};

use super::{MAX_RANGE, MAX_RANGES, Refusal};
use crate::disk::SECTOR;
use crate::worker::memory::Memory;
use crate::worker::virtio::buffers::Buffers;
use crate::worker::virtio::{Chain, Malformed};

/// Bytes of a request, at most, so that no request takes its thread for long.
const MAX_BYTES: usize = 64 << 20;
/// Bytes of a request's header, and of a range to discard.
const HEADER: usize = 16;
/// Flag of a range to write zeroes to: the device may free its blocks.
const UNMAP: u32 = 1;

/// A request.
#[derive(Debug)]
pub(super) struct Request {
    /// The first descriptor of its chain.
    pub(super) head: u16,
    /// The driver's request, or the reason why it is refused.
    pub(super) operation: Result<Operation, Refusal>,
    /// The byte for the status.
    pub(super) status: Buffers,
}

/// A driver's request. Offsets are in bytes.
#[derive(Debug)]
pub(super) enum Operation {
    /// Fill the buffers from `offset` on.
    Read { offset: u64, buffers: Buffers },
    /// Write the buffers from `offset` on.
    Write { offset: u64, buffers: Buffers },
    /// Make durable what was written.
    Flush,
    /// Write the serial number to the buffers.
    Serial { buffers: Buffers },
    /// Give back the ranges' blocks.
    Discard { ranges: Vec<Range> },
    /// Make the ranges zeroes.
    WriteZeroes { ranges: Vec<Range> },
}

/// A part of the disk, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) offset: u64,
    pub(super) len: u64,
}

impl Operation {
    /// Returns whether the disk differs afterwards.
    pub(super) fn is_write(&self) -> bool {
        matches!(
            self,
            Self::Write { .. } | Self::Discard { .. } | Self::WriteZeroes { .. }
        )
    }
}

impl Request {
    /// Takes a request apart.
    ///
    /// # Errors
    ///
    /// The chain has no header, or no byte for the status, or is no chain.
    pub(super) fn of(memory: &Memory, chain: Chain<'_>) -> Result<Self, Malformed> {
        let head = chain.head_index();
        let (mut header, mut writable) = Buffers::of(memory, chain)?;
        let mut bytes = [0; HEADER];
        if header.read(memory, &mut bytes) < HEADER {
            return Err(Malformed("a request has no header"));
        }
        let last = writable.len().checked_sub(1);
        let status = last.and_then(|last| writable.split_off(last));
        let (Some(status), Some(readable)) = (status, header.split_off(HEADER)) else {
            return Err(Malformed("a request has no byte for its status"));
        };
        Ok(Self {
            head,
            operation: operation(memory, &bytes, readable, writable),
            status,
        })
    }
}

impl Request {
    /// Returns whether the disk differs afterwards.
    pub(super) fn is_write(&self) -> bool {
        self.operation.as_ref().is_ok_and(Operation::is_write)
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.operation {
            Ok(Operation::Read { offset, buffers }) => {
                write!(f, "a read of {} bytes at byte {offset}", buffers.len())
            }
            Ok(Operation::Write { offset, buffers }) => {
                write!(f, "a write of {} bytes at byte {offset}", buffers.len())
            }
            Ok(Operation::Flush) => f.write_str("a flush"),
            Ok(Operation::Discard { .. }) => f.write_str("a discard"),
            Ok(Operation::WriteZeroes { .. }) => f.write_str("a write of zeroes"),
            Ok(Operation::Serial { .. }) | Err(_) => f.write_str("a request"),
        }
    }
}

fn operation(
    memory: &Memory,
    header: &[u8; HEADER],
    readable: Buffers,
    writable: Buffers,
) -> Result<Operation, Refusal> {
    let [kind, _, low, high] = words(header);
    if readable.len().max(writable.len()) > MAX_BYTES {
        return Err(Refusal::Failed);
    }
    let offset = offset(low, high);
    match kind {
        VIRTIO_BLK_T_IN => Ok(Operation::Read {
            offset: offset?,
            buffers: sectors(writable)?,
        }),
        VIRTIO_BLK_T_OUT => Ok(Operation::Write {
            offset: offset?,
            buffers: sectors(readable)?,
        }),
        VIRTIO_BLK_T_FLUSH => Ok(Operation::Flush),
        VIRTIO_BLK_T_GET_ID => Ok(Operation::Serial { buffers: writable }),
        VIRTIO_BLK_T_DISCARD => Ok(Operation::Discard {
            ranges: ranges(memory, &readable, 0)?,
        }),
        VIRTIO_BLK_T_WRITE_ZEROES => Ok(Operation::WriteZeroes {
            ranges: ranges(memory, &readable, UNMAP)?,
        }),
        _ => Err(Refusal::Unsupported),
    }
}

/// Returns the ranges in `data`, which may have the flags `known` (§5.2.6.2).
fn ranges(memory: &Memory, data: &Buffers, known: u32) -> Result<Vec<Range>, Refusal> {
    let count = data.len() / HEADER;
    if !data.len().is_multiple_of(HEADER) || count > MAX_RANGES as usize {
        return Err(Refusal::Unsupported);
    }
    let mut bytes = vec![0; data.len()];
    data.read(memory, &mut bytes);
    let range = |range| match words(range) {
        [_, _, _, flags] if flags & !known != 0 => Err(Refusal::Unsupported),
        [_, _, sectors, _] if sectors > MAX_RANGE => Err(Refusal::Failed),
        [low, high, sectors, _] => Ok(Range {
            offset: offset(low, high)?,
            len: u64::from(sectors) * SECTOR,
        }),
    };
    bytes.as_chunks::<HEADER>().0.iter().map(range).collect()
}

fn sectors(data: Buffers) -> Result<Buffers, Refusal> {
    match (data.len() as u64).is_multiple_of(SECTOR) {
        true => Ok(data),
        false => Err(Refusal::Failed),
    }
}

/// Returns the offset of the sector whose number has these halves.
fn offset(low: u32, high: u32) -> Result<u64, Refusal> {
    let sector = u64::from(low) | u64::from(high) << 32;
    sector.checked_mul(SECTOR).ok_or(Refusal::Failed)
}

fn words(bytes: &[u8; HEADER]) -> [u32; 4] {
    let words = bytes.as_chunks::<4>().0;
    std::array::from_fn(|i| u32::from_le_bytes(words[i]))
}
