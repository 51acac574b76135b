//! CPUID for a guest: a table that root sets for each virtual CPU, within bounds.
//!
//! Pure: the host's answers come in as a function. A bit can be set only if the host, the microvisor and the worker
//! support it. The features that the guest may switch on by control registers follow from the same lists. Leaves that
//! the table does not have are zero, as on AMD's CPUs beyond the highest leaf (APM vol. 3 §E.2).

use guest_proto::cpuid::bit::{
    APIC, ARAT, CMP_LEGACY, HTT, HYPERVISOR, INVARIANT_TSC, TSC_ADJUST, TSC_DEADLINE, X2APIC,
};
use guest_proto::cpuid::{CpuidEntry, CpuidFlags};

use crate::arch::AREA_SIZE;
use table::Entry;
pub use table::Table;

mod table;

/// An answer of CPUID.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leaf {
    /// EAX.
    pub eax: u32,
    /// EBX.
    pub ebx: u32,
    /// ECX.
    pub ecx: u32,
    /// EDX.
    pub edx: u32,
}

/// State of the virtual CPU that its answers depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// The APIC is on by APIC_BASE.
    pub apic_enabled: bool,
    /// CR4.OSXSAVE.
    pub osxsave: bool,
    /// CR4.PKE.
    pub ospke: bool,
    /// XCR0 now.
    pub xcr0: u64,
}

/// XCR0 bits that a guest may set: x87, SSE, AVX, AVX-512's three, protection keys.
pub const XCR0_ALLOWED: u64 = 0b10_1110_0111;

/// SSE3 PCLMULQDQ SSSE3 FMA CX16 PCID SSE4.1 SSE4.2 MOVBE POPCNT AES XSAVE AVX F16C RDRAND.
const LEAF1_ECX: u32 = bits(&[0, 1, 9, 12, 13, 17, 19, 20, 22, 23, 25, 26, 28, 29, 30]);
const XSAVE: u32 = 1 << 26;
const OSXSAVE: u32 = 1 << 27;
/// FPU VME DE PSE TSC MSR PAE MCE CX8 SEP MTRR PGE MCA CMOV PAT PSE36 CLFSH MMX FXSR SSE SSE2.
const LEAF1_EDX: u32 = bits(&[
    0, 1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 14, 15, 16, 17, 19, 23, 24, 25, 26,
]);

/// FSGSBASE BMI1 AVX2 SMEP BMI2 ERMS INVPCID AVX512F AVX512DQ RDSEED ADX SMAP AVX512IFMA
/// CLFLUSHOPT CLWB AVX512CD SHA AVX512BW AVX512VL.
const LEAF7_EBX: u32 = bits(&[
    0, 3, 5, 7, 8, 9, 10, 16, 17, 18, 19, 20, 21, 23, 24, 28, 29, 30, 31,
]);
/// AVX512VBMI UMIP PKU AVX512VBMI2 GFNI VAES VPCLMULQDQ AVX512VNNI AVX512BITALG AVX512VPOPCNTDQ RDPID.
const LEAF7_ECX: u32 = bits(&[1, 2, 3, 6, 8, 9, 10, 11, 12, 14, 22]);
const OSPKE: u32 = 1 << 4;
/// FSRM.
const LEAF7_EDX: u32 = bits(&[4]);

/// XSAVEOPT XSAVEC XGETBV1.
const LEAFD1_EAX: u32 = bits(&[0, 1, 2]);

