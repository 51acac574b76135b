//! The guest memory of a descriptor chain: the part that the device reads comes first, the part
//! that it writes follows (virtio 1.2 §2.7.4.2).

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, VolatileSlice};

use super::{Chain, Malformed};
use crate::worker::memory::Memory;

/// Pieces of guest memory, in order. All of them lie in memory, which never changes its layout: any
/// thread may use them.
#[derive(Clone, Debug, Default)]
pub(super) struct Buffers {
    pieces: Vec<(GuestAddress, usize)>,
    len: usize,
}

impl Buffers {
    /// Returns the readable and the writable part of a chain.
    ///
    /// # Errors
    ///
    /// The chain forms a loop, leaves memory, or has a readable part behind a writable one.
    pub(super) fn of(memory: &Memory, chain: Chain<'_>) -> Result<(Self, Self), Malformed> {
        let (mut readable, mut writable) = (Self::default(), Self::default());
        let mut goes_on = false;
        for descriptor in chain {
            goes_on = descriptor.has_next();
            let part = match descriptor.is_write_only() {
                true => &mut writable,
                false if writable.pieces.is_empty() => &mut readable,
                false => return Err(Malformed("a readable descriptor follows a writable one")),
            };
            part.add(memory, descriptor.addr(), descriptor.len() as usize)?;
        }
        if goes_on {
            return Err(Malformed(
                "a descriptor chain is too long or leaves the table",
            ));
        }
        Ok((readable, writable))
    }

    fn add(&mut self, memory: &Memory, at: GuestAddress, len: usize) -> Result<(), Malformed> {
        const OUTSIDE: Malformed = Malformed("a descriptor points outside of memory");
        if memory.get_slices(at, len).any(|slice| slice.is_err()) {
            return Err(OUTSIDE);
        }
        self.pieces.push((at, len));
        self.len = self.len.checked_add(len).ok_or(OUTSIDE)?;
        Ok(())
    }

    /// Returns the number of bytes.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Returns the pieces, as they are mapped.
    pub(super) fn slices<'a>(&self, memory: &'a Memory) -> Vec<VolatileSlice<'a>> {
        let slices = |&(at, len)| memory.get_slices(at, len).flatten();
        self.pieces.iter().flat_map(slices).collect()
    }

    /// Splits off the bytes behind the first `at`. Returns `None` if there are fewer.
    pub(super) fn split_off(&mut self, at: usize) -> Option<Self> {
        if at > self.len {
            return None;
        }
        let mut left = at;
        let mut behind = Vec::new();
        let mut kept = Vec::new();
        for (start, len) in self.pieces.drain(..) {
            let here = left.min(len);
            left -= here;
            if here > 0 {
                kept.push((start, here));
            }
            if here < len {
                behind.push((GuestAddress(start.0 + here as u64), len - here));
            }
        }
        let len = self.len - at;
        self.pieces = kept;
        self.len = at;
        Some(Self {
            pieces: behind,
            len,
        })
    }

    /// Adds `other` behind the last byte.
    pub(super) fn append(&mut self, other: Self) {
        self.pieces.extend(other.pieces);
        self.len += other.len;
    }

    /// Copies the first bytes to `bytes`. Returns the number of bytes copied.
    pub(super) fn read(&self, memory: &Memory, mut bytes: &mut [u8]) -> usize {
        let wanted = bytes.len();
        for &(at, len) in &self.pieces {
            let here = len.min(bytes.len());
            // The piece lies in memory.
            let copied = memory.read(&mut bytes[..here], at).unwrap_or(0);
            bytes = &mut bytes[copied..];
        }
        wanted - bytes.len()
    }

    /// Copies `bytes` to the first bytes. Returns the number of bytes copied.
    pub(super) fn write(&self, memory: &Memory, mut bytes: &[u8]) -> usize {
        let wanted = bytes.len();
        for &(at, len) in &self.pieces {
            let here = len.min(bytes.len());
            // The piece lies in memory.
            let copied = memory.write(&bytes[..here], at).unwrap_or(0);
            bytes = &bytes[copied..];
        }
        wanted - bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::memory::Ram;

    fn buffers(memory: &Memory, pieces: &[(u64, usize)]) -> Buffers {
        let mut buffers = Buffers::default();
        for &(at, len) in pieces {
            buffers.add(memory, GuestAddress(at), len).unwrap();
        }
        buffers
    }

    #[test]
    fn bytes_go_through_pieces_in_order() {
        let ram = Ram::new(4 << 20).unwrap();
        let memory = ram.mapping();
        let pieces = buffers(memory, &[(0x1000, 3), (0x3000, 5)]);
        assert_eq!(pieces.write(memory, b"abcdefghij"), 8);
        let mut bytes = [0; 5];
        memory.read_slice(&mut bytes, GuestAddress(0x3000)).unwrap();
        assert_eq!(&bytes, b"defgh");
        let mut bytes = [0; 6];
        assert_eq!(pieces.read(memory, &mut bytes), 6);
        assert_eq!(&bytes, b"abcdef");
    }

    #[test]
    fn a_split_can_lie_in_a_piece() {
        let ram = Ram::new(4 << 20).unwrap();
        let memory = ram.mapping();
        let mut front = buffers(memory, &[(0x1000, 3), (0x3000, 5)]);
        front.write(memory, b"abcdefgh");
        let back = front.split_off(4).unwrap();
        assert_eq!((front.len(), back.len()), (4, 4));
        let mut bytes = [0; 8];
        assert_eq!(front.read(memory, &mut bytes), 4);
        assert_eq!(back.read(memory, &mut bytes), 4);
        assert_eq!(&bytes[..4], b"efgh");
        assert!(front.split_off(5).is_none());
        assert_eq!(front.split_off(4).unwrap().slices(memory).len(), 0);
    }
}
