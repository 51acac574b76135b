//! A guest's turns: run, answered, and what ended them.

use guest_proto::hypercall::Hypercall;
use guest_proto::vcpu_page::{Intercept, InterceptKind, Reply, ReplyFlags, RunExit, VcpuState};

use super::{Guest, layout};
use crate::report::{Outcome, equal, fail};
use crate::{apic, cpu, hv};

/// Root's timer ends a turn after so many ticks: some 50 ms.
const TURN: u64 = 50_000_000;
/// Turns without anything but interrupts, after which a guest hangs.
const TIMEOUT: u32 = 400;

/// Why a turn ended, interrupts of root's aside.
#[derive(Clone, Copy, Debug)]
pub enum Exit {
    /// The guest needs an answer.
    Intercept(InterceptKind, Intercept),
    /// A posted write of this doorbell woke the consumer.
    Notify(u16),
    /// It halted; root's TSC at the next timer interrupt, or 0.
    Halted(u64),
    /// It set an earlier timer, at this TSC of root's.
    Timer(u64),
    /// These virtual CPUs have something to do.
    Kick(u64),
    /// It waits for a SIPI.
    WaitForSipi,
    /// A physical interrupt is pending ([`Guest::turn`] alone answers it).
    Interrupt,
}

/// A halt, and what came before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Halt {
    /// Root's TSC at the next timer interrupt, 0 for none.
    pub deadline: u64,
    /// Virtual CPUs that were to be kicked on the way.
    pub kicked: u64,
}

impl Guest {
    /// Answers a read.
    pub fn reply(&self, vcpu: usize, data: u64) {
        self.shared(vcpu).reply.store(&Reply {
            flags: ReplyFlags::DATA.bits(),
            data,
            ..Reply::default()
        });
    }

    /// Answers with general registers and RIP changed by `change`, as a worker that emulates.
    pub fn emulate(&self, vcpu: usize, change: impl FnOnce(&mut VcpuState)) {
        let page = self.shared(vcpu);
        let mut state = page.state.load();
        change(&mut state);
        page.state.store(&state);
        page.reply.store(&Reply {
            flags: ReplyFlags::REGISTERS.bits(),
            ..Reply::default()
        });
    }

    /// One `vcpu_run`. Root's timer ends it in any case.
    #[track_caller]
    pub fn turn(&self, vcpu: usize) -> Outcome<Exit> {
        apic::arm_timer(TURN);
        let value = hv::call(Hypercall::VcpuRun, [self.id, vcpu as u64]).ok();
        apic::stop_timer();
        self.exit(vcpu, value?)
    }

    /// What a value of `vcpu_run` means.
    #[track_caller]
    pub fn exit(&self, vcpu: usize, value: u64) -> Outcome<Exit> {
        let Some(exit) = RunExit::from_raw(value as u8) else {
            return fail(format_args!("vcpu_run has value {value:#x}"));
        };
        let tag = (value >> 16) as u16;
        let rest = if exit == RunExit::Notify {
            value & !0xffff_00ff
        } else {
            value & !0xff
        };
        equal("reserved bits of vcpu_run's value", rest, 0)?;
        let intercept = self.shared(vcpu).intercept.load();
        Ok(match exit {
            RunExit::Interrupt => Exit::Interrupt,
            RunExit::Intercept => {
                let Some(kind) = InterceptKind::from_raw(intercept.kind) else {
                    return fail(format_args!("intercept of kind {}", intercept.kind));
                };
                Exit::Intercept(kind, intercept)
            }
            RunExit::Notify => Exit::Notify(tag),
            RunExit::Halted => Exit::Halted(intercept.deadline),
            RunExit::Timer => Exit::Timer(intercept.deadline),
            RunExit::Kick => Exit::Kick(intercept.kick_set),
            RunExit::WaitForSipi => Exit::WaitForSipi,
        })
    }

    /// Runs virtual CPU `vcpu` until something other than an interrupt of root's ends its turn.
    #[track_caller]
    pub fn run(&self, vcpu: usize) -> Outcome<Exit> {
        for _ in 0..TIMEOUT {
            match self.turn(vcpu)? {
                Exit::Interrupt => cpu::take_interrupts(),
                exit => return Ok(exit),
            }
        }
        let state = self.state(vcpu)?;
        fail(format_args!(
            "the guest hangs at {:#x}, flags {:#x}, stack {:#x}, DR6 {:#x}, DR7 {:#x}; {}",
            state.rip,
            state.rflags,
            state.gpr[4],
            state.dr6,
            state.dr7,
            layout::Exceptions(self)
        ))
    }

    /// Runs it to an intercept of this kind.
    #[track_caller]
    pub fn intercept(&self, vcpu: usize, kind: InterceptKind) -> Outcome<Intercept> {
        match self.run(vcpu)? {
            Exit::Intercept(got, intercept) if got == kind => Ok(intercept),
            other => self.not(other, "the expected intercept"),
        }
    }

    /// Runs it to a port access.
    #[track_caller]
    pub fn port(&self) -> Outcome<Intercept> {
        self.intercept(0, InterceptKind::Port)
    }

    /// Runs it until it halts with no timer set.
    #[track_caller]
    pub fn halt(&self, vcpu: usize) -> Outcome {
        match self.run(vcpu)? {
            Exit::Halted(0) => Ok(()),
            other => self.not(other, "a halt without deadline"),
        }
    }

    /// Fails: `exit` came in the place of `expected`. Tells of an exception in the guest.
    #[track_caller]
    pub fn not<T>(&self, exit: Exit, expected: &str) -> Outcome<T> {
        if let Exit::Intercept(kind, i) = exit {
            return fail(format_args!(
                "{kind:?} at rip {:#x}, address {:#x}, code {:#x}, not {expected}; {}",
                i.rip,
                i.address,
                i.error_code,
                layout::Exceptions(self)
            ));
        }
        fail(format_args!(
            "{exit:x?}, not {expected}; {}",
            layout::Exceptions(self)
        ))
    }

    /// Runs virtual CPU `vcpu` past what the driver answers by itself, kicks and timers, and
    /// answers whom it kicked.
    #[track_caller]
    pub fn run_on(&self, vcpu: usize) -> Outcome<(Exit, u64)> {
        let mut kicked = 0;
        for _ in 0..TIMEOUT {
            match self.run(vcpu)? {
                Exit::Kick(set) => kicked |= set,
                Exit::Timer(_) => {}
                exit => return Ok((exit, kicked)),
            }
        }
        fail(format_args!("it is kicked and timed without an end"))
    }

    /// Runs virtual CPU `vcpu` to its halt.
    #[track_caller]
    pub fn run_to_halt(&self, vcpu: usize) -> Outcome<Halt> {
        match self.run_on(vcpu)? {
            (Exit::Halted(deadline), kicked) => Ok(Halt { deadline, kicked }),
            (other, _) => self.not(other, "a halt"),
        }
    }
}
