//! The answer to each exit of a guest.

use guest_proto::hypercall::ExitKind;
use guest_proto::ring::Push;
use guest_proto::vcpu_page::InterceptFlags;
use guest_proto::vcpu_page::{
    Intercept, InterceptKind, PostedKind, PostedWrite, RunExit, RunState,
};
use x86_64::registers::control::Cr4Flags;

use super::run::{EOI_TAG, Turn};
use crate::arch;
use crate::arch::exit::{Event, Exit, PortAccess};
use crate::arch::hw::{Register, Window};
use crate::counters;
use crate::vcpu::Pending;
use crate::vcpu::cpuid::{self, Leaf};
use crate::vcpu::vlapic::{Effect, Mode};

/// KVM's answer to a hypercall that it does not have (Linux `include/uapi/linux/kvm_para.h`).
const KVM_ENOSYS: u64 = 1000_u64.wrapping_neg();

/// What an exit's answer did.
pub(super) enum Answer {
    /// It skipped an instruction that changes nothing on which the next entry depends.
    Skipped,
    /// It changed something: the next entry is prepared anew.
    Changed,
    /// It ends the turn.
    End(RunExit),
}

/// What a port write was to the partition's doorbells.
enum Posting {
    /// The worker must answer it: no doorbell has the port, or the ring is full.
    None,
    /// It is posted, and the guest goes on.
    Posted,
    /// It is posted, and the consumer of the doorbell with this tag sleeps.
    Wake(u16),
}

