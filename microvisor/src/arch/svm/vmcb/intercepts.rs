//! What makes root and guests exit.

use bitflags::bitflags;

use super::super::permissions::Maps;
use super::{NestedControl, VirtualInterrupt, Vmcb};

bitflags! {
    /// Exceptions, by vector.
    #[repr(transparent)]
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(in crate::arch::svm) struct Exceptions: u32 {
        const DEBUG = 1 << 1;
        const INVALID_TSS = 1 << 10;
        const NOT_PRESENT = 1 << 11;
        const STACK = 1 << 12;
        const GENERAL_PROTECTION = 1 << 13;
        const PAGE_FAULT = 1 << 14;
        const ALIGNMENT_CHECK = 1 << 17;
        const MACHINE_CHECK = 1 << 18;
    }

    /// Intercept vector 3. The exit code of each is 0x60 plus the number of its bit.
    #[repr(transparent)]
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(in crate::arch::svm) struct Intercepts3: u32 {
        const INTR = 1 << 0;
        const NMI = 1 << 1;
        const INIT = 1 << 3;
        const VINTR = 1 << 4;
        const RDPMC = 1 << 15;
        const CPUID = 1 << 18;
        const RSM = 1 << 19;
        const IRET = 1 << 20;
        const INVD = 1 << 22;
        const HLT = 1 << 24;
        const INVLPGA = 1 << 26;
        const IOIO = 1 << 27;
        const MSR = 1 << 28;
        const SHUTDOWN = 1 << 31;
    }

    /// Intercept vector 4. The exit code of each is 0x80 plus the number of its bit.
    #[repr(transparent)]
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(in crate::arch::svm) struct Intercepts4: u32 {
        const VMRUN = 1 << 0;
        const VMMCALL = 1 << 1;
        const VMLOAD = 1 << 2;
        const VMSAVE = 1 << 3;
        const STGI = 1 << 4;
        const CLGI = 1 << 5;
        const SKINIT = 1 << 6;
        const WBINVD = 1 << 9;
        const MONITOR = 1 << 10;
        const MWAIT = 1 << 11;
        const XSETBV = 1 << 13;
        const RDPRU = 1 << 14;
    }
}

const ROOT_3: Intercepts3 = Intercepts3::INIT
    .union(Intercepts3::CPUID)
    .union(Intercepts3::INVD)
    .union(Intercepts3::INVLPGA)
    .union(Intercepts3::IOIO)
    .union(Intercepts3::MSR)
    .union(Intercepts3::SHUTDOWN);
/// VMRUN refuses a block that does not intercept VMRUN.
const ROOT_4: Intercepts4 = Intercepts4::VMRUN
    .union(Intercepts4::VMMCALL)
    .union(Intercepts4::VMLOAD)
    .union(Intercepts4::VMSAVE)
    .union(Intercepts4::STGI)
    .union(Intercepts4::CLGI)
    .union(Intercepts4::SKINIT);
const GUEST_3: Intercepts3 = ROOT_3
    .union(Intercepts3::INTR)
    .union(Intercepts3::NMI)
    .union(Intercepts3::RDPMC)
    .union(Intercepts3::RSM)
    .union(Intercepts3::HLT);
const GUEST_4: Intercepts4 = ROOT_4
    .union(Intercepts4::WBINVD)
    .union(Intercepts4::MONITOR)
    .union(Intercepts4::MWAIT)
    .union(Intercepts4::XSETBV)
    .union(Intercepts4::RDPRU);
/// A guest can make the CPU raise #DB or #AC without end, and without an interrupt getting through,
/// unless they are intercepted. Machine checks are root's.
const GUEST_EXCEPTIONS: Exceptions = Exceptions::DEBUG
    .union(Exceptions::ALIGNMENT_CHECK)
    .union(Exceptions::MACHINE_CHECK);
