//! CPUID for a guest: the host's features through an allow-list, the guest's own topology, KVM's documented
//! leaves and ours.
//!
//! Pure: the host's answers come in as a function. A bit is shown only if the microvisor and the
//! worker support it. The features that the guest may switch on by control registers follow from the
//! same lists. Leaves that are not named here are zero, as on AMD's CPUs beyond the highest leaf (APM vol. 3
//! §E.2).

use guest_proto::ABI_VERSION;
use guest_proto::cpuid::{Features, SIGNATURE, leaf as ours, signature_words};

use crate::arch::AREA_SIZE;

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

/// Facts that the answers depend on besides the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Partition.
    pub partition: u8,
    /// Features of the microvisor.
    pub features: Features,
    /// APIC id of the virtual CPU.
    pub apic_id: u32,
    /// Virtual CPUs in the topology, 1 or more.
    pub vcpus: u32,
    /// Frequency of the TSC, 0 if unknown.
    pub tsc_khz: u32,
    /// Frequency of the vLAPIC's timer.
    pub apic_khz: u32,
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

const KVM_BASE: u32 = 0x4000_0000;
const KVM_FEATURES: u32 = KVM_BASE + 1;
const KVM_LAST: u32 = KVM_BASE + 0x10;
const KVM_SIGNATURE: [u8; 12] = *b"KVMKVMKVM\0\0\0";
/// NOP_IO_DELAY, CLOCKSOURCE2, CLOCKSOURCE_STABLE_BIT (Linux: Documentation/virt/kvm/x86/cpuid.rst).
const KVM_FEATURE_BITS: u32 = 1 << 1 | 1 << 3 | 1 << 24;

const BASIC_LAST: u32 = 0xd;
const BASIC_LEAST: u32 = 0xb;
const EXTENDED_LAST: u32 = 0x8000_0021;

/// SSE3 PCLMULQDQ SSSE3 FMA CX16 PCID SSE4.1 SSE4.2 MOVBE POPCNT AES XSAVE AVX F16C RDRAND.
const LEAF1_ECX: u32 = bits(&[0, 1, 9, 12, 13, 17, 19, 20, 22, 23, 25, 26, 28, 29, 30]);
const X2APIC: u32 = 1 << 21;
const TSC_DEADLINE: u32 = 1 << 24;
const XSAVE: u32 = 1 << 26;
const OSXSAVE: u32 = 1 << 27;
const HYPERVISOR: u32 = 1 << 31;
/// FPU VME DE PSE TSC MSR PAE MCE CX8 SEP MTRR PGE MCA CMOV PAT PSE36 CLFSH MMX FXSR SSE SSE2.
const LEAF1_EDX: u32 = bits(&[
    0, 1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 14, 15, 16, 17, 19, 23, 24, 25, 26,
]);
const APIC: u32 = 1 << 9;
const HTT: u32 = 1 << 28;

/// FSGSBASE BMI1 AVX2 SMEP BMI2 ERMS INVPCID AVX512F AVX512DQ RDSEED ADX SMAP AVX512IFMA
/// CLFLUSHOPT CLWB AVX512CD SHA AVX512BW AVX512VL.
const LEAF7_EBX: u32 = bits(&[
    0, 3, 5, 7, 8, 9, 10, 16, 17, 18, 19, 20, 21, 23, 24, 28, 29, 30, 31,
]);
const TSC_ADJUST: u32 = 1 << 1;
/// AVX512VBMI UMIP PKU AVX512VBMI2 GFNI VAES VPCLMULQDQ AVX512VNNI AVX512BITALG AVX512VPOPCNTDQ RDPID.
const LEAF7_ECX: u32 = bits(&[1, 2, 3, 6, 8, 9, 10, 11, 12, 14, 22]);
const OSPKE: u32 = 1 << 4;
/// FSRM.
const LEAF7_EDX: u32 = bits(&[4]);

/// XSAVEOPT XSAVEC XGETBV1.
const LEAFD1_EAX: u32 = bits(&[0, 1, 2]);

