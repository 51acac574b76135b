//! The permission maps: they say which model-specific registers and ports exit (APM vol. 2 §15.10, §15.11).

use crate::arch::layout::image_physical;
use crate::memory::Hpa;

/// The permission map of model-specific registers: two bits for each register, first read, then write.
#[repr(C, align(4096))]
pub(super) struct MsrPermissions([u8; 8192]);

/// Registers whose reads by root exit: EFER (SVME), VM_CR, IGNNE, SMM_CTL, VM_HSAVE_PA, SVM_KEY.
const ROOT_ABSENT: [u32; 6] = [
    0xc000_0080,
    0xc001_0114,
    0xc001_0115,
    0xc001_0116,
    0xc001_0117,
    0xc001_0118,
];

/// Registers whose writes by root do not exit, as the first and last of each run: registers that kernels write often,
/// and that cannot reach the microvisor. All other writes exit. APM vol. 2 appendix A; Linux's `msr-index.h`.
const ROOT_WRITES: &[(u32, u32)] = &[
    // TSC, TSC_ADJUST, SPEC_CTRL, PRED_CMD, MPERF, APERF, FLUSH_CMD.
    (0x10, 0x10),
    (0x3b, 0x3b),
    (0x48, 0x49),
    (0xe7, 0xe8),
    (0x10b, 0x10b),
    // SYSENTER_CS, ESP, EIP; MCG_STATUS, MCG_CTL.
    (0x174, 0x176),
    (0x17a, 0x17b),
    // Fixed memory type ranges: memory below 1 MiB. PAT.
    (0x250, 0x250),
    (0x258, 0x259),
    (0x268, 0x26f),
    (0x277, 0x277),
    // Machine check banks.
    (0x400, 0x47f),
    // U_CET, S_CET, PL0 to PL3_SSP, the table of interrupt shadow stacks; TSC_DEADLINE, x2APIC.
    (0x6a0, 0x6a2),
    (0x6a4, 0x6a8),
    (0x6e0, 0x6e0),
    (0x800, 0x8ff),
    // Cache monitoring and allocation; XSS.
    (0xc8d, 0xd0f),
    (0xda0, 0xda0),
    // STAR, LSTAR, CSTAR, SFMASK; FS, GS and kernel GS base, TSC_AUX.
    (0xc000_0081, 0xc000_0084),
    (0xc000_0100, 0xc000_0103),
    // Bandwidth allocation, performance counters, monitoring.
    (0xc000_0200, 0xc000_03ff),
    // Machine check thresholds.
    (0xc000_0408, 0xc000_040a),
    // Performance counters: of old, P-state control, core, cache and data fabric; CPPC.
    (0xc001_0000, 0xc001_0007),
    (0xc001_0062, 0xc001_0062),
    (0xc001_0200, 0xc001_0247),
    (0xc001_02b0, 0xc001_02b4),
    // Masks of the machine check banks.
    (0xc001_0044, 0xc001_004a),
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

/// The port permission map: a bit for each port, and three more for accesses across the end.
#[repr(C, align(4096))]
struct PortPermissions([u8; 0x3000]);

/// Ports whose accesses by root exit, because they can close the gate of address line 20: see `root::a20`.
const ROOT_PORTS: [u16; 3] = [0x60, 0x64, 0x92];

static GUEST_PORTS: PortPermissions = PortPermissions([!0; 0x3000]);
static ROOT_PORT_PERMISSIONS: PortPermissions = PortPermissions::root();
static ROOT_MSRS: MsrPermissions = MsrPermissions::root();
static GUEST_MSRS: MsrPermissions = MsrPermissions::guest();

/// Physical addresses of the maps of root or of a guest.
pub(super) struct Maps {
    pub(super) msrs: Hpa,
    pub(super) ports: Hpa,
}

/// Returns the maps of every guest: all ports exit, and all registers but a few.
pub(super) fn guest_maps() -> Maps {
    Maps {
        msrs: image_physical(&raw const GUEST_MSRS),
        ports: image_physical(&raw const GUEST_PORTS),
    }
}

/// Returns root's maps.
pub(super) fn root_maps() -> Maps {
    Maps {
        msrs: image_physical(&raw const ROOT_MSRS),
        ports: image_physical(&raw const ROOT_PORT_PERMISSIONS),
    }
}

impl PortPermissions {
    /// Makes root's map: only the ports of the gate exit.
    const fn root() -> Self {
        let mut map = [0; 0x3000];
        let mut n = 0;
        while n < ROOT_PORTS.len() {
            map[ROOT_PORTS[n] as usize / 8] |= 1 << (ROOT_PORTS[n] % 8);
            n += 1;
        }
        Self(map)
    }
}

impl MsrPermissions {
    /// Makes a guest's map.
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

    /// Makes root's map: all registers but SVM's can be read without an exit, and [`ROOT_WRITES`] can be written.
    pub(super) const fn root() -> Self {
        const WRITES_EXIT: u8 = 0b1010_1010;
        let mut map = [WRITES_EXIT; 8192];
        let mut n = 0;
        while n < ROOT_ABSENT.len() {
            let (byte, shift) = position(ROOT_ABSENT[n]);
            map[byte] |= 0b11 << shift;
            n += 1;
        }
        n = 0;
        while n < ROOT_WRITES.len() {
            let (mut msr, last) = ROOT_WRITES[n];
            while msr <= last {
                let (byte, shift) = position(msr);
                map[byte] &= !(0b10 << shift);
                msr += 1;
            }
            n += 1;
        }
        Self(map)
    }
}

/// Returns byte and bit of a register in the map. The register must be in one of the map's three ranges.
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

    fn is_listed(msr: u32) -> bool {
        let mut runs = ROOT_WRITES.iter();
        runs.any(|(first, last)| (*first..=*last).contains(&msr))
    }

    #[test]
    fn root_reads_all_but_svms_and_writes_a_list() {
        let map = MsrPermissions::root();
        let exits = |msr| {
            let (byte, shift) = position(msr);
            (map.0[byte] >> shift & 1 != 0, map.0[byte] >> shift & 2 != 0)
        };
        let ranges = [0, 0xc000_0000, 0xc001_0000].map(|base| base..base + 0x2000);
        for msr in ranges.into_iter().flatten() {
            let is_absent = ROOT_ABSENT.contains(&msr);
            assert_eq!(exits(msr), (is_absent, !is_listed(msr)), "{msr:#x}");
        }
    }

    #[test]
    fn root_has_all_ports_but_those_of_the_gate() {
        let map = PortPermissions::root();
        for port in 0..0x1_0000_usize + 3 {
            let exits = map.0[port / 8] >> (port % 8) & 1 != 0;
            assert_eq!(exits, matches!(port, 0x60 | 0x64 | 0x92), "{port:#x}");
        }
    }

    #[test]
    fn what_moves_memory_is_not_listed() {
        let moves = [
            0x1b,
            0x200,
            0x20f,
            0x2ff,
            0x1d9,
            0xc001_0010,
            0xc001_0015,
            0xc001_0016,
        ];
        let more = [
            0xc001_0058,
            0xc001_001a,
            0xc001_001d,
            0xc001_0020,
            0xc001_0111,
            0xc001_0130,
        ];
        for msr in moves.into_iter().chain(more) {
            assert!(!is_listed(msr), "{msr:#x}");
        }
    }
}
