//! A virtual CPU's state between the control block and the ABI's form.

use guest_proto::shared::First;
use guest_proto::vcpu_page::{ExecutionState, GeneralRegisters, VcpuState};
use x86_64::registers::control::{Cr0Flags, Cr4Flags};
use x86_64::registers::rflags::RFlags;

use super::guest::Guest;
use super::guest_efer;
use super::registers::{all_general, general};
use super::vmcb::Save;
use crate::arch::exit::BadState;

/// Bits of CR4 that a guest can have: those of features that guests have.
const CR4_ALLOWED: Cr4Flags = Cr4Flags::all().difference(
    Cr4Flags::L5_PAGING
        .union(Cr4Flags::VIRTUAL_MACHINE_EXTENSIONS)
        .union(Cr4Flags::SAFER_MODE_EXTENSIONS)
        .union(Cr4Flags::KEY_LOCKER)
        .union(Cr4Flags::CONTROL_FLOW_ENFORCEMENT)
        .union(Cr4Flags::PROTECTION_KEY_SUPERVISOR),
);
/// Bit 1 of RFLAGS, which always reads as 1.
const RFLAGS_FIXED: u64 = 2;

/// Whether `value` has more than 32 bits.
fn is_wide(value: u64) -> bool {
    value >> 32 != 0
}

impl Guest {
    pub(crate) fn execution_state(&self) -> ExecutionState {
        let save = &self.vmcb.save;
        let has_pkru = save.cr4 & Cr4Flags::PROTECTION_KEY_USER.bits() != 0;
        ExecutionState {
            gpr: all_general(&self.vmcb, &self.registers),
            rip: save.rip,
            rflags: save.rflags,
            segment: save.segment,
            ldtr: save.ldtr,
            tr: save.tr,
            gdtr: save.gdtr,
            idtr: save.idtr,
            cr0: save.cr0,
            cr2: save.cr2,
            cr3: save.cr3,
            cr4: save.cr4,
            efer: save.efer(),
            pkru: if has_pkru { self.area.pkru().into() } else { 0 },
        }
    }

    pub(crate) fn state(&self) -> VcpuState {
        let save = &self.vmcb.save;
        VcpuState {
            xcr0: self.extended.xcr0,
            dr: self.extended.debug,
            dr6: save.dr6,
            dr7: save.dr7,
            star: save.star,
            lstar: save.lstar,
            cstar: save.cstar,
            sfmask: save.sfmask,
            kernel_gs_base: save.kernel_gs_base,
            sysenter: save.sysenter,
            pat: save.g_pat,
            tsc_aux: self.extended.tsc_aux.into(),
            interrupt_shadow: self.vmcb.interrupt_shadow().into(),
            spec_ctrl: self.extended.spec_ctrl,
            ..self.execution_state().extended()
        }
    }

    pub(crate) fn set_state(
        &mut self,
        state: &VcpuState,
        xcr0_allowed: bool,
    ) -> Result<(), BadState> {
        let bad = !xcr0_allowed
            || state.efer & !guest_efer() != 0
            || state.cr0 & !Cr0Flags::all().bits() != 0
            || state.cr4 & !CR4_ALLOWED.bits() != 0
            || is_wide(state.dr6)
            || is_wide(state.dr7)
            || is_wide(state.tsc_aux)
            || state.interrupt_shadow > 1
            || state.reserved.iter().any(|word| *word != 0);
        if bad {
            return Err(BadState);
        }
        self.set_registers(&GeneralRegisters::of(state));
        self.extended.xcr0 = state.xcr0;
        self.extended.debug = state.dr;
        self.extended.tsc_aux = state.tsc_aux as u32;
        self.keep_spec_ctrl(state.spec_ctrl);
        let save = &mut self.vmcb.save;
        save.segment = state.segment;
        (save.ldtr, save.tr) = (state.ldtr, state.tr);
        (save.gdtr, save.idtr) = (state.gdtr, state.idtr);
        // The privilege level is the stack segment's (APM vol. 2 §15.5.1).
        save.cpl = (state.segment[Save::SS].attributes >> 5 & 3) as u8;
        (save.cr0, save.cr2, save.cr3, save.cr4) = (state.cr0, state.cr2, state.cr3, state.cr4);
        save.set_efer(state.efer);
        (save.dr6, save.dr7) = (state.dr6, state.dr7);
        (save.star, save.lstar, save.cstar) = (state.star, state.lstar, state.cstar);
        (save.sfmask, save.kernel_gs_base) = (state.sfmask, state.kernel_gs_base);
        save.sysenter = state.sysenter;
        save.g_pat = state.pat;
        self.vmcb.set_interrupt_shadow(state.interrupt_shadow != 0);
        self.vmcb.forget_event();
        Ok(())
    }

    pub(crate) fn set_registers(&mut self, state: &GeneralRegisters) {
        for (n, value) in state.gpr.iter().enumerate() {
            if let Some(register) = general(&mut self.vmcb, &mut self.registers, n) {
                *register = *value;
            }
        }
        // An interrupt shadow lasts for one instruction.
        if state.rip != self.vmcb.save.rip {
            self.vmcb.set_interrupt_shadow(false);
        }
        let save = &mut self.vmcb.save;
        save.rip = state.rip;
        // Bits that do not exist would make VMRUN refuse.
        save.rflags = state.rflags & RFlags::all().bits() | RFLAGS_FIXED;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sets_are_those_of_the_manual() {
        // APM vol. 2 §3.1.1, §3.1.3 and §3.1.6, once more as numbers.
        assert_eq!(Cr0Flags::all().bits(), 0xe005_003f);
        assert_eq!(CR4_ALLOWED.bits(), 0x0077_0fff);
        assert_eq!(RFlags::all().bits(), 0x003f_7fd5);
    }
}
