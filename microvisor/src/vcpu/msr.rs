//! Model-specific registers of a guest that the microvisor keeps.
//!
//! Pure: [`classify`] tells which register a number means. The worker keeps all others: memory type ranges, kvmclock,
//! and the registers that kernels look for and that do nothing here. Registers that the CPU swaps by itself (FS and GS
//! base, STAR and its kin, SYSENTER) never exit.

use x86_64::registers::control::Cr0Flags;
use x86_64::registers::model_specific::EferFlags;

/// A register that the microvisor keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Msr {
    /// Time-stamp counter.
    Tsc,
    /// The sum that the guest added to the time-stamp counter by writing it.
    TscAdjust,
    /// Base and mode of the local APIC.
    ApicBase,
    /// Deadline of the local APIC's timer.
    TscDeadline,
    /// Speculation control. Its bits are those of the CPU.
    SpecCtrl,
    /// Prediction command. Its bits are those of the CPU.
    PredCmd,
    /// An x2APIC register, by its offset in the APIC page.
    X2Apic(u32),
    /// Extended features.
    Efer,
    /// Page attribute table.
    Pat,
}

/// Error: the access faults with #GP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GeneralProtection;

/// Returns the register with this number, or `None` if the worker keeps it.
pub fn classify(number: u32) -> Option<Msr> {
    Some(match number {
        0x0000_0010 => Msr::Tsc,
        0x0000_001b => Msr::ApicBase,
        0x0000_003b => Msr::TscAdjust,
        0x0000_0048 => Msr::SpecCtrl,
        0x0000_0049 => Msr::PredCmd,
        0x0000_0277 => Msr::Pat,
        0x0000_06e0 => Msr::TscDeadline,
        0x0000_0800..=0x0000_08ff => Msr::X2Apic((number & 0xff) << 4),
        0xc000_0080 => Msr::Efer,
        _ => return None,
    })
}

const EFER_LME: u64 = EferFlags::LONG_MODE_ENABLE.bits();
const EFER_LMA: u64 = EferFlags::LONG_MODE_ACTIVE.bits();
const CR0_PG: u64 = Cr0Flags::PAGING.bits();

/// Returns EFER after a write of `value` where the bits `allowed` exist (APM vol. 2 §3.1.7). LMA is the
/// CPU's, and LME cannot change while paging is on.
pub fn write_efer(allowed: u64, old: u64, value: u64, cr0: u64) -> Result<u64, GeneralProtection> {
    let changed = old ^ value;
    if value & !allowed != 0 || (cr0 & CR0_PG != 0 && changed & EFER_LME != 0) {
        return Err(GeneralProtection);
    }
    Ok(value & !EFER_LMA | old & EFER_LMA)
}

/// Returns SPEC_CTRL after a guest's write where the bits `allowed` exist. Without any bit the register does not exist.
pub fn write_spec_ctrl(allowed: u64, value: u64) -> Result<u64, GeneralProtection> {
    if allowed != 0 && value & !allowed == 0 {
        Ok(value)
    } else {
        Err(GeneralProtection)
    }
}

/// Returns PAT after a guest's write. Each byte must be a memory type that exists (APM vol. 2 §7.8.1).
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
