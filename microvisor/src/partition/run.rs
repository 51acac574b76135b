//! A virtual CPU's turn, from `vcpu_run` to the exit that needs root.
//!
//! [`run`] loads the virtual CPU, enters it again and again, and answers its exits (`answer`) until
//! one of them, or something that arrived, ends the turn. A physical interrupt ends it at once, so
//! no guest keeps the CPU longer than root wants.

use core::mem::offset_of;
use core::sync::atomic::Ordering;

use guest_proto::hypercall::ExitKind;
use guest_proto::ring::Push;
use guest_proto::shared::SharedPage;
use guest_proto::vcpu_page::{
    Intercept, InterceptFlags, InterceptKind, ReplyFlags, RunExit, RunState,
};

use super::Partition;
use super::answer::Answer;
use crate::arch::exit::{Event, Exit, TurnState};
use crate::arch::hw::{Cpu, Register, Window};
use crate::arch::{self, CpuFacts};
use crate::memory::{Frame, Memory};
use crate::trace::Trace;
use crate::vcpu::{Local, Pending, Vcpu};

pub use guest_proto::hypercall::doorbell_tags::EOI as EOI_TAG;

/// Error: a turn was not begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunError {
    /// The reply in the virtual CPU's page makes no sense.
    BadReply,
    /// The partition has no memory.
    NoMemory,
}

/// The parts of the machine that a turn uses.
#[derive(Clone, Copy, Debug)]
pub struct Host<'a> {
    /// Memory of the machine.
    pub memory: &'a Memory,
    /// Facts about its CPUs.
    pub cpu: CpuFacts,
}

/// One turn.
pub(super) struct Turn<'a> {
    pub(super) host: &'a Host<'a>,
    pub(super) partition: &'a Partition,
    pub(super) vcpu: &'a Vcpu,
    pub(super) local: &'a mut Local,
    pub(super) page: &'a SharedPage,
    map: Frame,
    /// The guest's time-stamp counter less this CPU's.
    pub(super) tsc_offset: u64,
    /// The intercept comes with the state.
    with_state: bool,
    /// Tag of the doorbell whose consumer sleeps, with [`RunExit::Notify`].
    tag: u16,
}

/// Runs a virtual CPU on this CPU. The caller holds its claim. Returns the value of `vcpu_run`.
///
/// # Errors
///
/// Fails with [`RunError`] if the turn cannot begin.
pub fn run(
    host: &Host<'_>,
    cpu: &mut Cpu,
    partition: &Partition,
    vcpu: &Vcpu,
    local: &mut Local,
) -> Result<u64, RunError> {
    let page = vcpu.page(host.memory).ok_or(RunError::NoMemory)?;
    let map = partition.top().ok_or(RunError::NoMemory)?;
    partition.properties.start();
    let tsc_offset = partition.tsc_offset(local);
    let mut turn = Turn {
        host,
        partition,
        vcpu,
        local,
        page,
        map,
        tsc_offset,
        with_state: false,
        tag: 0,
    };
    let begun = turn.take_reply()?.or_else(|| turn.prepare());
    let end = begun.unwrap_or_else(|| turn.inside(cpu));
    turn.report();
    vcpu.counters.run();
    Ok(u64::from(end.raw()) | u64::from(turn.tag) << 16)
}