/// LAHF ABM SSE4A MISALIGNSSE 3DNOWPREFETCH XOP FMA4 TBM TOPOEXT.
const EXT1_ECX: u32 = bits(&[0, 5, 6, 7, 8, 11, 16, 21, 22]);
/// The AMD copies of leaf 1's, then SYSCALL NX MMXEXT PDPE1GB RDTSCP LM 3DNOWEXT 3DNOW.
const EXT1_EDX: u32 = bits(&[
    0, 1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 14, 15, 16, 17, 20, 22, 23, 24, 26, 27, 29, 30, 31,
]);
/// CLZERO XSAVEERPTR; IBPB IBRS STIBP IBRS_ALWAYS STIBP_ALWAYS IBRS_PREFERRED SSBD SSB_NO PSFD BTC_NO IBPB_RET.
const EXT8_EBX: u32 = bits(&[0, 2, 12, 14, 15, 16, 17, 18, 24, 26, 28, 29, 30]);
/// NO_NESTED_DATA_BP LFENCE_SERIALIZING NULL_SELECT_CLEARS_BASE AUTO_IBRS SBPB IBPB_BRTYPE SRSO_NO
/// SRSO_USER_KERNEL_NO.
const EXT21_EAX: u32 = bits(&[0, 2, 6, 8, 27, 28, 29, 30]);

/// The bits that root may set in the answers of some leaves.
struct Bound {
    first: u32,
    last: u32,
    /// The entries may have subleaves.
    subleaves: bool,
    /// Bits of EAX, EBX, ECX and EDX that may be set if the host has them.
    host: [u32; 4],
    /// Bits that may be set on any host: numbers and names, and features of the microvisor's own.
    free: [u32; 4],
}

/// A leaf whose answers are numbers or names.
const fn free(first: u32, last: u32) -> Bound {
    Bound {
        first,
        last,
        subleaves: false,
        host: [0; 4],
        free: [!0; 4],
    }
}

const fn bound(leaf: u32, host: [u32; 4], free: [u32; 4]) -> Bound {
    Bound {
        first: leaf,
        last: leaf,
        subleaves: false,
        host,
        free,
    }
}

const fn with_subleaves(leaf: u32) -> Bound {
    Bound {
        subleaves: true,
        ..free(leaf, leaf)
    }
}

/// All leaves that a guest can have, but for leaf 0xD. OSXSAVE and OSPKE are in none: they follow CR4.
const BOUNDS: &[Bound] = &[
    free(0, 0),
    bound(
        1,
        [0, 0, LEAF1_ECX, LEAF1_EDX],
        [!0, !0, X2APIC | TSC_DEADLINE | HYPERVISOR, APIC | HTT],
    ),
    bound(6, [0; 4], [ARAT, 0, 0, 0]),
    bound(
        7,
        [0, LEAF7_EBX, LEAF7_ECX, LEAF7_EDX],
        [0, TSC_ADJUST, 0, 0],
    ),
    with_subleaves(0xb),
    // Of hypervisors.
    free(0x4000_0000, 0x4000_01ff),
    free(0x8000_0000, 0x8000_0000),
    bound(
        0x8000_0001,
        [0, 0, EXT1_ECX, EXT1_EDX],
        [!0, !0, CMP_LEGACY, APIC],
    ),
    // Brand string, caches and TLBs.
    free(0x8000_0002, 0x8000_0006),
    bound(0x8000_0007, [0; 4], [0, 0, 0, INVARIANT_TSC]),
    bound(0x8000_0008, [0, EXT8_EBX, 0, 0], [!0, 0, !0, 0]),
    free(0x8000_0019, 0x8000_001a),
    with_subleaves(0x8000_001d),
    free(0x8000_001e, 0x8000_001e),
    bound(0x8000_0021, [EXT21_EAX, 0, 0, 0], [0; 4]),
];

const fn bits(list: &[u32]) -> u32 {
    let mut set = 0;
    let mut n = 0;
    while n < list.len() {
        set |= 1 << list[n];
        n += 1;
    }
    set
}

