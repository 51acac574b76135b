//! Root's writes to model-specific registers that exit.
//!
//! Root reads every register but SVM's. Its writes are an allow-list: writes to the registers in
//! `arch::svm::permissions` do not exit, and this file has the other writes that do no harm. Any other write is #GP. A
//! register that moves or overlays memory keeps its value: otherwise root could reach the microvisor's memory through
//! it, or give that memory another type on one CPU.
//! Numbers are those of APM vol. 2 appendix A and of Linux's `msr-index.h`.

use crate::machine::MemoryTypes;

/// The answer to a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Write {
    /// This value is written.
    Do(u64),
    /// The value is not written, and root goes on.
    Ignore,
    /// #GP.
    Fault,
}

const APIC_BASE: u32 = 0x1b;
const DEBUGCTL: u32 = 0x1d9;
const VARIABLE_MTRR_FIRST: u32 = 0x200;
const VARIABLE_MTRR_LAST: u32 = 0x21f;
const MTRR_DEFAULT: u32 = 0x2ff;
const SYSCFG: u32 = 0xc001_0010;
const HWCR: u32 = 0xc001_0015;
const IORR_FIRST: u32 = 0xc001_0016;
const IORR_LAST: u32 = 0xc001_0019;
const TOP_MEM: u32 = 0xc001_001a;
const TOM2: u32 = 0xc001_001d;
const NB_CFG: u32 = 0xc001_001f;
const PATCH_LOADER: u32 = 0xc001_0020;
const SMI_TRAP_FIRST: u32 = 0xc001_0050;
const SMI_TRAP_LAST: u32 = 0xc001_0056;
const MMIO_CFG_BASE: u32 = 0xc001_0058;
const SMM_BASE: u32 = 0xc001_0111;
const SMM_ADDR: u32 = 0xc001_0112;
const SMM_MASK: u32 = 0xc001_0113;
const LS_CFG: u32 = 0xc001_1020;
const DE_CFG: u32 = 0xc001_1029;
const BP_CFG: u32 = 0xc001_102e;
const SPECTRAL_CHICKEN: u32 = 0xc001_10e3;

/// Bits of the registers above that root may change.
const fn changeable(number: u32) -> u64 {
    match number {
        // EXTD and EN: the APIC stays where it is.
        APIC_BASE => 1 << 10 | 1 << 11,
        // MtrrFixDramEn and MtrrFixDramModEn: memory below 1 MiB, which has nothing of the microvisor's.
        SYSCFG => 1 << 18 | 1 << 19,
        // CpbDis, IRPerfEn, CpuidUserDis.
        HWCR => 1 << 25 | 1 << 30 | 1 << 35,
        // EnableCf8ExtCfg: the port is root's.
        NB_CFG => 1 << 46,
        // What switches speculative store bypass off on families 15h, 16h and 17h.
        LS_CFG => 1 << 10 | 1 << 15 | 1 << 33 | 1 << 54,
        // LFENCE is serialising; the way out of Zenbleed.
        DE_CFG => 1 << 1 | 1 << 9,
        // BpSpecReduce, and the shared branch target buffer of Zen 4.
        BP_CFG => 1 << 4 | 1 << 5,
        SPECTRAL_CHICKEN => 1 << 1,
        _ => 0,
    }
}