impl Turn<'_> {
    /// Answers and counts an exit.
    pub(super) fn answer(&mut self, exit: Exit) -> Answer {
        let mut kind = counters::kind(exit);
        let mut answer = Answer::Changed;
        let hw = &mut self.local.hw;
        match exit {
            Exit::Interrupt | Exit::Nmi | Exit::Init | Exit::MachineCheck => {
                answer = Answer::End(RunExit::Interrupt);
            }
            Exit::InterruptWindow => hw.set_window(Window::Closed),
            Exit::Return => {
                // Without an NMI in service, it ends what one that waits has to wait for.
                if core::mem::take(&mut self.local.nmi_masked) {
                    self.local.nmi_return = Some(hw.read(Register::Rip));
                }
                hw.watch_return(false);
            }
            Exit::Returned => self.local.nmi_return = None,
            Exit::Cpuid => {
                self.cpuid();
                answer = Answer::Skipped;
            }
            Exit::Halt => {
                hw.skip();
                // A trap of this very instruction ends it at once.
                if hw.takes_nmis() {
                    self.local.run_state = RunState::Halted;
                }
            }
            Exit::Msr { is_write } => answer = self.msr(is_write),
            Exit::Port(access) => match self.post(access) {
                Posting::None => answer = Answer::End(self.port(access)),
                Posting::Posted => {
                    kind = ExitKind::Posted;
                    answer = Answer::Skipped;
                }
                Posting::Wake(tag) => {
                    kind = ExitKind::Posted;
                    answer = Answer::End(self.notify(tag));
                }
            },
            Exit::Hypercall => {
                hw.write(Register::Rax, KVM_ENOSYS);
                hw.skip();
                answer = Answer::Skipped;
            }
            Exit::NestedFault => answer = Answer::End(self.nested_fault()),
            Exit::Xsetbv => self.xsetbv(),
            // Caches are coherent, and a guest's memory is its own.
            Exit::CacheFlush => hw.skip(),
            Exit::DebugRegister => {}
            Exit::Exception(event) => hw.inject(event),
            Exit::Forbidden => hw.inject(Event::INVALID_OPCODE),
            Exit::PerformanceCounter => hw.inject(Event::GENERAL_PROTECTION),
            Exit::Shutdown => answer = Answer::End(self.stopped(InterceptKind::Shutdown, 0)),
            Exit::Refused => {
                answer = Answer::End(self.stopped(InterceptKind::EntryFailed, u64::MAX));
            }
            Exit::Other(code) => {
                answer = Answer::End(self.stopped(InterceptKind::EntryFailed, code.into()));
            }
        }
        // The reply tells which kind a nested fault is.
        if kind != ExitKind::NestedFault {
            self.vcpu.counters.exit(kind);
        }
        answer
    }

    fn stopped(&mut self, kind: InterceptKind, error_code: u64) -> RunExit {
        let intercept = Intercept {
            flags: InterceptFlags::STATE.bits(),
            error_code,
            ..Intercept::default()
        };
        self.intercept(kind, intercept)
    }

    fn cpuid(&mut self) {
        let hw = &mut self.local.hw;
        let cr4 = hw.read(Register::Cr4);
        let state = cpuid::State {
            apic_enabled: self.local.lapic.mode() != Mode::Disabled,
            osxsave: cr4 & Cr4Flags::OSXSAVE.bits() != 0,
            ospke: cr4 & Cr4Flags::PROTECTION_KEY_USER.bits() != 0,
            xcr0: hw.read(Register::Xcr0),
        };
        let (leaf, subleaf) = (hw.read(Register::Rax) as u32, hw.read(Register::Rcx) as u32);
        let answer = cpuid::answer(&self.local.cpuid, host_cpuid, &state, leaf, subleaf);
        hw.write(Register::Rax, answer.eax.into());
        hw.write(Register::Rbx, answer.ebx.into());
        hw.write(Register::Rcx, answer.ecx.into());
        hw.write(Register::Rdx, answer.edx.into());
        hw.skip();
    }

    fn xsetbv(&mut self) {
        let value = self.local.edx_eax();
        let hw = &mut self.local.hw;
        let allowed = cpuid::xcr0_allowed(host_cpuid);
        let register = hw.read(Register::Rcx) as u32;
        // The intercept comes before the instruction's own checks (APM vol. 4, XSETBV).
        if hw.read(Register::Cr4) & Cr4Flags::OSXSAVE.bits() == 0 {
            hw.inject(Event::INVALID_OPCODE);
        } else if hw.cpl() == 0 && register == 0 && cpuid::xcr0_is_valid(value, allowed) {
            hw.write(Register::Xcr0, value);
            hw.skip();
        } else {
            hw.inject(Event::GENERAL_PROTECTION);
        }
    }

    /// Returns the bytes of RAX that a port access of `size` bytes writes.
    fn port_data(&self, size: u8) -> u64 {
        let mask = u64::MAX >> (64 - 8 * u32::from(size.clamp(1, 8)));
        self.local.hw.read(Register::Rax) & mask
    }

    fn port(&mut self, access: PortAccess) -> RunExit {
        let mut flags = InterceptFlags::empty();
        if access.string {
            flags |= InterceptFlags::STRING | InterceptFlags::STATE;
        }
        if access.rep {
            flags |= InterceptFlags::REP;
        }
        let data = match access.is_write {
            true => self.port_data(access.size),
            false => 0,
        };
        let intercept = Intercept {
            flags: flags.bits(),
            size: access.size,
            is_write: access.is_write.into(),
            address: access.port.into(),
            data,
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
        end
    }

    /// Posts a port write, and skips its instruction, if the write is to a doorbell and the ring has room.
    fn post(&mut self, access: PortAccess) -> Posting {
        if !access.is_write || access.string {
            return Posting::None;
        }
        let doorbells = &self.partition.doorbells;
        let Some(doorbell) = doorbells.find(access.port, access.size) else {
            return Posting::None;
        };
        let entry = PostedWrite {
            kind: PostedKind::Port.raw(),
            size: access.size,
            tag: doorbell.tag,
            offset: u32::from(access.port - doorbell.port),
            data: self.port_data(access.size),
        };
        let posting = if doorbell.signal_only {
            Posting::Wake(doorbell.tag)
        } else {
            match self.local.ring.push(self.page, entry) {
                Push::Posted => Posting::Posted,
                Push::PostedWake => Posting::Wake(doorbell.tag),
                Push::Full => return Posting::None,
            }
        };
        self.local.hw.skip();
        posting
    }

    fn nested_fault(&mut self) -> RunExit {
        let fault = self.local.hw.nested_fault();
        let address = fault.address.as_u64();
        let mut flags = InterceptFlags::STATE;
        let mut data = 0;
        self.local.pending = Pending::Memory;
        // The worker decodes the instruction, and needs no call for the register.
        if let Some(register) = self.local.lapic.register_at(address) {
            self.local.pending = Pending::Apic(register);
            flags |= InterceptFlags::APIC;
            if !fault.is_write() {
                let now = self.now();
                data = self.local.lapic.read_register(register, now).into();
            }
        }
        let intercept = Intercept {
            flags: flags.bits(),
            is_write: fault.is_write().into(),
            address,
            data,
            error_code: fault.error_code,
            instruction_len: fault.instruction_len,
            instruction: fault.instruction,
            ..Intercept::default()
        };
        self.intercept(InterceptKind::Memory, intercept)
    }

    /// Carries out the effect of a write to the vLAPIC.
    pub(super) fn effect(&mut self, effect: Effect) -> Answer {
        match effect {
            Effect::None => Answer::Changed,
            Effect::Timer if !self.has_earlier_deadline() => Answer::Skipped,
            Effect::Timer => Answer::Changed,
            Effect::Address => {
                self.vcpu.publish(&self.local.lapic);
                Answer::Changed
            }
            Effect::LevelEoi(vector) => match self.local.ring.push_eoi(self.page, vector) {
                Push::PostedWake => Answer::End(self.notify(EOI_TAG)),
                Push::Posted | Push::Full => Answer::Changed,
            },
            Effect::Send(message) => {
                let sender = Some(self.vcpu.index());
                let kick = self.partition.deliver(self.host.memory, sender, &message);
                if kick == 0 {
                    return Answer::Changed;
                }
                self.vcpu.counters.exit(ExitKind::Ipi);
                Answer::End(self.kick(kick))
            }
        }
    }
}

/// Returns this CPU's own answer of CPUID, in the form that the policy takes.
pub fn host_cpuid(leaf: u32, subleaf: u32) -> Leaf {
    let answer = arch::cpuid(leaf, subleaf);
    Leaf {
        eax: answer.eax,
        ebx: answer.ebx,
        ecx: answer.ecx,
        edx: answer.edx,
    }
}