/// Appends an entry of root's to a table, without the bits that a guest cannot have on this host. An entry of which
/// nothing is left is the same as none. Returns whether the entry has the right form and is the next in order.
#[must_use]
pub fn append(table: &mut Table, host: impl Fn(u32, u32) -> Leaf, entry: &CpuidEntry) -> bool {
    let Some(flags) = CpuidFlags::from_bits(entry.flags) else {
        return false;
    };
    let has_subleaf = flags.contains(CpuidFlags::SUBLEAF);
    if entry.reserved != 0 || (entry.subleaf != 0 && !has_subleaf) {
        return false;
    }
    let covers = |bound: &&Bound| {
        (bound.first..=bound.last).contains(&entry.leaf) && (bound.subleaves || entry.subleaf == 0)
    };
    let (from_host, free) = match BOUNDS.iter().find(covers) {
        Some(bound) => (bound.host, bound.free),
        None => ([0; 4], [0; 4]),
    };
    let host = leaf_of(host, entry.leaf);
    let allowed = |host: u32, n: usize| host & from_host[n] | free[n];
    table.push(Entry {
        leaf: entry.leaf,
        subleaf: entry.subleaf,
        has_subleaf,
        answer: Leaf {
            eax: entry.eax & allowed(host.eax, 0),
            ebx: entry.ebx & allowed(host.ebx, 1),
            ecx: entry.ecx & allowed(host.ecx, 2),
            edx: entry.edx & allowed(host.edx, 3),
        },
    })
}

/// Returns the answer of a guest's CPUID for `leaf` and `subleaf`.
pub fn answer(
    table: &Table,
    host: impl Fn(u32, u32) -> Leaf,
    state: &State,
    leaf: u32,
    subleaf: u32,
) -> Leaf {
    if leaf == 0xd {
        return xsave(host, state.xcr0, subleaf);
    }
    let Some(found) = table.find(leaf, subleaf) else {
        return Leaf::default();
    };
    let Leaf {
        eax,
        ebx,
        mut ecx,
        mut edx,
    } = found;
    match leaf {
        1 if state.osxsave => ecx |= OSXSAVE,
        7 if state.ospke && subleaf == 0 => ecx |= OSPKE,
        _ => {}
    }
    if matches!(leaf, 1 | 0x8000_0001) && !state.apic_enabled {
        edx &= !APIC;
    }
    Leaf { eax, ebx, ecx, edx }
}

/// Returns the XCR0 bits that the guest may set on this host: those for whose state an XSAVE area has room.
pub fn xcr0_allowed(host: impl Fn(u32, u32) -> Leaf) -> u64 {
    if host(1, 0).ecx & XSAVE == 0 {
        return 0;
    }
    let leaf = host(0xd, 0);
    let present = u64::from(leaf.eax) | u64::from(leaf.edx) << 32;
    let mut allowed = present & XCR0_ALLOWED;
    if standard_size(&host, allowed) > AREA_SIZE {
        allowed &= LEGACY_AND_AVX;
    }
    if allowed & AVX512 != AVX512 || allowed & AVX == 0 {
        allowed &= !AVX512;
    }
    allowed
}

/// Returns the bits of SPEC_CTRL that the guest may set on this host: IBRS, STIBP, SSBD, PSFD (APM vol. 2 §3.2.9).
pub fn spec_ctrl_allowed(host: impl Fn(u32, u32) -> Leaf) -> u64 {
    let ebx = leaf_of(host, 0x8000_0008).ebx;
    let bits = [(14, 1 << 0), (15, 1 << 1), (24, 1 << 2), (28, 1 << 7)];
    let present = bits.iter().filter(|(feature, _)| ebx & 1 << feature != 0);
    present.fold(0, |all, (_, bit)| all | bit)
}

/// Returns the bits of PRED_CMD that the guest may write on this host: IBPB, SBPB.
pub fn pred_cmd_allowed(host: impl Fn(u32, u32) -> Leaf) -> u64 {
    let ibpb = leaf_of(&host, 0x8000_0008).ebx & 1 << 12 != 0;
    let sbpb = leaf_of(&host, 0x8000_0021).eax & 1 << 27 != 0;
    u64::from(ibpb) | u64::from(sbpb) << 7
}

/// Returns a leaf of the host's, which is zero if the host does not have it.
fn leaf_of(host: impl Fn(u32, u32) -> Leaf, leaf: u32) -> Leaf {
    match host(leaf & 0x8000_0000, 0).eax {
        last if last >= leaf => host(leaf, 0),
        _ => Leaf::default(),
    }
}

