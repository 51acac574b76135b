//! Which model-specific registers exit (APM vol. 2 §15.11).

/// The permission map: two bits per register, read then write.
#[repr(C, align(4096))]
pub(super) struct MsrPermissions([u8; 8192]);

/// Registers that root may not touch by itself: EFER (SVME), VM_CR, IGNNE, SMM_CTL, VM_HSAVE_PA,
/// SVM_KEY.
const ROOT: [u32; 6] = [
    0xc000_0080,
    0xc001_0114,
    0xc001_0115,
    0xc001_0116,
    0xc001_0117,
    0xc001_0118,
];

impl MsrPermissions {
    /// Root's map: everything is root's but what protects the microvisor.
    pub(super) const fn root() -> Self {
        let mut map = [0; 8192];
        let mut n = 0;
        while n < ROOT.len() {
            let (byte, shift) = position(ROOT[n]);
            map[byte] |= 0b11 << shift;
            n += 1;
        }
        Self(map)
    }
}

/// Byte and bit of a register in the map. Only the two AMD ranges are asked for.
const fn position(msr: u32) -> (usize, u32) {
    let base = if msr >= 0xc001_0000 { 0x1000 } else { 0x800 };
    let bit = (msr & 0x1fff) as usize * 2;
    (base + bit / 8, (bit % 8) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_follow_the_manual() {
        // APM vol. 2 table 15-9: 0xC0000000 begins at byte 0x800, 0xC0010000 at 0x1000.
        assert_eq!(position(0xc000_0000), (0x800, 0));
        assert_eq!(position(0xc000_0080), (0x820, 0));
        assert_eq!(position(0xc001_0117), (0x1045, 6));
    }

    #[test]
    fn root_keeps_the_rest() {
        let set: u32 = MsrPermissions::root()
            .0
            .iter()
            .map(|b| b.count_ones())
            .sum();
        assert_eq!(set as usize, 2 * ROOT.len());
    }
}
