//! The CPUID of a guest: the features of the CPU, the guest's own topology, KVM's documented leaves and the
//! microvisor's.
//!
//! Features stand here as VM 0 sees them: the microvisor clears each bit that a guest cannot have (`vcpu_set_cpuid`),
//! and adds the bits that follow a virtual CPU's registers.

use std::arch::x86_64::CpuidResult;

use guest_proto::cpuid::bit::{
    APIC, ARAT, CMP_LEGACY, HTT, HYPERVISOR, INVARIANT_TSC, TSC_ADJUST, TSC_DEADLINE, X2APIC,
};
use guest_proto::cpuid::{CpuidEntry, CpuidFlags, SIGNATURE, leaf as own, signature_words};
use guest_proto::limits::VLAPIC_KHZ;

/// The highest basic leaf that a guest sees, and the least.
const BASIC_LAST: u32 = 0xd;
const BASIC_LEAST: u32 = 0xb;
const EXTENDED: u32 = 0x8000_0000;
const EXTENDED_LAST: u32 = 0x8000_0021;
/// The most caches that are listed.
const CACHES: u32 = 8;

/// Bits of guest physical addresses, and of linear addresses.
const PHYS_BITS: u32 = 48;
const VIRT_BITS: u32 = 48;

const KVM_BASE: u32 = 0x4000_0000;
const KVM_FEATURES: u32 = KVM_BASE + 1;
const KVM_LAST: u32 = KVM_BASE + 0x10;
const KVM_SIGNATURE: [u8; 12] = *b"KVMKVMKVM\0\0\0";
/// NOP_IO_DELAY, CLOCKSOURCE2, CLOCKSOURCE_STABLE_BIT (Linux: Documentation/virt/kvm/x86/cpuid.rst).
const KVM_FEATURE_BITS: u32 = 1 << 1 | 1 << 3 | 1 << 24;

/// Facts that the answers depend on besides the CPU.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts {
    /// Id of the partition.
    pub(super) partition: u64,
    /// Virtual CPUs, 1 or more.
    pub(super) vcpus: u32,
    /// Frequency of the TSC.
    pub(super) tsc_khz: u64,
    /// Version of the microvisor's ABI.
    pub(super) abi_version: u32,
    /// Features of the microvisor.
    pub(super) features: u32,
}

/// The answers of a VM's CPUID, but for the APIC ids.
#[derive(Debug)]
pub(super) struct Cpuid(Vec<CpuidEntry>);

impl Cpuid {
    /// Makes the answers for a VM on this CPU.
    pub(super) fn here(facts: &Facts) -> Self {
        Self::new(std::arch::x86_64::__cpuid_count, facts)
    }

    fn new(host: impl Fn(u32, u32) -> CpuidResult, facts: &Facts) -> Self {
        let mut entries = Vec::new();
        basic(&mut entries, &host, facts);
        hypervisor(&mut entries, facts);
        extended(&mut entries, &host, facts);
        Self(entries)
    }

    /// Returns the answers of the virtual CPU with this APIC id, in ascending order of leaf and subleaf.
    pub(super) fn of(&self, apic_id: u32) -> Vec<CpuidEntry> {
        let mut entries = self.0.clone();
        for entry in &mut entries {
            match entry.leaf {
                1 => entry.ebx |= apic_id << 24,
                0xb => entry.edx = apic_id,
                0x8000_001e => (entry.eax, entry.ebx) = (apic_id, apic_id & 0xff),
                _ => {}
            }
        }
        entries
    }
}

fn basic(entries: &mut Vec<CpuidEntry>, host: &impl Fn(u32, u32) -> CpuidResult, facts: &Facts) {
    const CLFLUSH_SIZE: u32 = 0xff00;
    const THREAD: u32 = 1 << 8;
    const CORE: u32 = 2 << 8;
    let names = host(0, 0);
    let last = names.eax.clamp(BASIC_LEAST, BASIC_LAST);
    entries.push(every(0, CpuidResult { eax: last, ..names }));
    let one = host(1, 0);
    let many = if facts.vcpus > 1 { HTT } else { 0 };
    let features = CpuidResult {
        eax: one.eax,
        ebx: one.ebx & CLFLUSH_SIZE | facts.vcpus.min(0xff) << 16,
        ecx: one.ecx | X2APIC | TSC_DEADLINE | HYPERVISOR,
        edx: one.edx & !HTT | APIC | many,
    };
    entries.push(every(1, features));
    entries.push(every(6, words(ARAT, 0, 0, 0)));
    let seven = match names.eax {
        7.. => host(7, 0),
        _ => words(0, 0, 0, 0),
    };
    let seven = CpuidResult {
        eax: 0,
        ebx: seven.ebx | TSC_ADJUST,
        ..seven
    };
    entries.push(one_subleaf(7, 0, seven));
    // One thread in each core, and one package.
    entries.push(one_subleaf(0xb, 0, words(0, 1, THREAD, 0)));
    let cores = words(id_bits(facts.vcpus), facts.vcpus, CORE | 1, 0);
    entries.push(one_subleaf(0xb, 1, cores));
}