/// Bytes of XSAVE's legacy area and header.
const LEGACY: u32 = 512 + 64;
/// x87, SSE and AVX, which have their places by definition (APM vol. 2 table 11-9).
const LEGACY_AND_AVX: u64 = 0b111;

/// Returns the components of `set` that CPUID describes.
fn components(set: u64) -> impl Iterator<Item = u32> {
    (2..63).filter(move |n| set & 1 << n != 0)
}

/// Returns the bytes of XSAVE's standard format for the components of `set`. Each component has a place of its own.
fn standard_size(host: impl Fn(u32, u32) -> Leaf, set: u64) -> u32 {
    let end = |n| {
        let leaf = host(0xd, n);
        leaf.ebx.saturating_add(leaf.eax)
    };
    components(set).map(end).fold(LEGACY, u32::max)
}

const SSE: u64 = 1 << 1;
const AVX: u64 = 1 << 2;
const AVX512: u64 = 0b111 << 5;

/// Returns whether XSETBV may put `value` into XCR0 where `allowed` may be set (APM vol. 2 §11.5.2).
pub fn xcr0_is_valid(value: u64, allowed: u64) -> bool {
    let avx512 = value & AVX512;
    value & 1 != 0
        && value & !allowed == 0
        && (value & AVX == 0 || value & SSE != 0)
        && (avx512 == 0 || (avx512 == AVX512 && value & AVX != 0))
}

