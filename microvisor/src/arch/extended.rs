//! State that a world switch does not swap by itself: vector registers, XCR0, PKRU, XSS, TSC_AUX,
//! debug registers.
//!
//! A register is written only where the values of guest and root differ.
#![allow(unsafe_code, reason = "privileged instructions")]

use core::arch::asm;
use core::ops::Range;

use guest_proto::vcpu_page::Vectors;
use x86_64::registers::debug::{DebugAddressRegister, Dr0, Dr1, Dr2, Dr3};
use x86_64::registers::xcontrol::XCr0;

use super::{cpuid, read_msr, write_msr};

mod boot;

const XSS: u32 = 0xda0;
const TSC_AUX: u32 = 0xc000_0103;
const U_CET: u32 = 0x6a0;
const SPEC_CTRL: u32 = 0x48;
const PRED_CMD: u32 = 0x49;
/// Number of PKRU among the components of XSAVE.
const PKRU: u32 = 9;
/// Number of the XMM registers among them, and where they lie.
const SSE: u32 = 1;
const XMM: Range<usize> = 160..416;
/// Where the area says which components are not in their initial configuration.
const XSTATE_BV: usize = 512;

/// Extended-state features that this CPU supports.
#[derive(Clone, Copy, Debug)]
pub(super) struct Features {
    xsave: bool,
    protection_keys: bool,
    supervisor_states: bool,
    shadow_stacks: bool,
    x87_pointers_leak: bool,
    rdtscp: bool,
    spec_ctrl: bool,
    prediction_barrier: bool,
}

impl Features {
    /// The features of a CPU that no guest runs on.
    #[cfg(test)]
    pub(super) fn none() -> Self {
        Self {
            xsave: false,
            protection_keys: false,
            supervisor_states: false,
            shadow_stacks: false,
            x87_pointers_leak: false,
            rdtscp: false,
            spec_ctrl: false,
            prediction_barrier: false,
        }
    }

    /// Reads the time-stamp counter, and TSC_AUX, which is 0 where the CPU has none.
    fn tsc_aux(&self) -> (u64, u32) {
        if !self.rdtscp {
            return (super::tsc(), 0);
        }
        let mut aux = 0;
        // SAFETY: the CPU has RDTSCP.
        let tsc = unsafe { core::arch::x86_64::__rdtscp(&mut aux) };
        (tsc, aux)
    }

    /// Overwrites the pointers of the last x87 instruction. On CPUs where they leak, the restore of a state without a
    /// pending x87 exception leaves them unchanged, and the next save of the state reads them (APM
    /// vol. 2 §11.4.4, CVE-2006-1056; Linux does the same).
    fn forget_x87_pointers(&self) {
        if self.x87_pointers_leak {
            static ZERO: u32 = 0;
            // SAFETY: x87 state is somebody's that is saved, or is about to be loaded.
            unsafe {
                asm!("fnclex", "emms", "fild dword ptr [{}]", in(reg) &raw const ZERO, options(nostack));
            }
        }
    }

    /// Makes the CPU forget the branch predictions of other guests.
    pub(super) fn prediction_barrier(&self) {
        if self.prediction_barrier {
            predict_anew(1);
        }
    }
}

/// Writes PRED_CMD. The CPU must have the bits of `command`.
pub fn predict_anew(command: u64) {
    // SAFETY: IBPB and SBPB change no state that software sees (APM vol. 2 §3.2.9); a bit that the CPU has
    // not would be an exception with a report.
    unsafe { write_msr(PRED_CMD, command) };
}

/// Bytes of the extended state that a guest can have.
pub const AREA_SIZE: u32 = size_of::<Area>() as u32;

/// A guest's vector registers while it does not run: a frame for XSAVE or FXSAVE.
#[repr(C, align(4096))]
#[derive(Debug)]
pub(super) struct Area([u8; 4096]);

impl Area {
    /// Makes the state after reset: every component is in its initial configuration, and MXCSR and the x87 control
    /// word stand where FXRSTOR takes them from.
    pub(super) const fn reset() -> Self {
        let mut bytes = [0; 4096];
        [bytes[0], bytes[1]] = 0x037f_u16.to_le_bytes();
        [bytes[24], bytes[25], bytes[26], bytes[27]] = 0x1f80_u32.to_le_bytes();
        // FXSAVE always writes the XMM registers, and says so nowhere.
        bytes[XSTATE_BV] = 1 << SSE;
        Self(bytes)
    }

