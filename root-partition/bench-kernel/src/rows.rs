//! The operations that are measured.

mod devices;

use test_kernel::console::COM1;
use x86_64::instructions::interrupts;

use crate::apic::{self, Apic, MASKED, register};
use crate::measure::{Bench, ticks};
use crate::{cpu, second, trap};

/// A register of COM1 that keeps what is written to it, without any effect.
const SCRATCH: u16 = COM1 + 7;
/// How often most operations are repeated.
const OFTEN: u64 = 1000;
const PAGE: u64 = 4096;
const LARGE_PAGE: u64 = 2 << 20;
/// Memory that nothing has touched, in which each 4 KiB are touched.
const SMALL_TOUCHES: u64 = 64 << 20;
/// Memory that nothing has touched, in which only one byte of each 2 MiB is touched.
const LARGE_TOUCHES: u64 = 256 << 20;
/// Touches of a sample.
const TOUCHES: u64 = 8;
/// Ticks until the timer's interrupt: longer than any hypervisor takes to arm it.
const TIMER_TICKS: u32 = 200_000;
/// Ticks until the programs that started this guest have done their work: a second.
const SETTLING_TICKS: u32 = 1_000_000_000;

/// Measures each row of a machine with one CPU and a serial port; or with the option `devices` those of virtio devices and
/// of a second CPU, which the machine must have then.
pub fn run(bench: &mut Bench) {
    let xapic = Apic::xapic();
    xapic.enable();
    wait_for_timer(xapic, SETTLING_TICKS);
    if bench.has_option("devices") {
        if let Some(x2apic) = Apic::x2apic() {
            x2apic.enable();
            devices::run(bench);
            second_cpu(bench, x2apic);
        }
        return;
    }
    instructions(bench);
    ports(bench);
    apic(bench, xapic, &XAPIC);
    bench.row("ioapic-read", OFTEN, |times| {
        repeat(times, || drop_value(cpu::read::<u32>(0xfec0_0010)));
    });
    if let Some(x2apic) = Apic::x2apic() {
        apic(bench, x2apic, &X2APIC);
        deadline(bench, x2apic);
        serial_interrupt(bench);
    }
    memory(bench);
    // The last one: those who take the output work for a while.
    bench.row("serial-byte", 200, |times| {
        repeat(times, || cpu::write_port(COM1, b'.'));
        cpu::write_port(COM1, b'\n');
    });
}

fn repeat(times: u64, mut operation: impl FnMut()) {
    for _ in 0..times {
        operation();
    }
}

/// Takes a value that was read only for the time that it takes.
fn drop_value(value: impl Copy) {
    let _ = core::hint::black_box(value);
}

fn instructions(bench: &mut Bench) {
    bench.row("cpuid", OFTEN, |times| {
        repeat(times, || drop_value(cpu::cpuid(0, 0).eax));
    });
    if is_guest() {
        bench.row("hypercall", OFTEN, |times| repeat(times, cpu::hypercall));
    }
    bench.row("cr3-write", OFTEN, |times| {
        repeat(times, cpu::reload_page_tables);
    });
}

/// Whether a hypervisor with `vmmcall` runs this: QEMU's TCG calls itself one, and has none.
fn is_guest() -> bool {
    const SIGNATURES: u32 = 0x4000_0000;
    const HYPERVISOR: u32 = 1 << 31;
    const TCG: u32 = u32::from_le_bytes(*b"TCGT");
    cpu::cpuid(1, 0).ecx & HYPERVISOR != 0 && cpu::cpuid(SIGNATURES, 0).ebx != TCG
}

fn ports(bench: &mut Bench) {
    bench.row("port-read", OFTEN, |times| {
        repeat(times, || drop_value(cpu::read_port(SCRATCH)));
    });
    bench.row("port-write", OFTEN, |times| {
        repeat(times, || cpu::write_port(SCRATCH, 0x5a));
    });
}

/// Names of the rows of one way to the local APIC.
struct Names {
    read: &'static str,
    timer: &'static str,
    interrupt: &'static str,
    fire: &'static str,
}

const XAPIC: Names = Names {
    read: "xapic-read",
    timer: "xapic-timer",
    interrupt: "xapic-self-ipi",
    fire: "xapic-timer-fires",
};

const X2APIC: Names = Names {
    read: "x2apic-read",
    timer: "x2apic-timer",
    interrupt: "x2apic-self-ipi",
    fire: "x2apic-timer-fires",
};