fn hypervisor(entries: &mut Vec<CpuidEntry>, facts: &Facts) {
    let tsc_khz = u32::try_from(facts.tsc_khz).unwrap_or(0);
    let version = words(facts.abi_version, facts.features, facts.partition as u32, 0);
    entries.extend([
        every(KVM_BASE, signature(KVM_LAST, KVM_SIGNATURE)),
        every(KVM_FEATURES, words(KVM_FEATURE_BITS, 0, 0, 0)),
        every(KVM_LAST, words(tsc_khz, VLAPIC_KHZ as u32, 0, 0)),
        every(own::GUEST_BASE, signature(own::GUEST_BASE + 1, SIGNATURE)),
        every(own::GUEST_BASE + 1, version),
    ]);
}

fn extended(entries: &mut Vec<CpuidEntry>, host: &impl Fn(u32, u32) -> CpuidResult, facts: &Facts) {
    let top = host(EXTENDED, 0);
    let last = top.eax.min(EXTENDED_LAST);
    let others = facts.vcpus.saturating_sub(1);
    let many = if others > 0 { CMP_LEGACY } else { 0 };
    for leaf in EXTENDED..=last {
        let here = host(leaf, 0);
        let answer = match leaf {
            EXTENDED => CpuidResult { eax: last, ..top },
            0x8000_0001 => CpuidResult {
                ecx: here.ecx & !CMP_LEGACY | many,
                edx: here.edx | APIC,
                ..here
            },
            // Brand string, caches and TLBs; features.
            0x8000_0002..=0x8000_0006 | 0x8000_0019 | 0x8000_001a | 0x8000_0021 => here,
            0x8000_0007 => words(0, 0, 0, INVARIANT_TSC),
            0x8000_0008 => CpuidResult {
                eax: (here.eax & 0xff).min(PHYS_BITS) | VIRT_BITS << 8,
                ebx: here.ebx,
                ecx: others.min(0xff) | id_bits(facts.vcpus) << 12,
                edx: 0,
            },
            0x8000_001d => {
                entries.extend(caches(host, others));
                continue;
            }
            0x8000_001e => words(0, 0, 0, 0),
            _ => continue,
        };
        entries.push(every(leaf, answer));
    }
}

/// The CPU's caches. All virtual CPUs share those of the third level.
fn caches(
    host: &impl Fn(u32, u32) -> CpuidResult,
    others: u32,
) -> impl Iterator<Item = CpuidEntry> {
    const LEAF: u32 = 0x8000_001d;
    const TYPE: u32 = 0x1f;
    let caches = (0..CACHES).map(move |n| (n, host(LEAF, n)));
    let caches = caches.take_while(|(_, cache)| cache.eax & TYPE != 0);
    caches.map(move |(n, cache)| {
        let level = cache.eax >> 5 & 7;
        let sharing = if level >= 3 { others.min(0xfff) } else { 0 };
        let eax = cache.eax & 0x3fff | sharing << 14;
        one_subleaf(LEAF, n, CpuidResult { eax, ..cache })
    })
}

/// Bits of an APIC id that tell `count` virtual CPUs apart.
fn id_bits(count: u32) -> u32 {
    count.max(1).next_power_of_two().trailing_zeros()
}

fn signature(last: u32, name: [u8; 12]) -> CpuidResult {
    let [ebx, ecx, edx] = signature_words(name);
    words(last, ebx, ecx, edx)
}

const fn words(eax: u32, ebx: u32, ecx: u32, edx: u32) -> CpuidResult {
    CpuidResult { eax, ebx, ecx, edx }
}

