//! Which model-specific registers a guest has, and what each is.
//!
//! Pure: [`classify`] says what a number means, and who keeps it. Unknown ones fault in the guest
//! with #GP, as on hardware. The set is what stock Linux and BSD kernels touch as an AMD guest with
//! KVM's signature. Registers that the CPU swaps by itself (FS and GS base, STAR and its kin,
//! SYSENTER) never come here.

/// What a register number means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Msr {
    /// Time-stamp counter.
    Tsc,
    /// What the guest added to the time-stamp counter by writing it.
    TscAdjust,
    /// Base and mode of the local APIC.
    ApicBase,
    /// Deadline of the local APIC's timer.
    TscDeadline,
    /// Speculation control: which bits there are is the CPU's.
    SpecCtrl,
    /// Prediction command, likewise.
    PredCmd,
    /// An x2APIC register, by its offset in the APIC page.
    X2Apic(u32),
    /// Extended features.
    Efer,
    /// Page attribute table.
    Pat,
    /// A memory type range register, by its index in [`Mtrrs`]: kept, without effect, since the
    /// nested tables say write-back.
    Mtrr(u8),
    /// kvmclock: where the guest wants its wall clock.
    KvmWallClock,
    /// kvmclock: where the guest wants its system time.
    KvmSystemTime,
    /// Reads as this; writes do nothing.
    Constant(u64),
    /// Reads as this; writes fault.
    ReadOnly(u64),
}

/// What an attempt to use a register comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GeneralProtection;

const VARIABLE_MTRRS: u32 = 8;
const FIXED_MTRRS: [u32; 11] = [
    0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f,
];
const MTRR_DEFAULT: u32 = 0x2ff;
const MTRR_WORDS: usize = VARIABLE_MTRRS as usize * 2 + FIXED_MTRRS.len() + 1;
/// Eight variable ranges, fixed ranges, write-combining.
const MTRR_CAP: u64 = 0x500 | VARIABLE_MTRRS as u64;

/// TSC counts with the P0 frequency: without it Linux calls the firmware broken.
const HWCR: u64 = 1 << 24;
/// LFENCE is serialising, which it is on every CPU that has nested paging and this register.
const DE_CFG: u64 = 1 << 1;
/// What KVM shows; microcode is the host's.
const PATCH_LEVEL: u64 = 0x0100_0065;
/// Fast strings.
const MISC_ENABLE: u64 = 1;

/// What register `number` is; `None` for one that the guest does not have.
pub fn classify(number: u32) -> Option<Msr> {
    Some(match number {
        0x0000_0010 => Msr::Tsc,
        0x0000_001b => Msr::ApicBase,
        0x0000_003b => Msr::TscAdjust,
        0x0000_0048 => Msr::SpecCtrl,
        0x0000_0049 => Msr::PredCmd,
        0x0000_06e0 => Msr::TscDeadline,
        0x0000_0800..=0x0000_08ff => Msr::X2Apic((number & 0xff) << 4),
        0xc000_0080 => Msr::Efer,
        0x0000_0277 => Msr::Pat,
        0x4b56_4d00 => Msr::KvmWallClock,
        0x4b56_4d01 => Msr::KvmSystemTime,
        0x0000_00fe => Msr::ReadOnly(MTRR_CAP),
        0x0000_0200..=0x0000_020f => Msr::Mtrr((number - 0x200) as u8),
        MTRR_DEFAULT => Msr::Mtrr(MTRR_WORDS as u8 - 1),
        // P5 machine check; machine checks with no bank; debug control and last branches.
        0x0000_0000 | 0x0000_0001 => Msr::Constant(0),
        0x0000_0179 => Msr::ReadOnly(0),
        0x0000_017a | 0x0000_017b => Msr::Constant(0),
        0x0000_01d9 | 0x0000_01db..=0x0000_01de => Msr::Constant(0),
        0x0000_01a0 => Msr::Constant(MISC_ENABLE),
        0x0000_008b => Msr::Constant(PATCH_LEVEL),
        // K7 performance counters, which count nothing.
        0xc001_0000..=0xc001_0007 => Msr::Constant(0),
        // SYSCFG, TOP_MEM, TOP_MEM2, NB_CFG, patch loader.
        0xc001_0010 | 0xc001_001a | 0xc001_001d | 0xc001_001f | 0xc001_0020 => Msr::Constant(0),
        0xc001_0015 => Msr::Constant(HWCR),
        // Interrupt pending message, MMIO configuration base.
        0xc001_0055 | 0xc001_0058 => Msr::Constant(0),
        // P-state limit, control, status and definitions: none.
        0xc001_0061..=0xc001_006b => Msr::Constant(0),
        // SMM address and mask.
        0xc001_0112 | 0xc001_0113 => Msr::Constant(0),
        // LS_CFG, IC_CFG, DC_CFG, BU_CFG, FP_CFG, BU_CFG2, and DE_CFG.
        0xc001_1020..=0xc001_1023 | 0xc001_1028 | 0xc001_102a => Msr::Constant(0),
        0xc001_1029 => Msr::Constant(DE_CFG),
        _ => {
            let fixed = FIXED_MTRRS.iter().position(|msr| *msr == number)?;
            Msr::Mtrr((VARIABLE_MTRRS as usize * 2 + fixed) as u8)
        }
    })
}