/// Faults that IRET can raise.
const RETURN_FAULTS: Exceptions = Exceptions::INVALID_TSS
    .union(Exceptions::NOT_PRESENT)
    .union(Exceptions::STACK)
    .union(Exceptions::GENERAL_PROTECTION)
    .union(Exceptions::PAGE_FAULT);
/// PAT after reset (APM vol. 2 §7.8.2).
const PAT_RESET: u64 = 0x0007_0406_0007_0406;

impl Vmcb {
    /// Sets the intercepts and permission maps of the root partition.
    pub(in crate::arch::svm) fn init_root(&mut self, maps: &Maps) {
        self.init(ROOT_3, ROOT_4, maps);
        self.control.guest_asid = 1;
    }

    /// Sets the intercepts and permission maps of a guest.
    pub(in crate::arch::svm) fn init_guest(&mut self, maps: &Maps) {
        self.init(GUEST_3, GUEST_4, maps);
        self.control.intercept_exceptions = GUEST_EXCEPTIONS;
        self.control.virtual_interrupt = VirtualInterrupt::MASKING;
        self.intercept_debug_registers(true);
    }

    fn init(&mut self, intercepts_3: Intercepts3, intercepts_4: Intercepts4, maps: &Maps) {
        let control = &mut self.control;
        control.intercept_3 = intercepts_3;
        control.intercept_4 = intercepts_4;
        control.msrpm_base_pa = maps.msrs.as_u64();
        control.iopm_base_pa = maps.ports.as_u64();
        control.nested_control = NestedControl::NESTED_PAGING;
        self.save.g_pat = PAT_RESET;
    }

    /// Makes reads and writes of debug registers exit, or not.
    pub(in crate::arch::svm) fn intercept_debug_registers(&mut self, on: bool) {
        self.control.intercept_dr = if on { u32::MAX } else { 0 };
    }

    /// Makes IRET exit, or not.
    pub(in crate::arch::svm) fn intercept_iret(&mut self, on: bool) {
        self.control.intercept_3.set(Intercepts3::IRET, on);
    }

    /// Makes the faults that an IRET can raise exit, or not.
    pub(in crate::arch::svm) fn intercept_return_faults(&mut self, on: bool) {
        self.control.intercept_exceptions.set(RETURN_FAULTS, on);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::exit::Exit;
    use crate::memory::Hpa;

    const MAPS: Maps = Maps {
        msrs: Hpa::new(0),
        ports: Hpa::new(0),
    };

    #[test]
    fn an_init_exits() {
        // APM vol. 2 table B-1: vector 3, bit 3.
        let mut vmcb = Vmcb::zeroed();
        vmcb.init_root(&MAPS);
        assert_ne!(vmcb.control.intercept_3.bits() & 1 << 3, 0);
        let mut vmcb = Vmcb::zeroed();
        vmcb.init_guest(&MAPS);
        assert_ne!(vmcb.control.intercept_3.bits() & 1 << 3, 0);
    }

    #[test]
    fn a_guests_machine_check_exits() {
        let mut vmcb = Vmcb::zeroed();
        vmcb.init_guest(&MAPS);
        assert_ne!(vmcb.control.intercept_exceptions.bits() & 1 << 18, 0);
        // APM vol. 2 appendix C: VMEXIT_EXCP0 is 0x40.
        vmcb.control.exit_code = 0x52;
        assert_eq!(crate::arch::svm::exit::decode(&vmcb), Exit::MachineCheck);
    }

    #[test]
    fn the_sets_are_those_of_the_manual() {
        // APM vol. 2 table B-1, once more as numbers.
        assert_eq!(ROOT_3.bits(), 0x9c44_0008);
        assert_eq!(ROOT_4.bits(), 0x7f);
        assert_eq!(GUEST_3.bits(), 0x9d4c_800b);
        assert_eq!(GUEST_4.bits(), 0x6e7f);
        assert_eq!(GUEST_EXCEPTIONS.bits(), 0x6_0002);
        assert_eq!(RETURN_FAULTS.bits(), 0x7c00);
    }
}
