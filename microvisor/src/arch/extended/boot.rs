//! Finds the extended-state features of a CPU.
#![allow(unsafe_code, reason = "writes a control register")]

use x86_64::registers::control::{Cr4, Cr4Flags};

use super::Features;
use crate::arch::cpuid;

impl Features {
    /// Returns the features of this CPU, and turns on those that the microvisor itself needs.
    pub(in crate::arch) fn enable() -> Self {
        let xsave = cpuid(1, 0).ecx & 1 << 26 != 0;
        let most = cpuid(0, 0).eax;
        let extended = match cpuid(0x8000_0000, 0).eax {
            0x8000_0008.. => cpuid(0x8000_0008, 0).ebx,
            _ => 0,
        };
        let this = Self {
            xsave,
            protection_keys: most >= 7 && cpuid(7, 0).ecx & 1 << 3 != 0,
            supervisor_states: xsave && most >= 0xd && cpuid(0xd, 1).eax & 1 << 3 != 0,
            // Shadow stacks, indirect branch tracking.
            shadow_stacks: most >= 7
                && (cpuid(7, 0).ecx & 1 << 7 != 0 || cpuid(7, 0).edx & 1 << 20 != 0),
            // Without XSAVEERPTR.
            x87_pointers_leak: extended & 1 << 2 == 0,
            rdtscp: cpuid(0x8000_0001, 0).edx & 1 << 27 != 0,
            // IBRS, STIBP, SSBD or PSFD.
            spec_ctrl: extended & (1 << 14 | 1 << 15 | 1 << 24 | 1 << 28) != 0,
            prediction_barrier: extended & 1 << 12 != 0,
        };
        let mut cr4 =
            Cr4Flags::MACHINE_CHECK_EXCEPTION | Cr4Flags::OSFXSR | Cr4Flags::OSXMMEXCPT_ENABLE;
        cr4.set(Cr4Flags::OSXSAVE, this.xsave);
        cr4.set(Cr4Flags::PROTECTION_KEY_USER, this.protection_keys);
        // SAFETY: the CPU has what these bits turn on; no page of the microvisor's is a user's, so
        // protection keys touch nothing.
        unsafe { Cr4::write_raw(Cr4::read_raw() | cr4.bits()) };
        this
    }
}