/// The memory type range registers: kept as the guest wrote them.
#[derive(Clone, Copy, Debug)]
pub struct Mtrrs {
    words: [u64; MTRR_WORDS],
}

impl Mtrrs {
    /// As firmware leaves them: on, everything write-back.
    pub const fn new() -> Self {
        const ENABLED: u64 = 1 << 11;
        const FIXED_ENABLED: u64 = 1 << 10;
        const WRITE_BACK: u64 = 6;
        let mut words = [0; MTRR_WORDS];
        let mut n = VARIABLE_MTRRS as usize * 2;
        while n < MTRR_WORDS - 1 {
            words[n] = WRITE_BACK * 0x0101_0101_0101_0101;
            n += 1;
        }
        words[MTRR_WORDS - 1] = ENABLED | FIXED_ENABLED | WRITE_BACK;
        Self { words }
    }

    /// Reads one.
    pub fn read(&self, index: u8) -> Result<u64, GeneralProtection> {
        let word = self.words.get(usize::from(index));
        word.copied().ok_or(GeneralProtection)
    }

    /// Writes one.
    pub fn write(&mut self, index: u8, value: u64) -> Result<(), GeneralProtection> {
        let word = self.words.get_mut(usize::from(index));
        *word.ok_or(GeneralProtection)? = value;
        Ok(())
    }
}

impl Default for Mtrrs {
    fn default() -> Self {
        Self::new()
    }
}

const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
const CR0_PG: u64 = 1 << 31;

/// EFER after a write of `value` where the bits `allowed` exist (APM vol. 2 §3.1.7): LMA is the
/// CPU's, and LME cannot change while paging is on.
pub fn write_efer(allowed: u64, old: u64, value: u64, cr0: u64) -> Result<u64, GeneralProtection> {
    let changed = old ^ value;
    if value & !allowed != 0 || (cr0 & CR0_PG != 0 && changed & EFER_LME != 0) {
        return Err(GeneralProtection);
    }
    Ok(value & !EFER_LMA | old & EFER_LMA)
}

/// SPEC_CTRL after a guest's write where the bits `allowed` exist; without one of them the register does not.
pub fn write_spec_ctrl(allowed: u64, value: u64) -> Result<u64, GeneralProtection> {
    if allowed != 0 && value & !allowed == 0 {
        Ok(value)
    } else {
        Err(GeneralProtection)
    }
}

/// PAT after a guest's write: each byte a memory type that exists (APM vol. 2 §7.8.1).
pub fn write_pat(value: u64) -> Result<u64, GeneralProtection> {
    let known = |kind: &u8| matches!(kind, 0 | 1 | 4..=7);
    if value.to_le_bytes().iter().all(known) {
        Ok(value)
    } else {
        Err(GeneralProtection)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mtrr_has_a_word_of_its_own() {
        let mut mtrrs = Mtrrs::new();
        let mut numbers = std::vec![MTRR_DEFAULT];
        numbers.extend(0x200..0x210);
        numbers.extend(FIXED_MTRRS);
        for number in &numbers {
            let Some(Msr::Mtrr(index)) = classify(*number) else {
                panic!("{number:#x}");
            };
            assert_eq!(mtrrs.write(index, u64::from(*number)), Ok(()));
        }
        for number in numbers {
            if let Some(Msr::Mtrr(index)) = classify(number) {
                assert_eq!(mtrrs.read(index), Ok(u64::from(number)));
            }
        }
        assert!(mtrrs.read(MTRR_WORDS as u8).is_err());
    }

    #[test]
    fn what_is_not_virtualised_faults() {
        // ARCH_CAPABILITIES, VM_CR, VM_HSAVE_PA, XSS, SMCA, core performance.
        for number in [
            0x10a,
            0xc001_0114,
            0xc001_0117,
            0xda0,
            0xc000_2000,
            0xc001_0200,
            0x250 + 1,
        ] {
            assert_eq!(classify(number), None, "{number:#x}");
        }
    }

    #[test]
    fn x2apic_registers_are_named_by_offset() {
        assert_eq!(classify(0x830), Some(Msr::X2Apic(0x300)));
        assert_eq!(classify(0x8ff), Some(Msr::X2Apic(0xff0)));
    }

    #[test]
    fn efer_keeps_to_the_manual() {
        // SCE, LME, LMA, NXE.
        const GUEST_EFER: u64 = 1 | 1 << 8 | 1 << 10 | 1 << 11;
        assert_eq!(write_efer(GUEST_EFER, 0, EFER_LME | 1, 0), Ok(EFER_LME | 1));
        let long = EFER_LME | EFER_LMA;
        assert_eq!(write_efer(GUEST_EFER, long, EFER_LME, CR0_PG), Ok(long));
        assert!(write_efer(GUEST_EFER, long, 0, CR0_PG).is_err());
        const SVME: u64 = 1 << 12;
        assert!(write_efer(GUEST_EFER, 0, SVME, 0).is_err());
        assert!(write_pat(0x0007_0406_0007_0406).is_ok());
        assert!(write_pat(2).is_err());
        assert_eq!(write_spec_ctrl(0x87, 5), Ok(5));
        assert!(write_spec_ctrl(0x87, 8).is_err());
        assert!(write_spec_ctrl(0, 0).is_err(), "no such register");
    }
}