impl Turn<'_> {
    /// The part of the turn with the guest's state in the CPU.
    fn inside(&mut self, cpu: &mut Cpu) -> RunExit {
        let begin = arch::tsc();
        let speculation = self.host.cpu.speculation;
        cpu.enter_partition(self.partition.serial(), speculation);
        let state = TurnState {
            map: self.map,
            flush: self.partition.flush(),
            tsc_offset: self.tsc_offset,
        };
        self.local.hw.load(cpu, &state);
        let trace = Trace::new(cpu.index(), self.partition.id().0, self.vcpu.index());
        let end = loop {
            let exit = self.local.hw.enter();
            trace.exit(self.local.hw.raw_exit());
            let cr8 = self.local.hw.read(Register::Cr8) as u8;
            let is_same = cr8 == self.local.lapic.cr8();
            self.local.lapic.set_cr8(cr8);
            match self.answer(exit) {
                // What was decided at the last entry holds.
                Answer::Skipped if is_same && !self.has_news() => continue,
                Answer::Skipped | Answer::Changed => {}
                Answer::End(end) => {
                    // A guest whose CR4.MCE is 0 shuts down at a machine check.
                    let is_shutdown = matches!(exit, Exit::Shutdown) && arch::in_machine_check();
                    if is_shutdown || matches!(exit, Exit::MachineCheck) {
                        cpu.note_machine_check();
                    }
                    break end;
                }
            }
            if let Some(end) = self.prepare() {
                break end;
            }
        };
        self.local.hw.unload(cpu);
        cpu.leave_partition(speculation);
        self.vcpu.counters.inside(arch::tsc().wrapping_sub(begin));
        end
    }

    /// Returns the guest's time-stamp counter.
    pub(super) fn now(&self) -> u64 {
        arch::tsc().wrapping_add(self.tsc_offset)
    }

    /// Returns whether something has arrived that [`Self::prepare`] takes over. The timer is not looked at: root's timer
    /// ends the turn at the deadline.
    fn has_news(&self) -> bool {
        self.vcpu.has_signals() || self.page.posted.is_outstanding() || self.local.ring.is_behind()
    }

    /// Takes over what arrived, and decides what is injected. Returns the turn's end if the guest does not go on.
    fn prepare(&mut self) -> Option<RunExit> {
        if let Some(signals) = self.vcpu.take_signals() {
            if signals.init {
                if self.vcpu.index() == 0 {
                    return Some(self.intercept(InterceptKind::Reset, Intercept::default()));
                }
                self.local.init(self.vcpu);
            }
            if let Some(vector) = signals.startup
                && self.local.run_state == RunState::WaitForSipi
            {
                self.local.hw.start_at(vector);
                self.local.run_state = RunState::Runnable;
            }
        }
        if let Some(posted) = self.page.posted.take() {
            self.local.lapic.merge(&posted);
        }
        if self.local.lapic.deadline().is_some() {
            let now = self.now();
            self.local.lapic.expire(now);
        }
        if self.local.ring.flush(self.page) == Push::PostedWake {
            return Some(self.notify(EOI_TAG));
        }
        match self.local.run_state {
            RunState::Runnable => {}
            RunState::WaitForSipi => return Some(RunExit::WaitForSipi),
            RunState::Halted if self.wakes() => self.local.run_state = RunState::Runnable,
            // The end of an interrupt that nobody knows of is not slept on.
            RunState::Halted if self.local.ring.is_behind() => {
                return Some(self.notify(EOI_TAG));
            }
            RunState::Halted => return Some(RunExit::Halted),
        }
        self.inject();
        self.has_earlier_deadline().then_some(RunExit::Timer)
    }

    /// Returns whether the timer's deadline comes before the one that root knows. Root's timer ends the turn at that one,
    /// so root need not know a later one.
    pub(super) fn has_earlier_deadline(&self) -> bool {
        let (deadline, known) = (self.deadline(), self.local.deadline);
        deadline != 0 && (known == 0 || deadline < known)
    }

    /// Returns whether an interrupt or NMI ends HLT.
    fn wakes(&self) -> bool {
        let lapic = &self.local.lapic;
        let nmi = lapic.has_nmi() && !self.local.nmi_masked;
        nmi || (self.local.hw.takes_interrupts() && lapic.next_interrupt().is_some())
    }

    fn inject(&mut self) {
        let tpr_window = self.host.cpu.tpr_window;
        let Local {
            hw,
            lapic,
            nmi_masked,
            nmi_return,
            ..
        } = &mut *self.local;
        let cr8 = u64::from(lapic.cr8());
        if hw.read(Register::Cr8) != cr8 {
            hw.write(Register::Cr8, cr8);
        }
        let mut nmi_waits = false;
        if *nmi_masked {
            lapic.nmi_is_in_service();
        } else if lapic.has_nmi() {
            if !hw.takes_nmis() {
                // An interrupt shadow ends with a window. So does an exception's delivery, or else its handler has an IRET.
                nmi_waits = true;
                hw.watch_return(true);
            } else if *nmi_return == Some(hw.read(Register::Rip)) {
                hw.set_window(Window::Closed);
                return hw.step_over_return();
            } else {
                lapic.accept_nmi();
                *nmi_masked = true;
                *nmi_return = None;
                hw.watch_return(true);
                hw.inject(Event::Nmi);
            }
        }
        match lapic.next_interrupt() {
            Some(vector) if hw.takes_interrupts() => {
                lapic.accept(vector);
                hw.inject(Event::Interrupt(vector));
            }
            Some(_) => hw.set_window(Window::Any),
            None if nmi_waits => hw.set_window(Window::Any),
            None => match lapic.highest_request() {
                // The task priority holds it up: CR8 changes without an exit.
                Some(vector) if vector >> 4 <= lapic.cr8() && tpr_window => {
                    hw.set_window(Window::Class(vector >> 4));
                }
                _ => hw.set_window(Window::Closed),
            },
        }
    }

    /// Returns root's TSC at the timer's deadline, 0 for none.
    fn deadline(&self) -> u64 {
        let deadline = self.local.lapic.deadline();
        deadline.map_or(0, |at| roots_time(at, self.tsc_offset, arch::tsc()))
    }

    /// Fills the page's `intercept` in.
    pub(super) fn intercept(&mut self, kind: InterceptKind, intercept: Intercept) -> RunExit {
        self.with_state = intercept.flags & InterceptFlags::STATE.bits() != 0;
        self.page.intercept.store(&Intercept {
            kind: kind.raw(),
            rip: self.local.hw.read(Register::Rip),
            ..intercept
        });
        RunExit::Intercept
    }

    /// Ends the turn, because the consumer of this doorbell sleeps.
    pub(super) fn notify(&mut self, tag: u16) -> RunExit {
        self.tag = tag;
        RunExit::Notify
    }

    /// Ends the turn, because these virtual CPUs have something to do.
    pub(super) fn kick(&self, set: u64) -> RunExit {
        self.set_word(offset_of!(Intercept, kick_set), set);
        RunExit::Kick
    }

    /// Writes one word of the page's `intercept`.
    fn set_word(&self, offset: usize, value: u64) {
        if let Some(word) = self.page.intercept.word(offset / 8) {
            word.store(value, Ordering::Relaxed);
        }
    }

    /// Tells root the fields that are valid after every turn.
    fn report(&mut self) {
        let deadline = self.deadline();
        self.set_word(offset_of!(Intercept, deadline), deadline);
        if self.with_state {
            self.page
                .state
                .store_first(&self.local.hw.execution_state());
        }
        self.local.deadline = deadline;
    }

    /// Completes the instruction of the last turn's intercept by root's reply. Returns the turn's end if the guest does
    /// not go on.
    fn take_reply(&mut self) -> Result<Option<RunExit>, RunError> {
        // Kind, flags, size, direction: nothing is outstanding.
        self.set_word(offset_of!(Intercept, kind), 0);
        self.set_word(offset_of!(Intercept, kick_set), 0);
        if self.local.pending == Pending::None {
            return Ok(None);
        }
        let mut reply = self.page.reply.load();
        let pending = self.local.pending;
        let flags = ReplyFlags::from_bits(reply.flags).ok_or(RunError::BadReply)?;
        let exception = u8::try_from(reply.exception)
            .ok()
            .filter(|n| *n < 32 && *n != 2);
        if flags.contains(ReplyFlags::EXCEPTION) && exception.is_none() {
            return Err(RunError::BadReply);
        }
        let register = match (pending, flags.contains(ReplyFlags::APIC)) {
            (_, false) => None,
            (Pending::Apic(register), true) => {
                let value = u32::try_from(reply.data).map_err(|_| RunError::BadReply)?;
                Some((register, value))
            }
            _ => return Err(RunError::BadReply),
        };
        reply.flags = 0;
        self.page.reply.store(&reply);
        self.local.pending = Pending::None;
        if matches!(pending, Pending::Memory | Pending::Apic(_)) {
            self.vcpu.counters.exit(if flags.is_empty() {
                ExitKind::NestedFault
            } else {
                ExitKind::Memory
            });
        }
        let hw = &mut self.local.hw;
        if flags.contains(ReplyFlags::REGISTERS) {
            hw.set_registers(&self.page.state.load_first());
        }
        if flags.contains(ReplyFlags::VECTORS) {
            hw.set_vectors(&self.page.vectors.load());
        }
        if flags.contains(ReplyFlags::EXCEPTION) {
            const PAGE_FAULT: u8 = 14;
            let vector = exception.unwrap_or_default();
            if vector == PAGE_FAULT {
                hw.write(Register::Cr2, reply.fault_address);
            }
            hw.inject(Event::exception(vector, reply.error_code as u32));
        } else if flags == ReplyFlags::DATA {
            match pending {
                Pending::PortRead(size) => {
                    let old = hw.read(Register::Rax);
                    hw.write(Register::Rax, port_value(old, reply.data, size));
                }
                Pending::MsrRead => self.local.set_edx_eax(reply.data),
                Pending::MsrWrite => {}
                Pending::None | Pending::String | Pending::Memory | Pending::Apic(_) => {
                    return Ok(None);
                }
            }
            self.local.hw.skip();
        }
        // Otherwise the guest repeats its instruction.
        let Some((register, value)) = register else {
            return Ok(None);
        };
        let now = self.now();
        let effect = self.local.lapic.write_register(register, value, now);
        match self.effect(effect) {
            Answer::End(end) => Ok(Some(end)),
            Answer::Skipped | Answer::Changed => Ok(None),
        }
    }
}