/// LAHF ABM SSE4A MISALIGNSSE 3DNOWPREFETCH XOP FMA4 TBM TOPOEXT.
const EXT1_ECX: u32 = bits(&[0, 5, 6, 7, 8, 11, 16, 21, 22]);
const CMP_LEGACY: u32 = 1 << 1;
/// The AMD copies of leaf 1's, then SYSCALL NX MMXEXT PDPE1GB RDTSCP LM 3DNOWEXT 3DNOW.
const EXT1_EDX: u32 = bits(&[
    0, 1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 14, 15, 16, 17, 20, 22, 23, 24, 26, 27, 29, 30, 31,
]);
const INVARIANT_TSC: u32 = 1 << 8;
/// CLZERO XSAVEERPTR; IBPB IBRS STIBP IBRS_ALWAYS STIBP_ALWAYS IBRS_PREFERRED SSBD SSB_NO PSFD BTC_NO IBPB_RET.
const EXT8_EBX: u32 = bits(&[0, 2, 12, 14, 15, 16, 17, 18, 24, 26, 28, 29, 30]);
/// NO_NESTED_DATA_BP LFENCE_SERIALIZING NULL_SELECT_CLEARS_BASE AUTO_IBRS SBPB IBPB_BRTYPE SRSO_NO
/// SRSO_USER_KERNEL_NO.
const EXT21_EAX: u32 = bits(&[0, 2, 6, 8, 27, 28, 29, 30]);
/// The APIC timer runs in every C state.
const ARAT: u32 = 1 << 2;
/// Guest physical addresses that the nested tables have.
const PHYS_BITS: u32 = 48;
const VIRT_BITS: u32 = 48;

const fn bits(list: &[u32]) -> u32 {
    let mut set = 0;
    let mut n = 0;
    while n < list.len() {
        set |= 1 << list[n];
        n += 1;
    }
    set
}

/// Returns the answer of a guest's CPUID for `leaf` and `subleaf`.
pub fn answer(host: impl Fn(u32, u32) -> Leaf, facts: &Facts, leaf: u32, subleaf: u32) -> Leaf {
    match leaf {
        0 => {
            let host = host(0, 0);
            let eax = host.eax.clamp(BASIC_LEAST, BASIC_LAST);
            Leaf { eax, ..host }
        }
        1 => features(host(1, 0), facts),
        6 => Leaf {
            eax: ARAT,
            ..Leaf::default()
        },
        7 if subleaf == 0 => {
            let host = host(7, 0);
            Leaf {
                eax: 0,
                ebx: host.ebx & LEAF7_EBX | TSC_ADJUST,
                ecx: host.ecx & LEAF7_ECX | if facts.ospke { OSPKE } else { 0 },
                edx: host.edx & LEAF7_EDX,
            }
        }
        0xb => topology(facts, subleaf),
        0xd if host(1, 0).ecx & XSAVE != 0 => xsave(host, facts, subleaf),
        KVM_BASE => signature(KVM_LAST, KVM_SIGNATURE),
        KVM_FEATURES => Leaf {
            eax: KVM_FEATURE_BITS,
            ..Leaf::default()
        },
        KVM_LAST => Leaf {
            eax: facts.tsc_khz,
            ebx: facts.apic_khz,
            ..Leaf::default()
        },
        ours::GUEST_BASE => signature(ours::GUEST_BASE + 1, SIGNATURE),
        leaf if leaf == ours::GUEST_BASE + 1 => Leaf {
            eax: ABI_VERSION,
            ebx: facts.features.bits(),
            ecx: u32::from(facts.partition),
            edx: 0,
        },
        0x8000_0000.. => extended(host, facts, leaf, subleaf),
        _ => Leaf::default(),
    }
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
    let ebx = extended_leaf(host, 0x8000_0008).ebx;
    let bits = [(14, 1 << 0), (15, 1 << 1), (24, 1 << 2), (28, 1 << 7)];
    let present = bits.iter().filter(|(feature, _)| ebx & 1 << feature != 0);
    present.fold(0, |all, (_, bit)| all | bit)
}

/// Returns the bits of PRED_CMD that the guest may write on this host: IBPB, SBPB.
pub fn pred_cmd_allowed(host: impl Fn(u32, u32) -> Leaf) -> u64 {
    let ibpb = extended_leaf(&host, 0x8000_0008).ebx & 1 << 12 != 0;
    let sbpb = extended_leaf(&host, 0x8000_0021).eax & 1 << 27 != 0;
    u64::from(ibpb) | u64::from(sbpb) << 7
}