    /// Returns XMM0 to XMM15.
    pub(super) fn vectors(&self) -> Vectors {
        let mut vectors = Vectors::default();
        if self.has(SSE) {
            let words = self.0[XMM].chunks_exact(8);
            for (word, bytes) in vectors.xmm.iter_mut().zip(words) {
                *word = bytes
                    .first_chunk()
                    .map_or(0, |raw| u64::from_le_bytes(*raw));
            }
        }
        vectors
    }

    pub(super) fn set_vectors(&mut self, vectors: &Vectors) {
        for (bytes, word) in self.0[XMM].chunks_exact_mut(8).zip(vectors.xmm) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        self.0[XSTATE_BV] |= 1 << SSE;
    }

    /// Returns PKRU of a guest with protection keys.
    pub(super) fn pkru(&self) -> u32 {
        self.component(PKRU, cpuid(0xd, PKRU).ebx)
    }

    /// Returns the first word of a component of XSAVE's standard form, which lies at `offset`. It is 0, the initial
    /// value, if the area does not have the component (APM vol. 2 §11.5.2).
    fn component(&self, number: u32, offset: u32) -> u32 {
        let at = offset as usize;
        let word = self.0.get(at..at + 4).and_then(|bytes| bytes.first_chunk());
        match word {
            Some(bytes) if self.has(number) => u32::from_le_bytes(*bytes),
            _ => 0,
        }
    }

    /// Returns whether component `number`, below 16, is not in its initial configuration.
    fn has(&self, number: u32) -> bool {
        let [low, high] = [self.0[XSTATE_BV], self.0[XSTATE_BV + 1]];
        u16::from_le_bytes([low, high]) & 1 << number != 0
    }
}

/// Root's values while a guest's are in the CPU.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Root {
    xcr0: u64,
    pkru: u32,
    xss: u64,
    user_cet: u64,
    spec_ctrl: u64,
    tsc_aux: u32,
    debug: Option<[u64; 4]>,
}

/// A guest's values while they are not in the CPU.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extended {
    /// Components that the guest may ever use, which XSAVE keeps.
    pub(super) components: u64,
    /// XCR0.
    pub(super) xcr0: u64,
    /// SPEC_CTRL.
    pub(super) spec_ctrl: u64,
    /// SPEC_CTRL is swapped here, because VMRUN does not do it.
    pub(super) swaps_spec_ctrl: bool,
    /// TSC_AUX.
    pub(super) tsc_aux: u32,
    /// DR0 to DR3.
    pub(super) debug: [u64; 4],
}

impl Extended {
    /// Puts the guest's values into the CPU, and keeps root's.
    pub(super) fn load(&self, features: &Features, area: &Area, root: &mut Root) {
        *root = Root::default();
        if features.protection_keys {
            root.pkru = read_pkru();
        }
        features.forget_x87_pointers();
        if features.xsave {
            root.xcr0 = read_xcr0();
            let wide = root.xcr0 | self.components;
            if wide != root.xcr0 {
                write_xcr0(wide);
            }
            // SAFETY: an area that only XSAVE wrote since it was reset; the microvisor uses no
            // vector register.
            unsafe { xrstor(area, self.components) };
            if self.xcr0 != wide {
                write_xcr0(self.xcr0);
            }
        } else {
            // SAFETY: as above, with FXSAVE.
            unsafe { asm!("fxrstor64 [{}]", in(reg) area, options(nostack)) };
        }
        if features.supervisor_states {
            root.xss = read_msr(XSS);
            if root.xss != 0 {
                // SAFETY: no supervisor state component: what a guest without XSS expects.
                unsafe { write_msr(XSS, 0) };
            }
        }
        if features.shadow_stacks {
            // VMRUN swaps S_CET and SSP, and a guest writes neither: CR4.CET alone does nothing.
            root.user_cet = read_msr(U_CET);
            if root.user_cet != 0 {
                // SAFETY: no shadow stack of root's programs for the guest's.
                unsafe { write_msr(U_CET, 0) };
            }
        }
        if features.spec_ctrl && self.swaps_spec_ctrl {
            root.spec_ctrl = read_msr(SPEC_CTRL);
            if root.spec_ctrl != self.spec_ctrl {
                self.load_spec_ctrl();
            }
        }
        (_, root.tsc_aux) = features.tsc_aux();
        if features.rdtscp && root.tsc_aux != self.tsc_aux {
            // SAFETY: any 32-bit value goes, and the microvisor does not use it.
            unsafe { write_msr(TSC_AUX, self.tsc_aux.into()) };
        }
    }

