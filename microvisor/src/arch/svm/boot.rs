//! Whether this CPU can run the microvisor, and which features it offers.

use guest_proto::cpuid::Features;

use super::cpu::{SVM_LEAF, SvmFeatures, VM_CR, VmCr, svm_features};
use crate::arch::{cpuid, read_msr};

/// Why this CPU cannot run the microvisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsupported {
    /// CPUID 8000_0001 ECX bit 2 is 0.
    NoSvm,
    /// CPUID 8000_000A EDX bit 0 is 0.
    NoNestedPaging,
    /// VM_CR.SVMDIS is 1.
    DisabledByFirmware,
}

impl core::fmt::Display for Unsupported {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::NoSvm => "this CPU has no SVM (AMD virtualisation)",
            Self::NoNestedPaging => "this CPU has no nested paging (NPT)",
            Self::DisabledByFirmware => "SVM is disabled by firmware (VM_CR.SVMDIS)",
        })
    }
}

/// Checks that this CPU can run the microvisor. Returns its SVM revision and features.
///
/// # Errors
///
/// Fails with [`Unsupported`], which names the reason.
pub fn supported() -> Result<(u8, u32), Unsupported> {
    const SVM: u32 = 1 << 2;
    if cpuid(0x8000_0000, 0).eax < SVM_LEAF || cpuid(0x8000_0001, 0).ecx & SVM == 0 {
        return Err(Unsupported::NoSvm);
    }
    let features = svm_features();
    if !features.contains(SvmFeatures::NESTED_PAGING) {
        return Err(Unsupported::NoNestedPaging);
    }
    if VmCr::from_bits_retain(read_msr(VM_CR)).contains(VmCr::SVMDIS) {
        return Err(Unsupported::DisabledByFirmware);
    }
    Ok((cpuid(SVM_LEAF, 0).eax as u8, features.bits()))
}

/// Returns this CPU's `guest_proto::cpuid::Features`.
pub fn features() -> Features {
    const MAP: [(SvmFeatures, Features); 6] = [
        (SvmFeatures::NESTED_PAGING, Features::NESTED_PAGING),
        (SvmFeatures::NEXT_RIP_SAVE, Features::NEXT_RIP),
        (SvmFeatures::TSC_RATE, Features::TSC_SCALING),
        (SvmFeatures::CLEAN_BITS, Features::CLEAN_BITS),
        (SvmFeatures::FLUSH_BY_ASID, Features::FLUSH_BY_ASID),
        (SvmFeatures::DECODE_ASSISTS, Features::DECODE_ASSISTS),
    ];
    let here = svm_features();
    let has = MAP.iter().filter(|(feature, _)| here.contains(*feature));
    has.map(|(_, feature)| *feature).collect()
}