/// Returns an answer of leaf 0xD: the extended state that the guest may turn on, and its sizes with this XCR0.
fn xsave(host: impl Fn(u32, u32) -> Leaf, xcr0: u64, subleaf: u32) -> Leaf {
    let allowed = xcr0_allowed(&host);
    if allowed == 0 {
        return Leaf::default();
    }
    let component = |n: u32| host(0xd, n);
    let standard = |set: u64| standard_size(&host, set);
    match subleaf {
        0 => Leaf {
            eax: allowed as u32,
            ebx: standard(xcr0 & allowed),
            ecx: standard(allowed),
            edx: (allowed >> 32) as u32,
        },
        1 => {
            const ALIGNED: u32 = 1 << 1;
            // The compacted format has its components in a row.
            let compacted = components(xcr0 & allowed).fold(LEGACY, |end, n| {
                let leaf = component(n);
                let start = if leaf.ecx & ALIGNED != 0 {
                    end.next_multiple_of(64)
                } else {
                    end
                };
                start.saturating_add(leaf.eax)
            });
            Leaf {
                eax: component(1).eax & LEAFD1_EAX,
                ebx: compacted,
                ..Leaf::default()
            }
        }
        n @ 2..63 if allowed & 1 << n != 0 => {
            let leaf = component(n);
            Leaf { edx: 0, ..leaf }
        }
        _ => Leaf::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host that has every bit.
    fn all(leaf: u32, subleaf: u32) -> Leaf {
        match (leaf, subleaf) {
            (0, _) => leaf4(0x20, 0, 0, 0),
            (0x8000_0000, _) => leaf4(0x8000_0028, 0, 0, 0),
            // AVX: 256 bytes at 576; AVX-512: 64, 512 and 1024 bytes.
            (0xd, 2) => leaf4(256, 576, 0, 0),
            (0xd, 5) => leaf4(64, 832, 0, 0),
            (0xd, 6) => leaf4(512, 896, 0, 0),
            (0xd, 7) => leaf4(1024, 1408, 0, 0),
            (0xd, 9) => leaf4(8, 2432, 0, 0),
            (0x8000_0008, _) => leaf4(52 | 57 << 8, !0, !0, !0),
            _ => leaf4(!0, !0, !0, !0),
        }
    }

    fn none(leaf: u32, _: u32) -> Leaf {
        match leaf {
            0 => leaf4(1, 0, 0, 0),
            0x8000_0000 => leaf4(0x8000_0008, 0, 0, 0),
            _ => Leaf::default(),
        }
    }

    fn leaf4(eax: u32, ebx: u32, ecx: u32, edx: u32) -> Leaf {
        Leaf { eax, ebx, ecx, edx }
    }

    const STATE: State = State {
        apic_enabled: true,
        osxsave: false,
        ospke: false,
        xcr0: 1,
    };

    fn entry(leaf: u32, subleaf: u32, flags: u32, eax: u32) -> CpuidEntry {
        CpuidEntry {
            leaf,
            subleaf,
            flags,
            eax,
            ..CpuidEntry::default()
        }
    }

    /// An entry that asks for every bit.
    fn every_bit(leaf: u32, subleaf: u32) -> CpuidEntry {
        CpuidEntry {
            ebx: !0,
            ecx: !0,
            edx: !0,
            ..entry(leaf, subleaf, CpuidFlags::SUBLEAF.bits(), !0)
        }
    }

    /// The answer to an entry that asks for every bit.
    fn bounded(host: impl Fn(u32, u32) -> Leaf, leaf: u32, subleaf: u32) -> Leaf {
        let mut table = Table::new();
        assert!(append(&mut table, &host, &every_bit(leaf, subleaf)));
        answer(&table, &host, &STATE, leaf, subleaf)
    }

    #[test]
    fn what_is_not_virtualised_is_never_shown() {
        const MONITOR: u32 = 1 << 3;
        const VMX: u32 = 1 << 5;
        assert_eq!(bounded(all, 1, 0).ecx & (MONITOR | VMX | OSXSAVE), 0);
        const SVM: u32 = 1 << 2;
        const SKINIT: u32 = 1 << 12;
        assert_eq!(bounded(all, 0x8000_0001, 0).ecx & (SVM | SKINIT), 0);
        for leaf in [0x8000_000a, 0x8000_001f, 0x12, 0x14, 5, 0xa, 0x4000_0200] {
            assert_eq!(bounded(all, leaf, 0), Leaf::default(), "{leaf:#x}");
        }
        assert_eq!(bounded(all, 7, 1), Leaf::default());
        assert_eq!(bounded(all, 0x8000_001d, 3), leaf4(!0, !0, !0, !0));
    }

    #[test]
    fn what_the_host_lacks_is_not_shown() {
        assert_eq!(bounded(none, 7, 0), leaf4(0, TSC_ADJUST, 0, 0));
        let own = X2APIC | TSC_DEADLINE | HYPERVISOR;
        assert_eq!(bounded(none, 1, 0), leaf4(!0, !0, own, APIC | HTT));
        assert_eq!(answer(&Table::new(), none, &STATE, 0xd, 0), Leaf::default());
        assert_eq!(xcr0_allowed(none), 0);
    }

    #[test]
    fn a_question_finds_its_own_entry() {
        let mut table = Table::new();
        let subleaf = CpuidFlags::SUBLEAF.bits();
        for entry in [
            entry(0, 0, 0, 1),
            entry(0xb, 0, subleaf, 2),
            entry(0xb, 1, subleaf, 3),
            entry(0x8000_0002, 0, 0, 4),
        ] {
            assert!(append(&mut table, all, &entry));
        }
        for (leaf, subleaf, eax) in [
            (0, 0, 1),
            (0, 7, 1),
            (0xb, 0, 2),
            (0xb, 1, 3),
            (0xb, 2, 0),
            (1, 0, 0),
            (0xc, 0, 0),
            (0x8000_0002, !0, 4),
            (!0, 0, 0),
        ] {
            let found = answer(&table, all, &STATE, leaf, subleaf);
            assert_eq!(found.eax, eax, "{leaf:#x}, {subleaf:#x}");
        }
    }

    #[test]
    fn an_entry_out_of_order_or_form_is_refused() {
        let subleaf = CpuidFlags::SUBLEAF.bits();
        let mut table = Table::new();
        assert!(append(&mut table, all, &entry(0xb, 1, subleaf, 0)));
        for bad in [
            entry(0xb, 1, subleaf, 0),
            entry(0xb, 0, 0, 0),
            entry(1, 0, 0, 0),
            entry(0x8000_0000, 1, 0, 0),
            entry(0x8000_0000, 0, 2, 0),
            CpuidEntry {
                reserved: 1,
                ..entry(0x8000_0000, 0, 0, 0)
            },
        ] {
            assert!(!append(&mut table, all, &bad), "{bad:x?}");
        }
        assert_eq!(table.len(), 1);
    }

    #[test]
    fn some_bits_follow_the_virtual_cpu() {
        let mut table = Table::new();
        for leaf in [1, 7, 0x8000_0001] {
            assert!(append(&mut table, all, &every_bit(leaf, 0)));
        }
        let ask = |state: &State, leaf| answer(&table, all, state, leaf, 0);
        assert_eq!(ask(&STATE, 1).ecx & OSXSAVE, 0);
        assert_eq!(ask(&STATE, 7).ecx & OSPKE, 0);
        assert_eq!(
            ask(&STATE, 1).edx & ask(&STATE, 0x8000_0001).edx & APIC,
            APIC
        );
        let other = State {
            apic_enabled: false,
            osxsave: true,
            ospke: true,
            xcr0: 1,
        };
        assert_eq!(ask(&other, 1).ecx & OSXSAVE, OSXSAVE);
        assert_eq!(ask(&other, 7).ecx & OSPKE, OSPKE);
        assert_eq!(
            (ask(&other, 1).edx | ask(&other, 0x8000_0001).edx) & APIC,
            0
        );
    }

    #[test]
    fn xsave_sizes_follow_xcr0() {
        assert_eq!(xcr0_allowed(all), 0x2e7);
        assert_eq!(xsave(all, 1, 0), leaf4(0x2e7, 576, 2440, 0));
        assert_eq!(xsave(all, 7, 0).ebx, 832);
        assert_eq!(xsave(all, 7, 1).ebx, 832);
        assert_eq!(xsave(all, 7, 8), Leaf::default());
    }

    #[test]
    fn components_without_room_are_not_allowed() {
        let far = |leaf, subleaf| match (leaf, subleaf) {
            (0xd, 9) => leaf4(8, 4090, 0, 0),
            _ => all(leaf, subleaf),
        };
        assert_eq!(xcr0_allowed(far), 0b111);
        assert_eq!(xsave(far, 1, 0), leaf4(0b111, 576, 832, 0));
    }

    #[test]
    fn xcr0_takes_only_what_belongs_together() {
        for good in [1, 3, 7, 0xe7] {
            assert!(xcr0_is_valid(good, 0xe7), "{good:#x}");
        }
        for bad in [0, 2, 5, 0x27, 0xe3, 0x207, u64::MAX] {
            assert!(!xcr0_is_valid(bad, 0xe7), "{bad:#x}");
        }
        assert!(!xcr0_is_valid(0xe7, 7));
    }

    #[test]
    fn protection_from_speculation_is_the_hosts() {
        assert_eq!(spec_ctrl_allowed(all), 0x87);
        assert_eq!(pred_cmd_allowed(all), 0x81);
        assert_eq!((spec_ctrl_allowed(none), pred_cmd_allowed(none)), (0, 0));
        let old = |leaf, subleaf| match leaf {
            0x8000_0008 => leaf4(48, 1 << 12 | 1 << 15, 0, 0),
            _ => none(leaf, subleaf),
        };
        assert_eq!((spec_ctrl_allowed(old), pred_cmd_allowed(old)), (2, 1));
        assert_eq!(bounded(old, 0x8000_0008, 0).ebx, 1 << 12 | 1 << 15);
        // VIRT_SSBD, INVLPGB, and prefetch control, upper address ignore are not.
        let (eight, new) = (bounded(all, 0x8000_0008, 0), bounded(all, 0x8000_0021, 0));
        assert_eq!(eight.ebx & (1 << 25 | 1 << 3), 0);
        assert_eq!(new.eax & (1 << 13 | 1 << 7), 0);
    }
}
