//! A set of interrupt vectors.

/// One bit per vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct VectorSet([u64; 4]);

impl VectorSet {
    pub(super) const EMPTY: Self = Self([0; 4]);

    #[inline]
    pub(super) fn insert(&mut self, vector: u8) {
        self.0[usize::from(vector >> 6)] |= 1 << (vector & 63);
    }

    #[inline]
    pub(super) fn remove(&mut self, vector: u8) {
        self.0[usize::from(vector >> 6)] &= !(1 << (vector & 63));
    }

    #[inline]
    pub(super) fn contains(&self, vector: u8) -> bool {
        self.0[usize::from(vector >> 6)] >> (vector & 63) & 1 != 0
    }

    #[inline]
    pub(super) fn highest(&self) -> Option<u8> {
        for (n, word) in self.0.iter().enumerate().rev() {
            if *word != 0 {
                return Some((n as u32 * 64 + word.ilog2()) as u8);
            }
        }
        None
    }

    /// Adds `other`.
    pub(super) fn union(&mut self, other: &Self) {
        for (word, more) in self.0.iter_mut().zip(other.0) {
            *word |= more;
        }
    }

    /// Copies the bits of `from` that `mask` has.
    pub(super) fn replace(&mut self, mask: &Self, from: &Self) {
        for (n, word) in self.0.iter_mut().enumerate() {
            *word = *word & !mask.0[n] | from.0[n] & mask.0[n];
        }
    }

    /// Removes vectors 0 to 15, which no APIC delivers. Returns whether there were any.
    pub(super) fn take_illegal(&mut self) -> bool {
        let illegal = self.0[0] & 0xffff != 0;
        self.0[0] &= !0xffff;
        illegal
    }

    /// Returns the `n`th of eight 32-bit registers.
    pub(super) fn register(&self, n: usize) -> u32 {
        (self.0[(n / 2) & 3] >> (32 * (n & 1))) as u32
    }
}

impl From<[u64; 4]> for VectorSet {
    fn from(words: [u64; 4]) -> Self {
        Self(words)
    }
}
