//! Interrupts posted to a virtual CPU, both sides.
//!
//! The poster sets `level` (if it is level-triggered), then `pending`, then `outstanding`; the
//! microvisor takes them in the opposite order. So whoever sees a pending bit sees its trigger
//! mode too, and a bit that is set while the microvisor takes the rest stays for the next time,
//! with `outstanding` still, or again, 1.

use crate::shared::{Ordering, PostedLines};

/// The interrupts that were posted since the last time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Posted {
    /// One bit per vector.
    pub pending: [u64; 4],
    /// Of those, the level-triggered ones.
    pub level: [u64; 4],
    /// NMIs.
    pub nmis: u32,
}

impl PostedLines {
    /// Whether there is something to take: one load, for the way into the guest.
    #[inline]
    pub fn is_outstanding(&self) -> bool {
        self.outstanding.load(Ordering::Relaxed) != 0
    }

    /// Takes everything that was posted.
    #[inline]
    pub fn take(&self) -> Option<Posted> {
        if !self.is_outstanding() || self.outstanding.swap(0, Ordering::AcqRel) == 0 {
            return None;
        }
        let mut posted = Posted::default();
        for n in 0..4 {
            if self.pending[n].load(Ordering::Relaxed) == 0 {
                continue;
            }
            let pending = self.pending[n].swap(0, Ordering::AcqRel);
            posted.pending[n] = pending;
            // Only the trigger modes of what is taken: another vector's level bit may be here
            // before its pending bit.
            if self.level[n].load(Ordering::Relaxed) & pending != 0 {
                posted.level[n] = self.level[n].fetch_and(!pending, Ordering::AcqRel) & pending;
            }
        }
        if self.nmi.load(Ordering::Relaxed) != 0 {
            posted.nmis = self.nmi.swap(0, Ordering::AcqRel);
        }
        Some(posted)
    }

    /// The driver's half (the driver itself is C; a test kernel and tests are not). True: nothing
    /// was outstanding before, so the virtual CPU may need a wake or a kick.
    pub fn post(&self, vector: u8, level: bool) -> bool {
        let (word, bit) = (usize::from(vector >> 6), 1 << (vector & 63));
        if level {
            self.level[word].fetch_or(bit, Ordering::Release);
        }
        self.pending[word].fetch_or(bit, Ordering::Release);
        self.outstanding.swap(1, Ordering::AcqRel) == 0
    }

    /// As [`PostedLines::post`], for an NMI.
    pub fn post_nmi(&self) -> bool {
        // Two wait at most, so that the count stays small.
        if self.nmi.load(Ordering::Relaxed) < 2 {
            self.nmi.fetch_add(1, Ordering::Release);
        }
        self.outstanding.swap(1, Ordering::AcqRel) == 0
    }
}

#[cfg(test)]
mod tests;
