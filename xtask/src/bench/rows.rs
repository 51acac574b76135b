//! The rows of the table.

/// One operation.
pub(super) struct Row {
    /// The name that the bench kernel gives it.
    pub(super) id: &'static str,
    /// What the table calls it.
    pub(super) title: &'static str,
    /// The most that it may cost in a guest of the microvisor, as a share of its cost in a guest of KVM.
    pub(super) target: Option<f64>,
    /// Whether a bare machine has it.
    pub(super) is_bare: bool,
    /// What measures it.
    pub(super) part: Part,
}

/// What measures a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// The bench kernel. Guests of the microvisor are compared with those of KVM.
    Kernel,
    /// Whole guests, compared in the same way.
    Guests,
    /// Whole guests, by a plugin of QEMU's that counts instructions.
    Counted,
    /// Linux as VM 0 of the microvisor, compared with Linux on a bare machine.
    Root,
}

const fn row(id: &'static str, title: &'static str, target: Option<f64>) -> Row {
    Row {
        id,
        title,
        target,
        is_bare: true,
        part: Part::Kernel,
    }
}

/// A row of guests alone: on a bare machine there is nobody to call, QEMU's own local APIC has no TSC deadline, and devices
/// and other CPUs do not take this CPU's instructions.
const fn guests_row(id: &'static str, title: &'static str, target: Option<f64>) -> Row {
    Row {
        is_bare: false,
        ..row(id, title, target)
    }
}

/// A row of whole guests.
const fn whole(id: &'static str, title: &'static str, target: Option<f64>) -> Row {
    Row {
        part: Part::Guests,
        ..guests_row(id, title, target)
    }
}

/// A row of whole guests that QEMU's plugin counts.
const fn counted(id: &'static str, title: &'static str, target: Option<f64>) -> Row {
    Row {
        part: Part::Counted,
        ..guests_row(id, title, target)
    }
}

/// A row of VM 0.
const fn root(id: &'static str, title: &'static str, target: Option<f64>) -> Row {
    Row {
        part: Part::Root,
        ..row(id, title, target)
    }
}

/// An exit that the microvisor answers.
const ANSWERED: Option<f64> = Some(0.08);
/// A write that is posted to a consumer that is awake.
const POSTED: Option<f64> = Some(0.07);
/// An access to a port that the worker answers.
const PORT: Option<f64> = Some(0.35);
/// An access to memory that the worker answers.
const MEMORY: Option<f64> = Some(0.8);
/// An interrupt from the worker to its handler, with the accesses that cause and end it.
const INTERRUPT: Option<f64> = Some(0.5);
/// A doorbell, from the guest's instruction to its consumer.
const DOORBELL: Option<f64> = Some(0.6);
/// A request to a virtio device, with the doorbell and the interrupt.
const DEVICE: Option<f64> = Some(0.7);
/// A Linux guest, from its start.
const BOOT: Option<f64> = Some(0.9);
/// From the command to a guest's first instruction.
const FIRST: Option<f64> = Some(0.08);
/// A guest that sleeps.
const IDLE: Option<f64> = Some(0.4);
/// Linux as VM 0, from the machine's start.
const ROOT_BOOT: Option<f64> = Some(1.02);
/// First use of memory.
const TOUCH: Option<f64> = Some(1.0);
/// What no hypervisor has a part in, but for the interrupts of its own timer.
const NATIVE: Option<f64> = Some(1.005);

/// All rows, in the table's order.
pub(super) const ROWS: &[Row] = &[
    row("cpuid", "CPUID", ANSWERED),
    guests_row("hypercall", "empty hypercall", ANSWERED),
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
    guests_row("tsc-deadline", "TSC deadline programmed", ANSWERED),
    row("serial-byte", "serial port: a byte (posted)", POSTED),
    row("port-read", "serial port: scratch register read", PORT),
    row("port-write", "serial port: scratch register written", PORT),
    row(
        "serial-interrupt",
        "serial port: interrupt, with its three accesses",
        INTERRUPT,
    ),
    row("xapic-read", "xAPIC: read of the ID", MEMORY),
    row("xapic-timer", "xAPIC: timer programmed", MEMORY),
    row("xapic-self-ipi", "xAPIC: self-IPI, handler and EOI", MEMORY),
    row(
        "xapic-timer-fires",
        "xAPIC: timer armed, HLT, fires: beyond its time",
        None,
    ),
    row("ioapic-read", "I/O APIC: read of a register", MEMORY),
    guests_row("virtio-config", "virtio: read of the configuration", MEMORY),
    guests_row("doorbell", "virtio: doorbell, and nothing to do", DOORBELL),
    guests_row(
        "ipi-halted",
        "IPI to a halted CPU, until it halts again",
        None,
    ),
    guests_row(
        "ipi-running",
        "IPI to a CPU that is ready to run: sent",
        None,
    ),
    guests_row("disk-id", "virtio-blk: request that reads no disk", DEVICE),
    guests_row("disk-read-1", "virtio-blk: read of 4 KiB", DEVICE),
    guests_row("disk-write-1", "virtio-blk: write of 4 KiB", DEVICE),
    guests_row(
        "disk-read-32",
        "virtio-blk: read of 4 KiB, 32 at once",
        DEVICE,
    ),
    guests_row(
        "disk-write-32",
        "virtio-blk: write of 4 KiB, 32 at once",
        DEVICE,
    ),
    guests_row("net-request", "virtio-net: request and answer", DEVICE),
    guests_row("net-send", "virtio-net: frame sent, 32 at once", DEVICE),
    row("touch-4k", "first touch of all memory, for 4 KiB", TOUCH),
    row("touch-2m", "first touch of one byte in 2 MiB", TOUCH),
    row("random-read", "random read of memory", NATIVE),
    row("copy-1k", "copy of 1 KiB", NATIVE),
    whole("life", "VM created, started, ended and deleted", None),
    counted(
        "first-instruction",
        "start to the guest's first instruction",
        FIRST,
    ),
    counted("idle", "Linux guest that sleeps: a second", IDLE),
    whole("linux-boot", "Linux guest: start to init and its end", BOOT),
    whole("linux-boots-8", "the same for each of 8 at once", BOOT),
    whole("compress", "Linux guest: compression", NATIVE),
    whole("compile", "Linux guest: compilation", NATIVE),
    whole("memory-own-1", "bytes of a VM's process", None),
    whole("memory-own-10", "bytes of each of 10 VMs' processes", None),
    whole(
        "memory-own-100",
        "bytes of each of 100 VMs' processes",
        None,
    ),
    whole("memory-all-10", "bytes of each of 10 VMs", None),
    whole("memory-all-100", "bytes of each of 100 VMs", None),
    root("root-boot-1g", "VM 0: power-on to init, 1 GiB", ROOT_BOOT),
    root("root-boot-4g", "VM 0: power-on to init, 4 GiB", ROOT_BOOT),
    root("root-boot-16g", "VM 0: power-on to init, 16 GiB", ROOT_BOOT),
    root("root-compress", "VM 0: compression", NATIVE),
    root("root-compile", "VM 0: compilation", NATIVE),
];
