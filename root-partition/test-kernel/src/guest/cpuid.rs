//! The answers of CPUID that guests get: the CPU's own, as far as the microvisor lets them through.

use guest_proto::cpuid::bit::{HYPERVISOR, TSC_DEADLINE, X2APIC};
use guest_proto::cpuid::{CpuidEntry, SIGNATURE, leaf, signature_words};

use crate::cpu;

/// Leaves that are passed on.
const PASSED: [u32; 3] = [0, 1, 7];
const PASSED_EXTENDED: [u32; 3] = [0x8000_0000, 0x8000_0001, 0x8000_0008];

/// The table of virtual CPU `vcpu`: passed leaves, and the microvisor's own signature between them.
pub fn table(vcpu: usize) -> [CpuidEntry; 7] {
    let [ebx, ecx, edx] = signature_words(SIGNATURE);
    let own = CpuidEntry {
        leaf: leaf::GUEST_BASE,
        eax: leaf::GUEST_BASE,
        ebx,
        ecx,
        edx,
        ..CpuidEntry::default()
    };
    let [zero, mut one, seven] = PASSED.map(passed);
    one.ecx |= X2APIC | TSC_DEADLINE | HYPERVISOR;
    one.ebx = one.ebx & 0xff_ffff | (vcpu as u32) << 24;
    let [first, second, eighth] = PASSED_EXTENDED.map(passed);
    [zero, one, seven, own, first, second, eighth]
}

fn passed(leaf: u32) -> CpuidEntry {
    let answer = cpu::cpuid(leaf, 0);
    CpuidEntry {
        leaf,
        eax: answer.eax,
        ebx: answer.ebx,
        ecx: answer.ecx,
        edx: answer.edx,
        ..CpuidEntry::default()
    }
}
