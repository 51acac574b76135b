//! What becomes of each exit of a guest.

use guest_proto::hypercall::{DoorbellSpace, ExitKind};
use guest_proto::ring::Push;
use guest_proto::vcpu_page::intercept_flags;
use guest_proto::vcpu_page::{Intercept, InterceptKind, PostedKind, PostedWrite, RunState};

use super::run::{EOI_TAG, End, Turn};
use crate::arch;
use crate::arch::hw::{Event, Exit, Gpr, NestedFault, PortAccess};
use crate::vcpu::Pending;
use crate::vcpu::cpuid::{self, Facts, Leaf};
use crate::vcpu::vlapic::{Effect, Mode};

/// CR4: the guest's kernel uses XSAVE and XSETBV.
const OSXSAVE: u64 = 1 << 18;
/// KVM's answer to a hypercall that it does not have (Linux `include/uapi/linux/kvm_para.h`).
const KVM_ENOSYS: u64 = 1000_u64.wrapping_neg();

impl Turn<'_> {
    /// Answers an exit. Something: the turn is over.
    pub(super) fn answer(&mut self, exit: Exit) -> Option<End> {
        // Those two are counted where it shows what they are.
        if !matches!(exit, Exit::Port(_) | Exit::NestedFault(_)) {
            self.vcpu.counters.exit(exit.kind());
        }
        match exit {
            Exit::Interrupt | Exit::Nmi | Exit::Init | Exit::MachineCheck => Some(End::Interrupt),
            Exit::InterruptWindow => {
                self.local.hw.forget_window();
                None
            }
            Exit::Return => {
                // Without an NMI in service, it ends what one that waits has to wait for.
                if core::mem::take(&mut self.local.nmi_masked) {
                    self.local.nmi_return = Some(self.local.hw.rip());
                }
                self.local.hw.watch_return(false);
                None
            }
            Exit::Returned => {
                self.local.nmi_return = None;
                None
            }
            Exit::Cpuid => {
                self.cpuid();
                None
            }
            Exit::Halt => {
                self.local.hw.skip();
                // A trap of this very instruction ends it at once.
                if self.local.hw.takes_nmis() {
                    self.local.run_state = RunState::Halted;
                }
                None
            }
            Exit::Msr { is_write } => self.msr(is_write),
            Exit::Port(access) => self.port(access),
            Exit::Hypercall => {
                self.local.hw.set_gpr(Gpr::Rax, KVM_ENOSYS);
                self.local.hw.skip();
                None
            }
            Exit::NestedFault(fault) => Some(self.nested_fault(&fault)),
            Exit::Xsetbv => {
                self.xsetbv();
                None
            }
            // Caches are coherent, and a guest's memory is its own.
            Exit::CacheFlush => {
                self.local.hw.skip();
                None
            }
            Exit::DebugRegister => {
                self.local.hw.load_debug_registers();
                None
            }
            Exit::Exception(event) => {
                self.local.hw.inject(event);
                None
            }
            Exit::Forbidden => {
                self.local.hw.inject(Event::INVALID_OPCODE);
                None
            }
            Exit::PerformanceCounter => {
                self.local.hw.inject(Event::GENERAL_PROTECTION);
                None
            }
            Exit::Shutdown => Some(self.stopped(InterceptKind::Shutdown, 0)),
            Exit::Refused => Some(self.stopped(InterceptKind::EntryFailed, u64::MAX)),
            Exit::Other(code) => Some(self.stopped(InterceptKind::EntryFailed, code.into())),
        }
    }

    fn stopped(&mut self, kind: InterceptKind, error_code: u64) -> End {
        let intercept = Intercept {
            flags: intercept_flags::STATE,
            error_code,
            ..Intercept::default()
        };
        self.intercept(kind, intercept)
    }

    fn cpuid(&mut self) {
        let properties = &self.partition.properties;
        let hw = &mut self.local.hw;
        const PKE: u64 = 1 << 22;
        let facts = Facts {
            partition: self.partition.id().0,
            features: self.machine.facts.features,
            apic_id: self.vcpu.index().into(),
            vcpus: properties.vcpus(),
            tsc_khz: u32::try_from(properties.tsc_khz()).unwrap_or(0),
            apic_khz: APIC_KHZ,
            apic_enabled: self.local.lapic.mode() != Mode::Disabled,
            osxsave: hw.cr4() & OSXSAVE != 0,
            ospke: hw.cr4() & PKE != 0,
            xcr0: hw.xcr0(),
        };
        let (leaf, subleaf) = (hw.gpr(Gpr::Rax) as u32, hw.gpr(Gpr::Rcx) as u32);
        let answer = cpuid::answer(host_cpuid, &facts, leaf, subleaf);
        hw.set_gpr(Gpr::Rax, answer.eax.into());
        hw.set_gpr(Gpr::Rbx, answer.ebx.into());
        hw.set_gpr(Gpr::Rcx, answer.ecx.into());
        hw.set_gpr(Gpr::Rdx, answer.edx.into());
        hw.skip();
    }

    fn xsetbv(&mut self) {
        let hw = &mut self.local.hw;
        let value = hw.gpr(Gpr::Rdx) << 32 | hw.gpr(Gpr::Rax) & 0xffff_ffff;
        let allowed = cpuid::xcr0_allowed(host_cpuid);
        let register = hw.gpr(Gpr::Rcx) as u32;
        // The intercept comes before the instruction's own checks (APM vol. 4, XSETBV).
        if hw.cr4() & OSXSAVE == 0 {
            hw.inject(Event::INVALID_OPCODE);
        } else if hw.cpl() == 0 && register == 0 && cpuid::xcr0_is_valid(value, allowed) {
            hw.set_xcr0(value);
            hw.skip();
        } else {
            hw.inject(Event::GENERAL_PROTECTION);
        }
    }

    fn port(&mut self, access: PortAccess) -> Option<End> {
        let mask = u64::MAX >> (64 - 8 * u32::from(access.size.clamp(1, 8)));
        let data = self.local.hw.gpr(Gpr::Rax) & mask;
        if access.is_write
            && !access.string
            && let Some(end) = self.doorbell(access, data)
        {
            self.vcpu.counters.exit(ExitKind::Posted);
            self.local.hw.skip();
            return end;
        }
        self.vcpu.counters.exit(ExitKind::Port);
        let flag = |on, flag| if on { flag } else { 0 };
        let flags = flag(
            access.string,
            intercept_flags::STRING | intercept_flags::STATE,
        ) | flag(access.rep, intercept_flags::REP);
        let intercept = Intercept {
            flags,
            size: access.size,
            is_write: access.is_write.into(),
            address: access.port.into(),
            data: if access.is_write { data } else { 0 },
            ..Intercept::default()
        };
        let end = self.intercept(InterceptKind::Port, intercept);
        if access.string {
            self.local.pending = Pending::String;
        } else if access.is_write {
            self.local.hw.skip();
        } else {
            self.local.pending = Pending::PortRead(access.size);
        }
        Some(end)
    }

    /// Posts a write to a doorbell, if it is one and there is room; what then becomes of the turn.
    #[expect(
        clippy::option_option,
        reason = "no doorbell, or a doorbell and how it goes on"
    )]
    fn doorbell(&mut self, access: PortAccess, data: u64) -> Option<Option<End>> {
        let port = u64::from(access.port);
        let doorbell = self
            .partition
            .doorbells
            .find(DoorbellSpace::Port, port, access.size)?;
        let notify = Some(End::Notify(doorbell.tag));
        if doorbell.signal_only {
            return Some(notify);
        }
        let entry = PostedWrite {
            kind: PostedKind::Port.raw(),
            size: access.size,
            tag: doorbell.tag,
            // Inside the doorbell, which is not longer than a page.
            offset: (port - doorbell.base) as u32,
            data,
        };
        match self.local.ring.push(self.page, entry) {
            Push::Posted => Some(None),
            Push::PostedWake => Some(notify),
            Push::Full => None,
        }
    }

    fn nested_fault(&mut self, fault: &NestedFault) -> End {
        self.local.pending = Pending::Memory;
        let intercept = Intercept {
            flags: intercept_flags::STATE,
            is_write: fault.is_write().into(),
            address: fault.address,
            error_code: fault.error_code,
            instruction_len: fault.instruction_len,
            instruction: fault.instruction,
            ..Intercept::default()
        };
        self.intercept(InterceptKind::Memory, intercept)
    }

    /// Carries out what a write to the vLAPIC asks for.
    pub(super) fn effect(&mut self, effect: Effect) -> Option<End> {
        match effect {
            Effect::None => None,
            Effect::LevelEoi(vector) => match self.local.ring.push_eoi(self.page, vector) {
                Push::PostedWake => Some(End::Notify(EOI_TAG)),
                Push::Posted | Push::Full => None,
            },
            Effect::Send(message) => {
                let sender = Some(self.vcpu.index());
                let kick = self
                    .partition
                    .deliver(&self.machine.memory, sender, &message);
                if kick == 0 {
                    return None;
                }
                self.vcpu.counters.exit(ExitKind::Ipi);
                Some(End::Kick(kick))
            }
        }
    }
}

/// The vLAPIC timer's clock.
const APIC_KHZ: u32 = (crate::vcpu::vlapic::timer::BUS_HZ / 1000) as u32;

/// CPUID of this CPU in the form that the policy takes.
pub fn host_cpuid(leaf: u32, subleaf: u32) -> Leaf {
    let answer = arch::cpuid(leaf, subleaf);
    Leaf {
        eax: answer.eax,
        ebx: answer.ebx,
        ecx: answer.ecx,
        edx: answer.edx,
    }
}
