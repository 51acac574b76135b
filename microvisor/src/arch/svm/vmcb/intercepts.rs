//! What makes root and guests exit.

use super::super::permissions::Maps;
use super::*;

const V_INTR_MASKING: u64 = 1 << 24;

/// Intercepts of root, vector 3: INIT, CPUID, INVD, INVLPGA, ports, MSRs, shutdown.
const ROOT_INTERCEPTS_3: u32 = 1 << 3 | 1 << 18 | 1 << 22 | 1 << 26 | 1 << 27 | 1 << 28 | 1 << 31;
/// Intercepts of root, vector 4: VMRUN (which must be), VMMCALL, VMLOAD, VMSAVE, STGI, CLGI, SKINIT.
const ROOT_INTERCEPTS_4: u32 = 0x7f;

/// Intercepts of guests, vector 3: INTR, NMI, INIT, RDPMC, CPUID, RSM, INVD, HLT, INVLPGA, ports,
/// MSRs, shutdown.
const GUEST_INTERCEPTS_3: u32 = 1 << 0
    | 1 << 1
    | 1 << 3
    | 1 << 15
    | 1 << 18
    | 1 << 19
    | 1 << 22
    | 1 << 24
    | 1 << 26
    | 1 << 27
    | 1 << 28
    | 1 << 31;
const INTERCEPT_IRET: u32 = 1 << 20;
/// Intercepts of guests, vector 4: root's, WBINVD, MONITOR, MWAIT, XSETBV, RDPRU.
const GUEST_INTERCEPTS_4: u32 = 0x7f | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 13 | 1 << 14;
/// #DB and #AC: a guest can make the CPU raise either without end, and without an interrupt getting
/// through, unless they are intercepted. #MC: it is root's.
const GUEST_EXCEPTIONS: u32 = 1 << 1 | 1 << 17 | 1 << 18;
/// Faults of IRET: #TS, #NP, #SS, #GP, #PF.
const RETURN_FAULTS: u32 = 0x1f << 10;

impl Vmcb {
    /// Intercepts and maps of the root partition.
    pub(in crate::arch::svm) fn init_root(&mut self, maps: &Maps) {
        self.set_u32(INTERCEPTS_3, ROOT_INTERCEPTS_3);
        self.set_u32(INTERCEPTS_4, ROOT_INTERCEPTS_4);
        self.set(MSR_PERMISSIONS, maps.msrs);
        self.set(PORT_PERMISSIONS, maps.ports);
        self.set_u32(ASID, 1);
        self.set(NESTED_ENABLE, 1);
        self.set(PAT, PAT_RESET);
    }

    /// Intercepts and maps of a guest.
    pub(in crate::arch::svm) fn init_guest(&mut self, maps: &Maps) {
        self.intercept_debug_registers(true);
        self.set_u32(INTERCEPTS_EXCEPTION, GUEST_EXCEPTIONS);
        self.set_u32(INTERCEPTS_3, GUEST_INTERCEPTS_3);
        self.set_u32(INTERCEPTS_4, GUEST_INTERCEPTS_4);
        self.set(MSR_PERMISSIONS, maps.msrs);
        self.set(PORT_PERMISSIONS, maps.ports);
        self.set(NESTED_ENABLE, 1);
        self.set(PAT, PAT_RESET);
        self.set(VIRTUAL_INTERRUPT, V_INTR_MASKING);
    }

    pub(in crate::arch::svm) fn intercept_debug_registers(&mut self, on: bool) {
        self.set_u32(INTERCEPTS_DR, if on { u32::MAX } else { 0 });
    }

    /// Exits at IRET.
    pub(crate) fn intercept_iret(&mut self, on: bool) {
        self.intercept_3(INTERCEPT_IRET, on);
    }

    /// Exits at the faults that an IRET can make.
    pub(in crate::arch::svm) fn intercept_return_faults(&mut self, on: bool) {
        let faults = if on { RETURN_FAULTS } else { 0 };
        self.set_u32(INTERCEPTS_EXCEPTION, GUEST_EXCEPTIONS | faults);
    }

    pub(in crate::arch::svm) fn intercept_3(&mut self, bit: u32, on: bool) {
        let rest = self.get_u32(INTERCEPTS_3) & !bit;
        self.set_u32(INTERCEPTS_3, if on { rest | bit } else { rest });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::hw::Exit;

    #[test]
    fn an_init_exits() {
        // APM vol. 2 table B-1: vector 3, bit 3.
        let maps = Maps { msrs: 0, ports: 0 };
        let mut vmcb = Vmcb::zeroed();
        vmcb.init_root(&maps);
        assert_ne!(vmcb.get_u32(INTERCEPTS_3) & 1 << 3, 0);
        let mut vmcb = Vmcb::zeroed();
        vmcb.init_guest(&maps);
        assert_ne!(vmcb.get_u32(INTERCEPTS_3) & 1 << 3, 0);
    }

    #[test]
    fn a_guests_machine_check_exits() {
        let mut vmcb = Vmcb::zeroed();
        vmcb.init_guest(&Maps { msrs: 0, ports: 0 });
        assert_ne!(vmcb.get_u32(INTERCEPTS_EXCEPTION) & 1 << 18, 0);
        // APM vol. 2 appendix C: VMEXIT_EXCP0 is 0x40.
        vmcb.set(EXIT_CODE, 0x52);
        assert_eq!(
            crate::arch::svm::exit::decode(&vmcb, false).0,
            Exit::MachineCheck
        );
    }
}
