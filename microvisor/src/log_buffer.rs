//! The buffer of the log: the last 64 KiB of the microvisor's messages, by position since boot.

use core::sync::atomic::{AtomicU64, Ordering};

use spin::{Mutex, MutexGuard};

/// Bytes that are kept.
const SIZE: usize = 64 << 10;

/// The buffer that `console` writes and root reads.
pub static LOG_BUFFER: LogBuffer = LogBuffer::new();

/// A ring of text. A position counts bytes since boot.
#[derive(Debug)]
pub struct LogBuffer {
    bytes: Mutex<[u8; SIZE]>,
    /// Bytes ever written. It changes under the lock only.
    written: AtomicU64,
}

impl LogBuffer {
    /// Makes an empty buffer.
    pub const fn new() -> Self {
        Self {
            bytes: Mutex::new([0; SIZE]),
            written: AtomicU64::new(0),
        }
    }

    /// Returns the count of bytes ever written, which is the position after the last.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Acquire)
    }

    /// Adds `text`, of which the last 64 KiB can be read again.
    pub fn append(&self, text: &[u8]) {
        let Some(mut bytes) = self.lock() else {
            return;
        };
        let mut position = self.written();
        for &byte in text {
            bytes[position as usize % SIZE] = byte;
            position += 1;
        }
        self.written.store(position, Ordering::Release);
    }

    /// Copies text from `position` on, or from the oldest byte if that is later. Returns the count of bytes, and the
    /// position after them.
    pub fn read(&self, position: u64, to: &mut [u8]) -> (usize, u64) {
        let Some(bytes) = self.lock() else {
            return (0, position);
        };
        let end = self.written();
        let start = position.clamp(end.saturating_sub(SIZE as u64), end);
        let mut at = start;
        for (byte, position) in to.iter_mut().zip(start..end) {
            *byte = bytes[position as usize % SIZE];
            at = position + 1;
        }
        ((at - start) as usize, at)
    }

    /// Takes the lock, or gives up after a while: a CPU that stopped while it held the lock costs the log alone.
    fn lock(&self) -> Option<MutexGuard<'_, [u8; SIZE]>> {
        (0..1 << 20).find_map(|_| {
            core::hint::spin_loop();
            self.bytes.try_lock()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_in_pieces() {
        let log = LogBuffer::new();
        log.append(b"one ");
        log.append(b"two");
        let mut text = [0; 5];
        assert_eq!(log.read(0, &mut text), (5, 5));
        assert_eq!(&text, b"one t");
        assert_eq!(log.read(5, &mut text), (2, 7));
        assert_eq!(&text[..2], b"wo");
        assert_eq!(log.read(7, &mut text), (0, 7));
    }

    #[test]
    fn a_lost_position_moves_to_the_oldest_byte_and_a_future_one_to_the_end() {
        let log = LogBuffer::new();
        for n in 0..SIZE + 10 {
            log.append(&[(n % 251) as u8]);
        }
        let mut text = [0; 4];
        assert_eq!(log.read(3, &mut text), (4, 14));
        assert_eq!(text, [10, 11, 12, 13]);
        let end = (SIZE + 10) as u64;
        assert_eq!(log.read(u64::MAX, &mut text), (0, end));
        assert_eq!(log.read(end - 1, &mut text), (1, end));
        assert_eq!(text[0], ((SIZE + 9) % 251) as u8);
    }

    #[test]
    fn a_stopped_writer_blocks_nobody() {
        let log = LogBuffer::new();
        log.append(b"before");
        let _stopped = log.bytes.lock();
        log.append(b"lost");
        assert_eq!(log.read(2, &mut [0; 8]), (0, 2));
        assert_eq!(log.written(), 6);
    }
}
