//! The end of the microvisor: its report, and the end of its CPUs.
//!
//! The CPU that panics reports on COM1 and in the log, and halts. Every other CPU runs VM 0 until its next exit and
//! halts there: a broken microvisor could not answer the exit rightly, and it sends no interrupt that would stop the
//! CPU at once.

use core::fmt::{Display, Formatter};
use core::sync::atomic::{AtomicBool, Ordering};

use crate::arch::{self, stack};
use crate::{console, trace};

static HAPPENED: AtomicBool = AtomicBool::new(false);

/// The callers of this function, as their addresses.
struct Backtrace;

impl Display for Backtrace {
    fn fmt(&self, f: &mut Formatter<'_>) -> core::fmt::Result {
        stack::backtrace().try_for_each(|caller| write!(f, " {caller:#x}"))
    }
}

/// Returns whether a CPU has panicked. The caller then halts.
#[inline]
pub fn happened() -> bool {
    HAPPENED.load(Ordering::Relaxed)
}

/// Reports and stops this CPU. Only the first panic is reported: a later one, or one inside of the report, would be a
/// consequence of the first.
pub fn stop(cause: &dyn Display) -> ! {
    if HAPPENED.swap(true, Ordering::AcqRel) {
        arch::halt();
    }
    let cpu = stack::cpu().unwrap_or(0);
    console::end_line();
    console::last_words(format_args!("microvisor: panic: on CPU {cpu}: {cause}\n"));
    console::last_words(format_args!("  backtrace{Backtrace}\n"));
    for exit in trace::last(cpu) {
        console::last_words(format_args!(
            "  exit {:#x} ({:#x}, {:#x}) of VM {} CPU {} at rip {:#x}\n",
            exit.raw.code,
            exit.raw.info.0,
            exit.raw.info.1,
            exit.partition,
            exit.vcpu,
            exit.raw.rip
        ));
    }
    console::last_words(format_args!("microvisor: stopped\n"));
    arch::halt()
}
