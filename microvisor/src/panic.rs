//! The end of the microvisor: what it says, and what becomes of the CPUs.
//!
//! The CPU that panics reports on COM1 and in the log, and halts. Every other CPU runs VM 0 on
//! until its next exit and halts there: what a broken microvisor would answer is worth nothing, and
//! it sends no interrupt that would stop them at once.

use core::fmt::Display;
use core::sync::atomic::{AtomicBool, Ordering};

use crate::arch::{self, stack};
use crate::{console, trace};

static HAPPENED: AtomicBool = AtomicBool::new(false);

/// Whether a CPU has panicked; the asking one then halts.
#[inline]
pub fn happened() -> bool {
    HAPPENED.load(Ordering::Relaxed)
}

/// Reports and stops this CPU. The first report is the only one: that of a CPU that panics after
/// it, or inside it, would be of its consequences.
pub fn stop(cause: &dyn Display) -> ! {
    if HAPPENED.swap(true, Ordering::AcqRel) {
        arch::halt();
    }
    let cpu = stack::cpu().unwrap_or(0);
    console::last_words(format_args!("\nmicrovisor: panic: on CPU {cpu}: {cause}\n"));
    console::last_words(format_args!("  backtrace"));
    for caller in stack::backtrace() {
        console::last_words(format_args!(" {caller:#x}"));
    }
    console::last_words(format_args!("\n"));
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
