//! A physical CPU with SVM.

use bitflags::bitflags;
use x86_64::registers::control::EferFlags;

use super::asid::Asids;
use crate::arch::extended::Features;
use crate::arch::{Speculation, cpuid};
use crate::memory::Hpa;

pub(super) const VM_CR: u32 = 0xc001_0114;
pub(super) const SVM_LEAF: u32 = 0x8000_000a;

bitflags! {
    /// VM_CR (APM vol. 2 §15.30.1).
    #[derive(Clone, Copy, Debug)]
    pub(super) struct VmCr: u64 {
        /// An INIT raises #SX.
        const R_INIT = 1 << 1;
        /// Address line 20 is never masked.
        const DIS_A20M = 1 << 2;
        /// SVM cannot be turned on.
        const SVMDIS = 1 << 4;
        const _ = !0;
    }

    /// CPUID 8000_000A EDX (APM vol. 3 §E.4.9).
    #[derive(Clone, Copy, Debug)]
    pub(super) struct SvmFeatures: u32 {
        /// Nested paging.
        const NESTED_PAGING = 1 << 0;
        /// The control block tells the address after the instruction that exits.
        const NEXT_RIP_SAVE = 1 << 3;
        /// VMRUN can scale the TSC.
        const TSC_RATE = 1 << 4;
        /// VMRUN honours clean bits.
        const CLEAN_BITS = 1 << 5;
        /// TLB_CONTROL can flush by address space identifier.
        const FLUSH_BY_ASID = 1 << 6;
        /// The control block tells an instruction's bytes.
        const DECODE_ASSISTS = 1 << 7;
        /// VMRUN loads SPEC_CTRL from the control block (APM vol. 2 §15.5.3).
        const VIRTUAL_SPEC_CTRL = 1 << 20;
        const _ = !0;
    }
}

/// Returns the features of a CPU that has SVM.
pub(super) fn svm_features() -> SvmFeatures {
    SvmFeatures::from_bits_retain(cpuid(SVM_LEAF, 0).edx)
}

/// EFER.AutoIBRS where the CPU has it (APM vol. 2 §3.1.7), or 0: branches of less privileged code do not
/// steer those of more privileged code.
pub(super) fn automatic_ibrs() -> u64 {
    const LEAF: u32 = 0x8000_0021;
    const AUTOMATIC_IBRS: u32 = 1 << 8;
    let has = cpuid(0x8000_0000, 0).eax >= LEAF && cpuid(LEAF, 0).eax & AUTOMATIC_IBRS != 0;
    u64::from(has) << 21
}

/// Returns the bits of EFER that a guest can have on this CPU.
pub fn guest_efer() -> u64 {
    let flags = EferFlags::SYSTEM_CALL_EXTENSIONS
        | EferFlags::LONG_MODE_ENABLE
        | EferFlags::LONG_MODE_ACTIVE
        | EferFlags::NO_EXECUTE_ENABLE;
    flags.bits() | automatic_ibrs()
}

/// Returns the bits of EFER that root may set on this CPU. Others are SVM's or new.
pub fn root_efer() -> u64 {
    let flags = EferFlags::FAST_FXSAVE_FXRSTOR | EferFlags::TRANSLATION_CACHE_EXTENSION;
    flags.bits() | guest_efer()
}

/// A physical CPU, for the turns of guests.
#[derive(Debug)]
pub struct Cpu {
    index: usize,
    /// Where VMSAVE stored the microvisor's registers.
    pub(super) host: Hpa,
    pub(super) asids: Asids,
    pub(super) features: Features,
    /// Serial of the partition that had the last turn.
    last_partition: u64,
    /// A machine check came during a guest's turn.
    machine_check: bool,
}

impl Cpu {
    pub(super) fn new(index: usize, host: Hpa, asids: u32, features: Features) -> Self {
        Self {
            index,
            host,
            asids: Asids::new(asids),
            features,
            last_partition: 0,
            machine_check: false,
        }
    }

    /// A CPU that runs nothing.
    #[cfg(test)]
    pub(crate) fn idle(index: usize) -> Self {
        Self::new(index, Hpa::new(0), 16, Features::none())
    }

    /// Returns which CPU this is, from 0.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Does what `policy` asks for before a turn of the partition with this serial.
    pub fn enter_partition(&mut self, serial: u64, policy: Speculation) {
        if policy.forgets_before(self.last_partition, serial) {
            self.features.prediction_barrier();
        }
        self.last_partition = serial;
    }

    /// Does what `policy` asks for after a guest's turn.
    pub fn leave_partition(&mut self, policy: Speculation) {
        if policy.forgets_after() {
            self.features.prediction_barrier();
        }
    }

    /// Keeps a machine check for root.
    pub fn note_machine_check(&mut self) {
        self.machine_check = true;
    }

    /// Returns whether a machine check came that root does not know of, and forgets it.
    pub fn take_machine_check(&mut self) -> bool {
        core::mem::take(&mut self.machine_check)
    }
}
