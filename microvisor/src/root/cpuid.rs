//! CPUID for root: the CPU's own answer, less the features that the microvisor hides, plus its own leaves.
//!
//! Pure: the CPU's answer comes in. Root runs on the CPU itself, so a feature is shown unless it stands in
//! [`HIDDEN`], with the reason.

use core::arch::x86_64::CpuidResult;

use guest_proto::cpuid::Features;
use guest_proto::cpuid::bit::HYPERVISOR;
use guest_proto::{ABI_VERSION, cpuid};

/// Bits of features that root cannot have.
struct Hidden {
    leaf: u32,
    /// In leaves without subleaves every number means 0.
    subleaf: u32,
    /// Of EAX, EBX, ECX and EDX.
    bits: [u32; 4],
}

const fn hidden(leaf: u32, bits: [u32; 4]) -> Hidden {
    Hidden {
        leaf,
        subleaf: 0,
        bits,
    }
}

const HIDDEN: &[Hidden] = &[
    // FRED: its registers are not swapped between root and guests.
    Hidden {
        subleaf: 1,
        ..hidden(7, [1 << 17, 0, 0, 0])
    },
    // SVM, SKINIT: the instructions are #UD. IBS, LWP: they record what the microvisor executes. Watchdog
    // timer: a machine check of the whole machine.
    hidden(
        0x8000_0001,
        [0, 0, 1 << 2 | 1 << 10 | 1 << 12 | 1 << 13 | 1 << 15, 0],
    ),
    // Scalable machine check architecture: its registers from C000_2000 on always exit.
    hidden(0x8000_0007, [0, 1 << 3, 0, 0]),
    // INVLPGB, and its largest count: it knows no nested paging. Branch sampling: it records what the
    // microvisor executes.
    hidden(0x8000_0008, [0, 1 << 3 | 1 << 31, 0, 0xffff]),
    // SVM.
    hidden(0x8000_000a, [!0; 4]),
    // IBS.
    hidden(0x8000_001b, [!0, 0, 0, 0]),
    // LWP.
    hidden(0x8000_001c, [!0; 4]),
    // SME, SEV: they give the bits of physical addresses another meaning.
    hidden(0x8000_001f, [!0; 4]),
    // Upper address ignore: EFER.UAIE. Prefetch control: its register is not root's to write.
    hidden(0x8000_0021, [1 << 7 | 1 << 13, 0, 0, 0]),
    // Last branch records, and freezing them: they hold what the microvisor executes.
    hidden(0x8000_0022, [1 << 1 | 1 << 2, 0, 0, 0]),
    // Memory encryption with several keys.
    hidden(0x8000_0023, [!0, !0, 0, 0]),
];

/// Facts that the answers depend on besides the CPU.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts {
    /// Features of the microvisor.
    pub(super) features: Features,
    /// Root's CR4.
    pub(super) cr4: u64,
}

/// Returns the answer to root where the CPU's own is `answer`.
pub(super) fn answer(
    leaf: u32,
    subleaf: u32,
    mut answer: CpuidResult,
    facts: &Facts,
) -> CpuidResult {
    const OSXSAVE: u32 = 1 << 27;
    const CR4_OSXSAVE: u64 = 1 << 18;
    const OSPKE: u32 = 1 << 4;
    const CR4_PKE: u64 = 1 << 22;
    const BASE: u32 = cpuid::leaf::ROOT_BASE;
    const VERSION: u32 = BASE + 1;
    for hidden in HIDDEN {
        if hidden.leaf == leaf && (leaf >= 0x8000_0000 || hidden.subleaf == subleaf) {
            for (word, bits) in words(&mut answer).into_iter().zip(hidden.bits) {
                *word &= !bits;
            }
        }
    }
    let follow = |word: &mut u32, bit: u32, enabled: bool| {
        *word = if enabled { *word | bit } else { *word & !bit };
    };
    match leaf {
        // OSXSAVE and OSPKE repeat root's own CR4, not the microvisor's.
        1 => {
            answer.ecx |= HYPERVISOR;
            follow(&mut answer.ecx, OSXSAVE, facts.cr4 & CR4_OSXSAVE != 0);
        }
        7 if subleaf == 0 => follow(&mut answer.ecx, OSPKE, facts.cr4 & CR4_PKE != 0),
        BASE => {
            let [ebx, ecx, edx] = cpuid::signature_words(cpuid::SIGNATURE);
            answer = CpuidResult {
                eax: VERSION,
                ebx,
                ecx,
                edx,
            };
        }
        VERSION => {
            answer = CpuidResult {
                eax: ABI_VERSION,
                ebx: facts.features.bits(),
                ecx: 0,
                edx: 0,
            };
        }
        _ => {}
    }
    answer
}

