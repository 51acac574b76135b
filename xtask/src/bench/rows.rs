//! The rows of the table.

/// One operation.
pub(super) struct Row {
    /// The name that the bench kernel gives it.
    pub(super) id: &'static str,
    /// What the table calls it.
    pub(super) title: &'static str,
    /// The most that it may cost in a guest of the microvisor, as a share of its cost in a guest of KVM.
    pub(super) target: Option<f64>,
}

const fn row(id: &'static str, title: &'static str, target: Option<f64>) -> Row {
    Row { id, title, target }
}

/// An exit that the microvisor answers.
const ANSWERED: Option<f64> = Some(0.08);
/// A write that is posted to a consumer that is awake.
const POSTED: Option<f64> = Some(0.07);
/// An access to a port that the worker answers.
const PORT: Option<f64> = Some(0.35);
/// An access to memory that the worker answers.
const MEMORY: Option<f64> = Some(0.8);
/// First use of memory.
const TOUCH: Option<f64> = Some(1.0);
/// What no hypervisor has a part in, but for the interrupts of its own timer.
const NATIVE: Option<f64> = Some(1.005);

/// Rows that a bare machine does not have: there is nobody to call, and QEMU's own local APIC has no TSC deadline.
pub(super) const NOT_BARE: [&str; 2] = ["hypercall", "tsc-deadline"];

/// All rows, in the table's order.
pub(super) const ROWS: &[Row] = &[
    row("cpuid", "CPUID", ANSWERED),
    row("hypercall", "empty hypercall", ANSWERED),
    row("cr3-write", "write of CR3", NATIVE),
    row("x2apic-read", "x2APIC: read of the ID", ANSWERED),
    row("x2apic-timer", "x2APIC: timer programmed", ANSWERED),
    row(
        "x2apic-self-ipi",
        "x2APIC: self-IPI, handler and EOI",
        ANSWERED,
    ),
    row(
        "x2apic-timer-fires",
        "x2APIC: timer armed, HLT, fires: beyond its time",
        None,
    ),
    row("tsc-deadline", "TSC deadline programmed", ANSWERED),
    row("serial-byte", "serial port: a byte (posted)", POSTED),
    row("port-read", "serial port: scratch register read", PORT),
    row("port-write", "serial port: scratch register written", PORT),
    row("xapic-read", "xAPIC: read of the ID", MEMORY),
    row("xapic-timer", "xAPIC: timer programmed", MEMORY),
    row("xapic-self-ipi", "xAPIC: self-IPI, handler and EOI", MEMORY),
    row(
        "xapic-timer-fires",
        "xAPIC: timer armed, HLT, fires: beyond its time",
        None,
    ),
    row("ioapic-read", "I/O APIC: read of a register", MEMORY),
    row("touch-4k", "first touch of all memory, for 4 KiB", TOUCH),
    row("touch-2m", "first touch of one byte in 2 MiB", TOUCH),
    row("random-read", "random read of memory", NATIVE),
    row("copy-1k", "copy of 1 KiB", NATIVE),
];
