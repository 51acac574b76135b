//! Exit counters of one CPU, virtual or physical. They have one writer, and any number of readers.

use core::sync::atomic::{AtomicU64, Ordering};

use guest_proto::hypercall::{Counters, EXIT_KINDS, ExitKind};

use crate::arch::exit::Exit;

/// Returns the kind that an exit is counted as. Two kinds are found out later: a port access may be posted, and a nested
/// fault may be an access that the worker answers.
#[inline]
pub const fn kind(exit: Exit) -> ExitKind {
    match exit {
        Exit::Interrupt => ExitKind::Interrupt,
        Exit::Nmi => ExitKind::Nmi,
        Exit::Init => ExitKind::Init,
        Exit::InterruptWindow | Exit::Return | Exit::Returned => ExitKind::InterruptWindow,
        Exit::Cpuid => ExitKind::Cpuid,
        Exit::Halt => ExitKind::Halt,
        Exit::Msr { is_write: true } => ExitKind::MsrWrite,
        Exit::Msr { is_write: false } => ExitKind::MsrRead,
        Exit::Port(_) => ExitKind::Port,
        Exit::Hypercall => ExitKind::Hypercall,
        Exit::NestedFault => ExitKind::NestedFault,
        Exit::Xsetbv => ExitKind::Xsetbv,
        Exit::DebugRegister => ExitKind::DebugRegister,
        Exit::Exception(_) | Exit::MachineCheck => ExitKind::Exception,
        Exit::Forbidden | Exit::PerformanceCounter => ExitKind::Forbidden,
        Exit::Shutdown => ExitKind::Shutdown,
        Exit::CacheFlush | Exit::Refused | Exit::Other(_) => ExitKind::Other,
    }
}

/// Counters since creation.
#[derive(Debug)]
pub struct ExitCounters {
    exits: [AtomicU64; EXIT_KINDS],
    guest_tsc: AtomicU64,
    runs: AtomicU64,
}

impl ExitCounters {
    /// Makes counters that are all zero.
    pub const fn new() -> Self {
        Self {
            exits: [const { AtomicU64::new(0) }; EXIT_KINDS],
            guest_tsc: AtomicU64::new(0),
            runs: AtomicU64::new(0),
        }
    }

    /// Counts an exit. Only the CPU itself, whose counters these are, calls this.
    pub fn exit(&self, kind: ExitKind) {
        if let Some(counter) = self.exits.get(kind.raw() as usize) {
            add(counter, 1);
        }
    }

    /// Counts ticks inside the guest.
    pub fn inside(&self, ticks: u64) {
        add(&self.guest_tsc, ticks);
    }

    /// Counts a `vcpu_run`, or a hypercall of root's.
    pub fn run(&self) {
        add(&self.runs, 1);
    }

    /// Returns a copy, taken at `now_tsc`.
    pub fn read(&self, now_tsc: u64) -> Counters {
        let mut copy = Counters {
            guest_tsc: self.guest_tsc.load(Ordering::Relaxed),
            runs: self.runs.load(Ordering::Relaxed),
            now_tsc,
            ..Counters::default()
        };
        for (to, from) in copy.exits.iter_mut().zip(&self.exits) {
            *to = from.load(Ordering::Relaxed);
        }
        copy
    }
}

/// Adds `n`. There is one writer, so this needs no locked instruction.
fn add(counter: &AtomicU64, n: u64) {
    let now = counter.load(Ordering::Relaxed);
    counter.store(now.wrapping_add(n), Ordering::Relaxed);
}