/// Returns root's TSC at the time when the guest's, which is ahead by `offset`, is `at`; `now` is root's. A time that
/// root's counter never reaches becomes the counter's last value. 0, which would mean no deadline, becomes 1.
fn roots_time(at: u64, offset: u64, now: u64) -> u64 {
    match at.checked_sub(now.wrapping_add(offset)) {
        Some(left) => now.saturating_add(left),
        None => at.wrapping_sub(offset).min(now),
    }
    .max(1)
}

/// Returns RAX after an IN of `size` bytes. As for any operand, 4 bytes clear the upper half.
pub fn port_value(old: u64, data: u64, size: u8) -> u64 {
    match size {
        1 => old & !0xff | data & 0xff,
        2 => old & !0xffff | data & 0xffff,
        _ => data & 0xffff_ffff,
    }
}

#[cfg(test)]
mod tests {
    use super::roots_time;

    #[test]
    fn a_guests_time_is_roots_less_the_offset() {
        const BOOT: u64 = 5_000_000;
        let offset = 0_u64.wrapping_sub(BOOT);
        for (at, expected) in [(700, BOOT + 700), (2_000, BOOT + 2_000)] {
            assert_eq!(roots_time(at, offset, BOOT + 1_000), expected);
        }
        assert_eq!(
            roots_time(9_000, 4_000, 1_000),
            5_000,
            "a guest that is ahead"
        );
    }

    #[test]
    fn the_end_of_time_is_never_in_the_past() {
        let offset = 0_u64.wrapping_sub(5_000_000);
        assert_eq!(roots_time(u64::MAX, offset, 5_001_000), u64::MAX);
        assert_eq!(roots_time(u64::MAX - 1, offset, 5_001_000), u64::MAX);
        assert_eq!(roots_time(0, 0, 0), 1);
        // Before root's counter began.
        assert!(roots_time(10, 4_000, 1_000) <= 1_000);
    }
}