/// Returns a leaf of the host's, which is zero if the host does not have it.
fn extended_leaf(host: impl Fn(u32, u32) -> Leaf, leaf: u32) -> Leaf {
    match host(0x8000_0000, 0).eax {
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

fn features(host: Leaf, facts: &Facts) -> Leaf {
    const CLFLUSH_SIZE: u32 = 0xff00;
    let many = if facts.vcpus > 1 { HTT } else { 0 };
    let apic = if facts.apic_enabled { APIC } else { 0 };
    let osxsave = if facts.osxsave { OSXSAVE } else { 0 };
    Leaf {
        eax: host.eax,
        ebx: host.ebx & CLFLUSH_SIZE | facts.vcpus.min(0xff) << 16 | facts.apic_id << 24,
        ecx: host.ecx & LEAF1_ECX | X2APIC | TSC_DEADLINE | HYPERVISOR | osxsave,
        edx: host.edx & LEAF1_EDX | apic | many,
    }
}

/// Returns the topology: one thread in each core, and one package.
fn topology(facts: &Facts, subleaf: u32) -> Leaf {
    const THREAD: u32 = 1 << 8;
    const CORE: u32 = 2 << 8;
    let level = subleaf & 0xff;
    let (eax, ebx, kind) = match level {
        0 => (0, 1, THREAD),
        1 => (id_bits(facts.vcpus), facts.vcpus, CORE),
        _ => (0, 0, 0),
    };
    Leaf {
        eax,
        ebx,
        ecx: kind | level,
        edx: facts.apic_id,
    }
}

/// Returns the count of bits of an APIC id that tell `count` virtual CPUs apart.
fn id_bits(count: u32) -> u32 {
    count.max(1).next_power_of_two().trailing_zeros()
}

fn xsave(host: impl Fn(u32, u32) -> Leaf, facts: &Facts, subleaf: u32) -> Leaf {
    let allowed = xcr0_allowed(&host);
    let component = |n: u32| host(0xd, n);
    let standard = |set: u64| standard_size(&host, set);
    match subleaf {
        0 => Leaf {
            eax: allowed as u32,
            ebx: standard(facts.xcr0 & allowed),
            ecx: standard(allowed),
            edx: (allowed >> 32) as u32,
        },
        1 => {
            const ALIGNED: u32 = 1 << 1;
            // The compacted format has its components in a row.
            let compacted = components(facts.xcr0 & allowed).fold(LEGACY, |end, n| {
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

fn extended(host: impl Fn(u32, u32) -> Leaf, facts: &Facts, leaf: u32, subleaf: u32) -> Leaf {
    let top = host(0x8000_0000, 0);
    if leaf > top.eax {
        return Leaf::default();
    }
    match leaf {
        0x8000_0000 => Leaf {
            eax: top.eax.min(EXTENDED_LAST),
            ..top
        },
        0x8000_0001 => {
            let host = host(leaf, 0);
            let many = if facts.vcpus > 1 { CMP_LEGACY } else { 0 };
            let apic = if facts.apic_enabled { APIC } else { 0 };
            Leaf {
                eax: host.eax,
                ebx: host.ebx,
                ecx: host.ecx & EXT1_ECX | many,
                edx: host.edx & EXT1_EDX | apic,
            }
        }
        // Brand string, caches and TLBs.
        0x8000_0002..=0x8000_0006 | 0x8000_0019 | 0x8000_001a => host(leaf, 0),
        0x8000_0007 => Leaf {
            edx: INVARIANT_TSC,
            ..Leaf::default()
        },
        0x8000_0008 => {
            let host = host(leaf, 0);
            let phys = (host.eax & 0xff).min(PHYS_BITS);
            Leaf {
                eax: phys | VIRT_BITS << 8,
                ebx: host.ebx & EXT8_EBX,
                ecx: (facts.vcpus - facts.vcpus.min(1)).min(0xff) | id_bits(facts.vcpus) << 12,
                edx: 0,
            }
        }
        0x8000_0021 => Leaf {
            eax: host(leaf, 0).eax & EXT21_EAX,
            ..Leaf::default()
        },
        0x8000_001d => cache(host(leaf, subleaf), facts),
        0x8000_001e => Leaf {
            eax: facts.apic_id,
            ebx: facts.apic_id & 0xff,
            ..Leaf::default()
        },
        _ => Leaf::default(),
    }
}

/// Returns a cache of the host's. All virtual CPUs share it if it is of the third level.
fn cache(host: Leaf, facts: &Facts) -> Leaf {
    const SHARING: u32 = 0xfff << 14;
    let level = host.eax >> 5 & 7;
    let sharing = if level >= 3 {
        facts.vcpus.max(1) - 1
    } else {
        0
    };
    Leaf {
        eax: host.eax & !SHARING & 0x3fff | sharing.min(0xfff) << 14,
        ..host
    }
}

fn signature(last: u32, name: [u8; 12]) -> Leaf {
    let [ebx, ecx, edx] = signature_words(name);
    Leaf {
        eax: last,
        ebx,
        ecx,
        edx,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host that has every bit.
    fn all(leaf: u32, subleaf: u32) -> Leaf {
        match (leaf, subleaf) {
            (0, _) => signature(0x20, *b"AuthenticAMD"),
            (0x8000_0000, _) => signature(0x8000_0028, *b"AuthenticAMD"),
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
            0 => signature(1, *b"AuthenticAMD"),
            0x8000_0000 => signature(0x8000_0008, *b"AuthenticAMD"),
            _ => Leaf::default(),
        }
    }

    fn leaf4(eax: u32, ebx: u32, ecx: u32, edx: u32) -> Leaf {
        Leaf { eax, ebx, ecx, edx }
    }

    const FACTS: Facts = Facts {
        partition: 7,
        features: Features::NESTED_PAGING,
        apic_id: 2,
        vcpus: 3,
        tsc_khz: 2_000_000,
        apic_khz: 1_000_000,
        apic_enabled: true,
        osxsave: false,
        ospke: false,
        xcr0: 1,
    };

    #[test]
    fn what_is_not_virtualised_is_never_shown() {
        let one = answer(all, &FACTS, 1, 0);
        const MONITOR: u32 = 1 << 3;
        const VMX: u32 = 1 << 5;
        assert_eq!(one.ecx & (MONITOR | VMX | OSXSAVE), 0);
        let ext = answer(all, &FACTS, 0x8000_0001, 0);
        const SVM: u32 = 1 << 2;
        const SKINIT: u32 = 1 << 12;
        assert_eq!(ext.ecx & (SVM | SKINIT), 0);
        for leaf in [0x8000_000a, 0x8000_001f, 0x12, 0x14, 5, 0xa] {
            assert_eq!(answer(all, &FACTS, leaf, 0), Leaf::default(), "{leaf:#x}");
        }
    }

    #[test]
    fn what_the_host_lacks_is_not_shown() {
        assert_eq!(answer(none, &FACTS, 7, 0).ebx, TSC_ADJUST);
        assert_eq!(answer(none, &FACTS, 0xd, 0), Leaf::default());
        let forced = X2APIC | TSC_DEADLINE | HYPERVISOR;
        assert_eq!(answer(none, &FACTS, 1, 0).ecx, forced);
        assert_eq!(xcr0_allowed(none), 0);
    }

    #[test]
    fn topology_is_the_partitions() {
        assert_eq!(answer(all, &FACTS, 0xb, 0), leaf4(0, 1, 0x100, 2));
        assert_eq!(answer(all, &FACTS, 0xb, 1), leaf4(2, 3, 0x201, 2));
        assert_eq!(answer(all, &FACTS, 0xb, 2), leaf4(0, 0, 2, 2));
        let one = answer(all, &FACTS, 1, 0);
        assert_eq!((one.ebx >> 24, one.ebx >> 16 & 0xff), (2, 3));
        assert_eq!(answer(all, &FACTS, 0x8000_0008, 0).ecx, 2 | 2 << 12);
        assert_eq!(answer(all, &FACTS, 0x8000_0008, 0).eax, 48 | 48 << 8);
        let single = Facts { vcpus: 1, ..FACTS };
        assert_eq!(answer(all, &single, 1, 0).edx & HTT, 0);
        assert_eq!(answer(all, &single, 0xb, 1).eax, 0);
    }

    #[test]
    fn xsave_sizes_follow_xcr0() {
        assert_eq!(xcr0_allowed(all), 0x2e7);
        assert_eq!(answer(all, &FACTS, 0xd, 0), leaf4(0x2e7, 576, 2440, 0));
        let avx = Facts { xcr0: 7, ..FACTS };
        assert_eq!(answer(all, &avx, 0xd, 0).ebx, 832);
        assert_eq!(answer(all, &avx, 0xd, 1).ebx, 832);
        assert_eq!(answer(all, &avx, 0xd, 8), Leaf::default());
    }

    #[test]
    fn components_without_room_are_not_allowed() {
        let far = |leaf, subleaf| match (leaf, subleaf) {
            (0xd, 9) => leaf4(8, 4090, 0, 0),
            _ => all(leaf, subleaf),
        };
        assert_eq!(xcr0_allowed(far), 0b111);
        assert_eq!(answer(far, &FACTS, 0xd, 0), leaf4(0b111, 576, 832, 0));
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
        let shown = answer(old, &FACTS, 0x8000_0008, 0).ebx;
        assert_eq!(shown, 1 << 12 | 1 << 15);
        // VIRT_SSBD, INVLPGB, and prefetch control, upper address ignore are not.
        assert_eq!(
            answer(all, &FACTS, 0x8000_0008, 0).ebx & (1 << 25 | 1 << 3),
            0
        );
        assert_eq!(
            answer(all, &FACTS, 0x8000_0021, 0).eax & (1 << 13 | 1 << 7),
            0
        );
    }

    #[test]
    fn both_signatures_are_there() {
        let kvm = answer(all, &FACTS, 0x4000_0000, 0);
        assert_eq!(
            (kvm.ebx, kvm.ecx, kvm.edx),
            (0x4b4d_564b, 0x564b_4d56, 0x4d)
        );
        assert_eq!(answer(all, &FACTS, 0x4000_0010, 0).eax, 2_000_000);
        let here = answer(all, &FACTS, 0x4000_0101, 0);
        assert_eq!((here.eax, here.ecx), (ABI_VERSION, 7));
    }
}