/// Returns the answer to a write of `value` to register `number`. `read` reads a register of this CPU, if it exists.
pub(super) fn write(
    number: u32,
    value: u64,
    types: &MemoryTypes,
    read: impl Fn(u32) -> Option<u64>,
) -> Write {
    let Some(old) = read(number) else {
        return Write::Fault;
    };
    match number {
        VARIABLE_MTRR_FIRST..=VARIABLE_MTRR_LAST => {
            let Some(other) = read(number ^ 1) else {
                return Write::Fault;
            };
            let pair = |own| {
                if number & 1 == 0 {
                    (own, other)
                } else {
                    (other, own)
                }
            };
            let harmless = |own| is_in_holes(pair(own), types);
            let of_boot = types.variable.get((number - VARIABLE_MTRR_FIRST) as usize);
            match value == old {
                true => Write::Ignore,
                false if harmless(old) && harmless(value) => Write::Do(value),
                // Linux gives each CPU what the boot CPU has.
                false if of_boot == Some(&value) => Write::Do(value),
                false => Write::Fault,
            }
        }
        // Linux switches all ranges off while it sets them. The default type and the variable ranges stay in
        // force here; the fixed ranges are those of the memory below 1 MiB.
        MTRR_DEFAULT => {
            const FIXED_ENABLED: u64 = 1 << 10;
            let same = (value ^ types.default) & !FIXED_ENABLED == 0;
            let rest = if same { types.default } else { old };
            Write::Do(rest & !FIXED_ENABLED | value & FIXED_ENABLED)
        }
        DEBUGCTL => {
            const BRANCH_STEP: u64 = 1 << 1;
            match value & !BRANCH_STEP {
                0 => Write::Do(value),
                _ => Write::Fault,
            }
        }
        // Linux takes a patch level that stays for a patch that does not apply.
        PATCH_LOADER => Write::Ignore,
        IORR_FIRST..=IORR_LAST
        | SMI_TRAP_FIRST..=SMI_TRAP_LAST
        | APIC_BASE
        | SYSCFG
        | HWCR
        | TOP_MEM
        | TOM2
        | NB_CFG
        | MMIO_CFG_BASE
        | SMM_BASE
        | SMM_ADDR
        | SMM_MASK
        | LS_CFG
        | DE_CFG
        | BP_CFG
        | SPECTRAL_CHICKEN => match old ^ value {
            0 => Write::Ignore,
            changed if changed & !changeable(number) == 0 => Write::Do(value),
            _ => Write::Fault,
        },
        _ => Write::Fault,
    }
}

