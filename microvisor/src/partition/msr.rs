//! RDMSR and WRMSR of a guest.

use guest_proto::vcpu_page::{Intercept, InterceptKind};

use super::answer::{Answer, host_cpuid};
use super::run::Turn;
use crate::arch;
use crate::arch::exit::Event;
use crate::arch::hw::Register;
use crate::vcpu::Pending;
use crate::vcpu::cpuid;
use crate::vcpu::msr::{self, GeneralProtection, Msr};

/// Why the microvisor does not complete an access.
enum Refusal {
    /// The access faults with #GP.
    Fault,
    /// The worker keeps the register.
    Worker,
}

impl From<GeneralProtection> for Refusal {
    fn from(_: GeneralProtection) -> Self {
        Self::Fault
    }
}

impl Turn<'_> {
    /// Answers RDMSR or WRMSR of the register in ECX.
    pub(super) fn msr(&mut self, is_write: bool) -> Answer {
        let number = self.local.hw.read(Register::Rcx) as u32;
        let value = self.local.edx_eax();
        let done = if is_write {
            self.write_msr(number, value)
        } else {
            let deadline = self.local.lapic.deadline();
            self.read_msr(number).map(|value| {
                self.local.set_edx_eax(value);
                // A read of the timer can find that its deadline has passed, and raises its interrupt.
                match self.local.lapic.deadline() == deadline {
                    true => Answer::Skipped,
                    false => Answer::Changed,
                }
            })
        };
        match done {
            Ok(answer) => {
                self.local.hw.skip();
                answer
            }
            Err(Refusal::Fault) => {
                self.local.hw.inject(Event::GENERAL_PROTECTION);
                Answer::Changed
            }
            Err(Refusal::Worker) => {
                self.local.pending = match is_write {
                    true => Pending::MsrWrite,
                    false => Pending::MsrRead,
                };
                let intercept = Intercept {
                    is_write: is_write.into(),
                    address: number.into(),
                    data: if is_write { value } else { 0 },
                    ..Intercept::default()
                };
                Answer::End(self.intercept(InterceptKind::Msr, intercept))
            }
        }
    }

    fn read_msr(&mut self, number: u32) -> Result<u64, Refusal> {
        let now = self.now();
        let local = &mut *self.local;
        Ok(match msr::classify(number).ok_or(Refusal::Worker)? {
            Msr::Tsc => now,
            Msr::TscAdjust => local.tsc_adjust,
            Msr::ApicBase => local.lapic.apic_base(),
            Msr::TscDeadline | Msr::X2Apic(_) => local.lapic.read_msr(number, now)?,
            Msr::SpecCtrl if cpuid::spec_ctrl_allowed(host_cpuid) != 0 => {
                local.hw.read(Register::SpecCtrl)
            }
            // PRED_CMD is for writing only.
            Msr::SpecCtrl | Msr::PredCmd => return Err(Refusal::Fault),
            Msr::Efer => local.hw.read(Register::Efer),
            Msr::Pat => local.hw.read(Register::Pat),
        })
    }

    fn write_msr(&mut self, number: u32, value: u64) -> Result<Answer, Refusal> {
        let now = self.now();
        let local = &mut *self.local;
        match msr::classify(number).ok_or(Refusal::Worker)? {
            Msr::Tsc => {
                let adjust = local.tsc_adjust.wrapping_add(value.wrapping_sub(now));
                self.adjust_tsc(adjust);
            }
            Msr::TscAdjust => self.adjust_tsc(value),
            Msr::ApicBase => {
                local.lapic.set_apic_base(value)?;
                self.vcpu.publish(&local.lapic);
            }
            Msr::TscDeadline | Msr::X2Apic(_) => {
                let effect = local.lapic.write_msr(number, value, now)?;
                return Ok(self.effect(effect));
            }
            Msr::SpecCtrl => {
                let allowed = cpuid::spec_ctrl_allowed(host_cpuid);
                let value = msr::write_spec_ctrl(allowed, value)?;
                local.hw.write(Register::SpecCtrl, value);
            }
            Msr::PredCmd => {
                let allowed = cpuid::pred_cmd_allowed(host_cpuid);
                arch::predict_anew(msr::write_spec_ctrl(allowed, value)?);
            }
            Msr::Efer => {
                let (old, cr0) = (local.hw.read(Register::Efer), local.hw.read(Register::Cr0));
                let value = msr::write_efer(arch::guest_efer(), old, value, cr0)?;
                local.hw.write(Register::Efer, value);
            }
            Msr::Pat => local.hw.write(Register::Pat, msr::write_pat(value)?),
        }
        Ok(Answer::Changed)
    }

    fn adjust_tsc(&mut self, adjust: u64) {
        let delta = adjust.wrapping_sub(self.local.tsc_adjust);
        self.local.tsc_adjust = adjust;
        self.tsc_offset = self.tsc_offset.wrapping_add(delta);
        self.local.lapic.adjust_tsc(delta as i64);
        self.local.hw.write(Register::TscOffset, self.tsc_offset);
    }
}
