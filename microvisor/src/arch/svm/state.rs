//! A virtual CPU's state between the control block and the ABI's form.

use guest_proto::vcpu_page::{Segment, VcpuState};

use super::guest::Guest;
use super::vmcb::Vmcb;
use crate::arch::hw::BadState;

/// CR0 bits that exist: PE MP EM TS ET NE, WP, AM, NW CD PG.
const CR0_ALLOWED: u64 = 0xe005_003f;
/// CR4 bits that exist (up to UMIP; FSGSBASE, PCIDE, OSXSAVE; SMEP, SMAP, PKE), without those of
/// features that guests do not have.
const CR4_ALLOWED: u64 = 0x0077_0fff;
const HIGH: u64 = !0xffff_ffff;

/// EFER bits that a guest can have on this CPU: SCE, LME, LMA, NXE, and AutoIBRS where there is one.
pub fn guest_efer() -> u64 {
    1 | 1 << 8 | 1 << 10 | 1 << 11 | super::automatic_ibrs()
}

impl Guest {
    pub(crate) fn state(&self) -> VcpuState {
        let vmcb = self.vmcb();
        let mut state = VcpuState {
            rip: vmcb.rip(),
            rflags: vmcb.rflags(),
            cr0: vmcb.cr0(),
            cr2: vmcb.cr2(),
            cr3: vmcb.cr3(),
            cr4: vmcb.cr4(),
            efer: vmcb.efer(),
            xcr0: self.extended.xcr0,
            dr: self.extended.debug,
            dr6: vmcb.dr6(),
            dr7: vmcb.dr7(),
            pat: vmcb.pat(),
            tsc_aux: self.extended.tsc_aux.into(),
            spec_ctrl: self.extended.spec_ctrl,
            interrupt_shadow: vmcb.interrupt_shadow().into(),
            ..VcpuState::default()
        };
        const CR4_PKE: u64 = 1 << 22;
        if state.cr4 & CR4_PKE != 0 {
            state.pkru = self.area().pkru().into();
        }
        for (n, gpr) in state.gpr.iter_mut().enumerate() {
            *gpr = self.gpr(n);
        }
        for (n, segment) in state.segment.iter_mut().enumerate() {
            *segment = vmcb.segment(n);
        }
        state.gdtr = vmcb.segment(Vmcb::GDTR);
        state.ldtr = vmcb.segment(Vmcb::LDTR);
        state.idtr = vmcb.segment(Vmcb::IDTR);
        state.tr = vmcb.segment(Vmcb::TR);
        let [star, lstar, cstar, sfmask, kernel_gs_base, cs, esp, eip] = vmcb.syscall_registers();
        (state.star, state.lstar, state.cstar) = (star, lstar, cstar);
        (state.sfmask, state.kernel_gs_base) = (sfmask, kernel_gs_base);
        state.sysenter = [cs, esp, eip];
        state
    }

    /// `xcr0_allowed`: the caller has checked XCR0.
    pub(crate) fn set_state(
        &mut self,
        state: &VcpuState,
        xcr0_allowed: bool,
    ) -> Result<(), BadState> {
        let bad = !xcr0_allowed
            || state.efer & !guest_efer() != 0
            || state.cr0 & !CR0_ALLOWED != 0
            || state.cr4 & !CR4_ALLOWED != 0
            || state.dr6 & HIGH != 0
            || state.dr7 & HIGH != 0
            || state.tsc_aux & HIGH != 0
            || state.interrupt_shadow > 1
            || state.reserved.iter().any(|word| *word != 0);
        if bad {
            return Err(BadState);
        }
        self.set_registers(state);
        self.extended.xcr0 = state.xcr0;
        self.extended.debug = state.dr;
        self.extended.tsc_aux = state.tsc_aux as u32;
        self.keep_spec_ctrl(state.spec_ctrl);
        let vmcb = self.vmcb_mut();
        for (n, segment) in state.segment.iter().enumerate() {
            vmcb.set_segment(n, segment);
        }
        vmcb.set_segment(Vmcb::GDTR, &state.gdtr);
        vmcb.set_segment(Vmcb::LDTR, &state.ldtr);
        vmcb.set_segment(Vmcb::IDTR, &state.idtr);
        vmcb.set_segment(Vmcb::TR, &state.tr);
        vmcb.set_cpl_from(&state.segment[Vmcb::SS]);
        vmcb.set_control([state.cr0, state.cr3, state.cr4]);
        vmcb.set_cr2(state.cr2);
        vmcb.set_efer(state.efer);
        vmcb.set_debug(state.dr6, state.dr7);
        vmcb.set_pat(state.pat);
        vmcb.set_interrupt_shadow(state.interrupt_shadow != 0);
        let [cs, esp, eip] = state.sysenter;
        vmcb.set_syscall_registers([
            state.star,
            state.lstar,
            state.cstar,
            state.sfmask,
            state.kernel_gs_base,
            cs,
            esp,
            eip,
        ]);
        self.forget_event();
        Ok(())
    }

    pub(crate) fn set_registers(&mut self, state: &VcpuState) {
        for (n, gpr) in state.gpr.iter().enumerate() {
            self.set_gpr(n, *gpr);
        }
        let vmcb = self.vmcb_mut();
        vmcb.set_rip(state.rip);
        // Bit 1 always reads as 1; bits that do not exist would make VMRUN refuse.
        vmcb.set_rflags(state.rflags & 0x003f_7fd5 | 2);
    }
}

/// A segment in real mode.
pub(super) const fn real_mode(selector: u16, attributes: u16) -> Segment {
    Segment {
        selector,
        attributes,
        limit: 0xffff,
        base: (selector as u64) << 4,
    }
}