fn apic(bench: &mut Bench, apic: Apic, names: &Names) {
    apic.enable();
    bench.row(names.read, OFTEN, |times| {
        repeat(times, || drop_value(apic.read(register::ID)));
    });
    // The timer never gets there.
    bench.row(names.timer, OFTEN, |times| {
        repeat(times, || apic.write(register::TIMER_INITIAL, u32::MAX));
        apic.write(register::TIMER_INITIAL, 0);
    });
    interrupts::enable();
    bench.row(names.interrupt, OFTEN, |times| {
        repeat(times, || {
            let before = trap::interrupts();
            apic.interrupt_self();
            while trap::interrupts() == before {}
        });
    });
    interrupts::disable();
    // A host that was kept busy so far does its other work when it first gets idle.
    repeat(10, || wait_for_timer(apic, TIMER_TICKS));
    bench.samples(names.fire, 1, |_| {
        let taken = ticks(|| wait_for_timer(apic, TIMER_TICKS));
        taken.saturating_sub(TIMER_TICKS.into())
    });
}

/// Arms the timer for some ticks, and halts until its interrupt. Interrupts are disabled before and afterwards.
fn wait_for_timer(apic: Apic, ticks: u32) {
    let before = trap::interrupts();
    apic.arm_timer(ticks);
    wait_after(before);
}

/// Halts until an interrupt has come since there were `before`. Interrupts are disabled before and afterwards.
fn wait_after(before: u64) {
    while trap::interrupts() == before {
        interrupts::enable_and_hlt();
        interrupts::disable();
    }
}

/// The timer that takes a value of the time-stamp counter.
fn deadline(bench: &mut Bench, apic: Apic) {
    const DEADLINE: u32 = 1 << 24;
    const MODE: u32 = 0b10 << 17;
    const TSC_DEADLINE: u32 = 0x6e0;
    if cpu::cpuid(1, 0).ecx & DEADLINE == 0 {
        return;
    }
    apic.write(register::TIMER, MODE | MASKED);
    bench.row("tsc-deadline", OFTEN, |times| {
        let far = cpu::tsc() + (1 << 40);
        repeat(times, || cpu::write_msr(TSC_DEADLINE, far));
        cpu::write_msr(TSC_DEADLINE, 0);
    });
}

/// An interrupt of the serial port's, which it asks for as soon as it may, because it has sent all bytes.
fn serial_interrupt(bench: &mut Bench) {
    const INPUT: u32 = 4;
    const INTERRUPTS: u16 = COM1 + 1;
    const REASON: u16 = COM1 + 2;
    const ALL_SENT: u8 = 1 << 1;
    const MODEM_CONTROL: u16 = COM1 + 4;
    /// The output that the interrupt's line goes through.
    const LINE: u8 = 1 << 3;
    apic::route(INPUT, Some(apic::X2APIC_VECTOR));
    cpu::write_port(MODEM_CONTROL, LINE);
    bench.row("serial-interrupt", OFTEN, |times| {
        repeat(times, || {
            let before = trap::interrupts();
            cpu::write_port(INTERRUPTS, ALL_SENT);
            wait_after(before);
            drop_value(cpu::read_port(REASON));
            cpu::write_port(INTERRUPTS, 0);
        });
    });
    apic::route(INPUT, None);
}

/// Interrupts for a second CPU, which answers each one as long as it halts between them.
fn second_cpu(bench: &mut Bench, apic: Apic) {
    second::start(apic);
    bench.row("ipi-halted", OFTEN, |times| {
        repeat(times / 2, || {
            let answered = trap::interrupts() + 2;
            apic.interrupt(second::ID);
            while trap::interrupts() < answered {
                interrupts::enable_and_hlt();
                interrupts::disable();
            }
        });
    });
    second::begin_spinning(apic);
    bench.row("ipi-running", OFTEN / 10, |times| {
        repeat(times, || apic.interrupt(second::ID));
    });
    second::end_spinning();
}

fn memory(bench: &mut Bench) {
    let pages = LARGE_PAGE / PAGE * TOUCHES / 4;
    bench.samples("touch-4k", pages, |index| {
        touch(SMALL_TOUCHES + index as u64 * pages * PAGE, pages, PAGE)
    });
    bench.samples("touch-2m", TOUCHES, |index| {
        let start = LARGE_TOUCHES + index as u64 * TOUCHES * LARGE_PAGE;
        touch(start, TOUCHES, LARGE_PAGE)
    });
    bench.row("random-read", 100_000, random_reads);
    bench.row("copy-1k", 20_000, |times| {
        repeat(times, || cpu::copy_kib(SMALL_TOUCHES, SMALL_TOUCHES + PAGE));
    });
}

/// Ticks that writing one word to each of some pages takes.
fn touch(start: u64, pages: u64, size: u64) -> u64 {
    ticks(|| (0..pages).for_each(|page| cpu::write(start + page * size, 1_u32)))
}

/// Returns the number after `random` of a linear congruential generator.
fn after(random: u32) -> u32 {
    random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223)
}

/// Reads words all over 16 MiB that were touched, in the order of a generator.
fn random_reads(times: u64) {
    const WORDS: u64 = (16 << 20) - 4;
    let mut at: u32 = 1;
    repeat(times, || {
        at = after(at);
        let offset = u64::from(at >> 8) & WORDS;
        drop_value(cpu::read::<u32>(SMALL_TOUCHES + offset));
    });
}