fn words(answer: &mut CpuidResult) -> [&mut u32; 4] {
    [
        &mut answer.eax,
        &mut answer.ebx,
        &mut answer.ecx,
        &mut answer.edx,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    const FACTS: Facts = Facts {
        features: Features::from_bits_retain(0x55),
        cr4: 0,
    };

    fn all(word: u32) -> CpuidResult {
        CpuidResult {
            eax: word,
            ebx: word,
            ecx: word,
            edx: word,
        }
    }

    fn of(leaf: u32, subleaf: u32) -> CpuidResult {
        answer(leaf, subleaf, all(!0), &FACTS)
    }

    #[test]
    fn what_promises_something_that_root_has_not_is_hidden() {
        // Numbers of APM vol. 3 appendix E, once more.
        assert_eq!(of(0x8000_0001, 0).ecx & 1 << 2, 0, "SVM");
        assert_eq!(of(0x8000_0001, 0).ecx & 1 << 10, 0, "IBS");
        assert_eq!(of(0x8000_0001, 0).ecx & 1 << 12, 0, "SKINIT");
        assert_eq!(of(0x8000_0007, 0).ebx & 1 << 3, 0, "ScalableMca");
        assert_eq!(of(0x8000_0008, 0).ebx & 1 << 3, 0, "INVLPGB");
        assert_eq!(of(0x8000_0008, 0).edx & 0xffff, 0, "InvlpgbCountMax");
        assert_eq!(of(0x8000_000a, 0), all(0), "SVM");
        assert_eq!(of(0x8000_001f, 0), all(0), "SME and SEV");
        assert_eq!(of(0x8000_0021, 0).eax & 1 << 7, 0, "UpperAddressIgnore");
        assert_eq!(of(0x8000_0022, 0).eax & 0b110, 0, "LbrExtV2");
        assert_eq!(of(7, 1).eax & 1 << 17, 0, "FRED");
    }

    #[test]
    fn the_table_hides_what_it_says_and_nothing_else() {
        for leaf in [
            2,
            7,
            0xd,
            0x8000_0000,
            0x8000_0001,
            0x8000_0007,
            0x8000_0008,
            0x8000_0021,
        ] {
            let facts = Facts { cr4: !0, ..FACTS };
            for subleaf in [0, 1, 2] {
                let mut got = answer(leaf, subleaf, all(!0), &facts);
                for row in HIDDEN.iter().filter(|row| row.leaf == leaf) {
                    let applies = leaf >= 0x8000_0000 || row.subleaf == subleaf;
                    let words = words(&mut got).into_iter().zip(row.bits);
                    for (word, bits) in words.filter(|(_, bits)| *bits != 0) {
                        assert_eq!(*word & bits == 0, applies, "{leaf:#x} {subleaf}");
                        *word |= bits;
                    }
                }
                assert_eq!(got, all(!0), "{leaf:#x} {subleaf}");
            }
        }
    }

    #[test]
    fn a_leaf_without_subleaves_has_no_way_around() {
        assert_eq!(of(0x8000_0001, 7), of(0x8000_0001, 0));
        assert_eq!(of(0x8000_000a, u32::MAX), all(0));
    }

    #[test]
    fn the_microvisor_shows_itself() {
        assert_ne!(answer(1, 0, all(0), &FACTS).ecx & 1 << 31, 0);
        let base = cpuid::leaf::ROOT_BASE;
        assert_eq!(of(base, 0).eax, base + 1);
        assert_eq!(of(base + 1, 0).eax, ABI_VERSION);
        assert_eq!(of(base + 1, 0).ebx, 0x55);
    }

    #[test]
    fn two_bits_follow_roots_cr4() {
        assert_eq!(of(1, 0).ecx & 1 << 27, 0);
        assert_eq!(of(7, 0).ecx & 1 << 4, 0);
        let on = Facts {
            cr4: 1 << 18 | 1 << 22,
            ..FACTS
        };
        assert_ne!(answer(1, 0, all(0), &on).ecx & 1 << 27, 0);
        assert_ne!(answer(7, 0, all(0), &on).ecx & 1 << 4, 0);
        assert_ne!(of(7, 1).ecx & 1 << 4, 0, "of subleaf 0 only");
    }
}