    /// Takes the guest's values out of the CPU, and puts root's back.
    pub(super) fn unload(&mut self, features: &Features, area: &mut Area, root: &mut Root) {
        if let Some(debug) = root.debug.take() {
            self.debug = read_debug();
            write_debug(debug);
        }
        (_, self.tsc_aux) = features.tsc_aux();
        if features.rdtscp && root.tsc_aux != self.tsc_aux {
            // SAFETY: root's own value.
            unsafe { write_msr(TSC_AUX, root.tsc_aux.into()) };
        }
        if features.spec_ctrl && self.swaps_spec_ctrl && root.spec_ctrl != self.spec_ctrl {
            // SAFETY: root's own value.
            unsafe { write_msr(SPEC_CTRL, root.spec_ctrl) };
        }
        if root.user_cet != 0 {
            // SAFETY: root's own value.
            unsafe { write_msr(U_CET, root.user_cet) };
        }
        if root.xss != 0 {
            // SAFETY: root's own value.
            unsafe { write_msr(XSS, root.xss) };
        }
        if features.xsave {
            let wide = root.xcr0 | self.components;
            if self.xcr0 != wide {
                write_xcr0(wide);
            }
            // SAFETY: the area is large enough for the components (`cpuid::xcr0_allowed`).
            unsafe { xsave(area, self.components) };
            if wide != root.xcr0 {
                write_xcr0(root.xcr0);
            }
        } else {
            // SAFETY: the area is a page.
            unsafe { asm!("fxsave64 [{}]", in(reg) area, options(nostack)) };
        }
        features.forget_x87_pointers();
        if features.protection_keys {
            write_pkru(root.pkru);
        }
    }

    /// Sets XCR0 while the guest's values are in the CPU.
    pub(super) fn set_xcr0(&mut self, value: u64) {
        self.xcr0 = value;
        write_xcr0(value);
    }

    /// Puts the guest's SPEC_CTRL into the CPU.
    pub(super) fn load_spec_ctrl(&self) {
        // SAFETY: `vcpu::cpuid::spec_ctrl_allowed` lets only bits pass that the CPU has; they cost speed at most.
        unsafe { write_msr(SPEC_CTRL, self.spec_ctrl) };
    }

    /// Puts the guest's debug registers into the CPU, if they are not there.
    pub(super) fn load_debug(&self, root: &mut Root) {
        if root.debug.is_none() {
            root.debug = Some(read_debug());
            write_debug(self.debug);
        }
    }
}

fn read_xcr0() -> u64 {
    // CR4.OSXSAVE is set where there is XSAVE.
    XCr0::read_raw()
}

/// Writes XCR0. The value is root's own with components that the CPU has, or one that a guest's XSETBV was
/// allowed.
fn write_xcr0(value: u64) {
    // SAFETY: CR4.OSXSAVE is set where there is XSAVE; the microvisor uses no vector register.
    unsafe { XCr0::write_raw(value) };
}

unsafe fn xrstor(area: &Area, components: u64) {
    // SAFETY: the caller's.
    unsafe {
        asm!("xrstor64 [{}]", in(reg) area, in("eax") components as u32,
            in("edx") (components >> 32) as u32, options(nostack, readonly));
    }
}

unsafe fn xsave(area: &mut Area, components: u64) {
    // SAFETY: the caller's.
    unsafe {
        asm!("xsave64 [{}]", in(reg) area, in("eax") components as u32,
            in("edx") (components >> 32) as u32, options(nostack));
    }
}

fn read_pkru() -> u32 {
    let pkru;
    // SAFETY: CR4.PKE is set where there are protection keys.
    unsafe { asm!("rdpkru", in("ecx") 0, out("eax") pkru, out("edx") _, options(nomem, nostack)) };
    pkru
}

fn write_pkru(pkru: u32) {
    // SAFETY: as above.
    unsafe { asm!("wrpkru", in("ecx") 0, in("eax") pkru, in("edx") 0, options(nomem, nostack)) };
}

fn read_debug() -> [u64; 4] {
    [Dr0::read(), Dr1::read(), Dr2::read(), Dr3::read()]
}

/// Writes DR0 to DR3. Any value goes: the microvisor's own DR7 enables none of them.
fn write_debug([a, b, c, d]: [u64; 4]) {
    Dr0::write(a);
    Dr1::write(b);
    Dr2::write(c);
    Dr3::write(d);
}

#[cfg(test)]
mod tests {
    use super::Area;

    #[test]
    fn pkru_is_what_xsave_left() {
        let mut area = Area::reset();
        area.0[2688..2692].copy_from_slice(&0x5555_5554_u32.to_le_bytes());
        assert_eq!(area.component(9, 2688), 0, "in its initial state");
        area.0[513] = 2;
        assert_eq!(area.component(9, 2688), 0x5555_5554);
        assert_eq!(area.component(9, 4094), 0);
        assert_eq!(area.component(8, 2688), 0);
    }
}