/// Returns whether a variable range, PhysBase and PhysMask, touches no RAM (APM vol. 2 §7.7.2).
fn is_in_holes((base, mask): (u64, u64), types: &MemoryTypes) -> bool {
    const VALID: u64 = 1 << 11;
    const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
    if mask & VALID == 0 {
        return true;
    }
    let mask = mask & ADDRESS;
    // The mask is a run of ones from the highest address bit of the CPU down.
    let size = 1_u64 << mask.trailing_zeros().min(63);
    let is_run = (mask | (size - 1)).wrapping_add(1) == types.end.as_u64();
    let start = base & mask;
    let Some(end) = start.checked_add(size).filter(|_| mask != 0 && is_run) else {
        return false;
    };
    start >= types.high.as_u64() || (start >= types.low.as_u64() && end <= 1 << 32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Hpa;

    const TYPES: MemoryTypes = MemoryTypes {
        low: Hpa::new(0x8000_0000),
        high: Hpa::new(0x2_0000_0000),
        end: Hpa::new(1 << 48),
        variable: [!0; 32],
        default: ON,
    };
    /// Ranges on, fixed ranges on, write-back.
    const ON: u64 = 0xc06;
    /// PhysMask of 16 MiB on a CPU with 48 address bits.
    const MASK_16M: u64 = 0xffff_ff00_0000 | 1 << 11;

    fn with(registers: &[(u32, u64)], number: u32, value: u64) -> Write {
        write(number, value, &TYPES, |wanted| {
            let found = registers.iter().find(|(number, _)| *number == wanted);
            found.map(|(_, value)| *value)
        })
    }

    fn fixed(number: u32, old: u64, value: u64) -> Write {
        with(&[(number, old)], number, value)
    }

    #[test]
    fn what_moves_memory_keeps_its_value() {
        let numbers = (0xc001_0016..=0xc001_0019)
            .chain([0xc001_001a, 0xc001_001d, 0xc001_0058])
            .chain(0xc001_0111..=0xc001_0113);
        for number in numbers {
            assert_eq!(fixed(number, 0x1000, 0x1000), Write::Ignore, "{number:#x}");
            for bit in 0..64 {
                let write = fixed(number, 0x1000, 0x1000 ^ 1 << bit);
                assert_eq!(write, Write::Fault, "{number:#x} bit {bit}");
            }
        }
    }

    #[test]
    fn only_some_bits_change() {
        let bits = |number: u32, old: u64| {
            (0..64)
                .filter(|bit| fixed(number, old, old ^ 1 << bit) == Write::Do(old ^ 1 << bit))
                .fold(0, |all, bit| all | 1_u64 << bit)
        };
        for old in [0, !0] {
            assert_eq!(bits(0x1b, old), 0xc00, "APIC_BASE");
            assert_eq!(bits(0xc001_0010, old), 0xc_0000, "SYSCFG");
            assert_eq!(bits(0xc001_0015, old), 0x8_4200_0000, "HWCR");
            assert_eq!(bits(0xc001_001f, old), 1 << 46, "NB_CFG");
            assert_eq!(bits(0xc001_1029, old), 0x202, "DE_CFG");
        }
    }

    #[test]
    fn the_rest_is_no_register_of_roots() {
        // SVM's, TSC_RATIO, P-state definitions, GHCB, RMP_BASE, DBG_EXTN_CFG, IBS, PREFETCH_CTL.
        for number in [
            0xc001_0114,
            0xc001_0117,
            0xc000_0104,
            0xc001_0064,
            0xc001_0130,
            0xc001_0132,
            0xc000_010f,
            0xc001_1033,
            0xc000_0108,
        ] {
            assert_eq!(fixed(number, 0, 0), Write::Fault, "{number:#x}");
        }
        assert_eq!(with(&[], HWCR, 0), Write::Fault, "a CPU without it");
    }

    #[test]
    fn the_default_memory_type_stays() {
        assert_eq!(fixed(0x2ff, ON, 0), Write::Do(0x806));
        assert_eq!(fixed(0x2ff, 0x806, ON), Write::Do(ON));
        assert_eq!(fixed(0x2ff, ON, 0x400), Write::Do(ON));
    }

    #[test]
    fn a_cpu_may_get_what_the_boot_cpu_has() {
        let mut types = TYPES;
        types.variable[2..4].copy_from_slice(&[6, MASK_16M]);
        let write = |number, value| write(number, value, &types, |_| Some(0));
        assert_eq!(write(0x202, 6), Write::Do(6));
        assert_eq!(write(0x203, MASK_16M), Write::Do(MASK_16M));
        assert_eq!(write(0x205, MASK_16M), Write::Fault, "of another range");
        assert_eq!(write(0x2ff, ON), Write::Do(ON));
        assert_eq!(write(0x2ff, 0x806), Write::Do(0x806));
        assert_eq!(write(0x2ff, 0x800), Write::Do(0));
    }

    #[test]
    fn branches_are_not_recorded() {
        assert_eq!(fixed(0x1d9, 0, 2), Write::Do(2));
        assert_eq!(fixed(0x1d9, 2, 0), Write::Do(0));
        assert_eq!(fixed(0x1d9, 0, 1), Write::Fault);
        assert_eq!(fixed(0x1d9, 0, 1 << 11), Write::Fault);
    }

    #[test]
    fn microcode_is_not_roots_to_load() {
        assert_eq!(fixed(0xc001_0020, 0, 0xffff_8880_0000_0000), Write::Ignore);
    }

    #[test]
    fn a_variable_range_is_free_where_there_is_no_ram() {
        let pair = |base: u64, mask: u64| [(0x204, base), (0x205, mask)];
        let off = pair(0, 0);
        // A frame buffer, write-combining: the base, then the mask.
        assert_eq!(with(&off, 0x204, 0xd000_0001), Write::Do(0xd000_0001));
        let based = pair(0xd000_0001, 0);
        assert_eq!(with(&based, 0x205, MASK_16M), Write::Do(MASK_16M));
        let on = pair(0xd000_0001, MASK_16M);
        assert_eq!(with(&on, 0x205, 0), Write::Do(0));
        let high = 0x2_0000_0000;
        assert_eq!(with(&on, 0x204, high), Write::Do(high));
        // Over RAM: below, at its end, between the two; everything, and masks that are no run of ones to the top.
        for base in [0, 0x20_0000, 0x7f00_0000, 0x1_0000_0000, 0x1_ff00_0000] {
            assert_eq!(with(&on, 0x204, base), Write::Fault, "{base:#x}");
            assert_eq!(with(&pair(base, 0), 0x205, MASK_16M), Write::Fault);
            assert_eq!(with(&pair(base, MASK_16M), 0x205, 0), Write::Fault);
        }
        for mask in [0, 0xffff_0000_0000, 0xfffe_ff00_0000, 0xff00_0000] {
            let write = with(&based, 0x205, mask | 1 << 11);
            assert_eq!(write, Write::Fault, "{mask:#x}");
        }
        // What is there may be written again: Linux does it on each CPU.
        let ram = pair(6, MASK_16M);
        assert_eq!(with(&ram, 0x204, 6), Write::Ignore);
        assert_eq!(with(&ram, 0x205, MASK_16M), Write::Ignore);
        // A register that this CPU has not.
        assert_eq!(with(&[(0x204, 0)], 0x204, 1), Write::Fault);
    }
}