/// The answer of `leaf` for every subleaf.
fn every(leaf: u32, answer: CpuidResult) -> CpuidEntry {
    CpuidEntry {
        flags: 0,
        ..one_subleaf(leaf, 0, answer)
    }
}

/// The answer of `leaf` for one subleaf.
fn one_subleaf(leaf: u32, subleaf: u32, answer: CpuidResult) -> CpuidEntry {
    CpuidEntry {
        leaf,
        subleaf,
        flags: CpuidFlags::SUBLEAF.bits(),
        reserved: 0,
        eax: answer.eax,
        ebx: answer.ebx,
        ecx: answer.ecx,
        edx: answer.edx,
    }
}

#[cfg(test)]
mod tests {
    use guest_proto::ABI_VERSION;
    use guest_proto::limits::MAX_CPUID_ENTRIES;

    use super::*;

    const FACTS: Facts = Facts {
        partition: 7,
        vcpus: 3,
        tsc_khz: 2_000_000,
        abi_version: ABI_VERSION,
        features: 0x11,
    };

    /// A host that has every leaf, and three caches.
    fn host(leaf: u32, subleaf: u32) -> CpuidResult {
        match (leaf, subleaf) {
            (0, _) => signature(0x20, *b"AuthenticAMD"),
            (EXTENDED, _) => signature(0x8000_0028, *b"AuthenticAMD"),
            (0x8000_0008, _) => words(52 | 57 << 8, 0, 0, 0),
            (0x8000_001d, n @ 0..3) => words((n + 1) << 5 | 1, n, 0, 0),
            (0x8000_001d, _) => words(0, 0, 0, 0),
            _ => words(0, 0, 0, 0),
        }
    }

    fn answer(facts: &Facts, leaf: u32, subleaf: u32) -> CpuidEntry {
        let entries = Cpuid::new(host, facts).of(2);
        let mut entries = entries.into_iter();
        entries
            .find(|entry| (entry.leaf, entry.subleaf) == (leaf, subleaf))
            .unwrap()
    }

    #[test]
    fn entries_are_in_order_and_fit() {
        for here in [
            host as fn(u32, u32) -> CpuidResult,
            std::arch::x86_64::__cpuid_count,
        ] {
            let entries = Cpuid::new(here, &FACTS).of(1);
            assert!(entries.is_sorted_by_key(|entry| (entry.leaf, entry.subleaf)));
            assert!(entries.len() <= MAX_CPUID_ENTRIES as usize);
        }
    }

    #[test]
    fn topology_is_the_partitions() {
        let registers = |entry: CpuidEntry| (entry.eax, entry.ebx, entry.ecx, entry.edx);
        assert_eq!(registers(answer(&FACTS, 0xb, 0)), (0, 1, 0x100, 2));
        assert_eq!(registers(answer(&FACTS, 0xb, 1)), (2, 3, 0x201, 2));
        let one = answer(&FACTS, 1, 0);
        assert_eq!((one.ebx >> 24, one.ebx >> 16 & 0xff), (2, 3));
        assert_eq!(one.edx & HTT, HTT);
        let eight = answer(&FACTS, 0x8000_0008, 0);
        assert_eq!((eight.eax, eight.ecx), (48 | 48 << 8, 2 | 2 << 12));
        let single = Facts { vcpus: 1, ..FACTS };
        assert_eq!(answer(&single, 1, 0).edx & HTT, 0);
        assert_eq!(answer(&single, 0xb, 1).eax, 0);
    }

    #[test]
    fn the_third_cache_is_shared_by_all() {
        let sharing = |n| answer(&FACTS, 0x8000_001d, n).eax >> 14;
        assert_eq!([0, 1, 2].map(sharing), [0, 0, 2]);
    }

    #[test]
    fn both_signatures_are_there() {
        let kvm = answer(&FACTS, 0x4000_0000, 0);
        let expected = (0x4b4d_564b, 0x564b_4d56, 0x4d);
        assert_eq!((kvm.ebx, kvm.ecx, kvm.edx), expected);
        assert_eq!(answer(&FACTS, 0x4000_0010, 0).eax, 2_000_000);
        let here = answer(&FACTS, 0x4000_0101, 0);
        assert_eq!((here.eax, here.ebx, here.ecx), (ABI_VERSION, 0x11, 7));
    }
}
