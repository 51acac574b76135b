//! Which model-specific registers and ports exit (APM vol. 2 §15.10, §15.11).

use crate::arch::memory;

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

/// Registers that are a guest's own: the world switch swaps them. SYSENTER_CS, ESP and EIP; STAR,
/// LSTAR, CSTAR, SFMASK; FS, GS and kernel GS base, TSC_AUX.
const GUEST: [u32; 11] = [
    0x174,
    0x175,
    0x176,
    0xc000_0081,
    0xc000_0082,
    0xc000_0083,
    0xc000_0084,
    0xc000_0100,
    0xc000_0101,
    0xc000_0102,
    0xc000_0103,
];

/// The port permission map: a bit per port, and three more for accesses across the end.
#[repr(C, align(4096))]
struct PortPermissions([u8; 0x3000]);

static GUEST_PORTS: PortPermissions = PortPermissions([!0; 0x3000]);
static GUEST_MSRS: MsrPermissions = MsrPermissions::guest();

/// Physical addresses of a guest's maps.
pub(super) struct Maps {
    pub(super) msrs: u64,
    pub(super) ports: u64,
}

/// The maps of every guest: all ports exit, and all registers but a few.
pub(super) fn guest_maps() -> Maps {
    Maps {
        msrs: memory::image_physical(&raw const GUEST_MSRS),
        ports: memory::image_physical(&raw const GUEST_PORTS),
    }
}

impl MsrPermissions {
    /// A guest's map.
    const fn guest() -> Self {
        let mut map = [!0; 8192];
        let mut n = 0;
        while n < GUEST.len() {
            let (byte, shift) = position(GUEST[n]);
            map[byte] &= !(0b11 << shift);
            n += 1;
        }
        Self(map)
    }

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

/// Byte and bit of a register in the map. Only registers of its three ranges are asked for.
const fn position(msr: u32) -> (usize, u32) {
    let base = match msr {
        0xc001_0000.. => 0x1000,
        0xc000_0000.. => 0x800,
        _ => 0,
    };
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
    fn a_guest_has_only_what_is_swapped() {
        let clear: u32 = MsrPermissions::guest()
            .0
            .iter()
            .map(|b| b.count_zeros())
            .sum();
        assert_eq!(clear as usize, 2 * GUEST.len());
        assert_eq!(position(0x174), (0x5d, 0));
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
