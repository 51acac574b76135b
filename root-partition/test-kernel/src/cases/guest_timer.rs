//! A guest's timer as root sees it, and root's own as the guest does.

use crate::guest::code::code;
use crate::guest::layout::COUNTS;
use crate::guest::{Exit, Guest};
use crate::report::{Outcome, cases, ensure, equal};
use crate::{apic, cpu, second, trap};

cases![
    a_deadline_is_a_timer,
    a_one_shot_timer_fires_once,
    a_periodic_timer_fires_again,
    a_deadline_that_a_read_finds_over_interrupts_at_once,
    the_tsc_is_the_guests_to_set,
    a_physical_interrupt_ends_a_turn,
];

const VECTOR: u8 = 0x50;

/// Waits for `deadline`, and says whether it was one: to come, and not far.
fn sleep_until(what: &str, deadline: u64) -> Outcome {
    ensure("there is a deadline", deadline != 0)?;
    let ahead = deadline.saturating_sub(cpu::tsc());
    ensure("it is not far", ahead < 5_000_000_000)?;
    second::wait_for(what, || cpu::tsc() >= deadline)
}

/// A timer guest: what stands in EBX goes to the timer's local vector, then RSI to register EDI.
fn timer(lvt: u64, register: u64, value: u64) -> Outcome<Guest> {
    let guest = Guest::new(code![
        "mov ecx, 0x80f",
        "mov eax, 0x1ff",
        "xor edx, edx",
        "wrmsr",
        "mov ecx, 0x83e",
        "mov eax, 0xb",
        "wrmsr",
        "mov ecx, 0x832",
        "mov eax, ebx",
        "wrmsr",
        "mov ecx, edi",
        "cmp ecx, 0x6e0",
        "jne 2f",
        "rdtsc",
        "shl rdx, 32",
        "or rax, rdx",
        "add rsi, rax",
        "2: mov rax, rsi",
        "mov rdx, rsi",
        "shr rdx, 32",
        "wrmsr",
        "sti",
        "3: hlt",
        "jmp 3b",
    ])?;
    guest.end_interrupts();
    let mut state = guest.state(0)?;
    (state.gpr[3], state.gpr[6], state.gpr[7]) = (lvt, value, register);
    guest.set_state(0, &state)?;
    Ok(guest)
}

/// Lets the timer of a guest fire once. Where this machine is slow it has before the guest halts.
fn fires_once(guest: &Guest, earliest: u64) -> Outcome {
    let deadline = guest.run_to_halt(0)?.deadline;
    if deadline != 0 {
        equal("too early", guest.interrupts(VECTOR), 0)?;
        ensure("not before its time", deadline >= earliest)?;
        sleep_until("the deadline", deadline)?;
        equal("no deadline after it", guest.run_to_halt(0)?.deadline, 0)?;
    }
    equal("interrupts", guest.interrupts(VECTOR), 1)
}

fn a_deadline_is_a_timer() -> Outcome {
    const TSC_DEADLINE: u64 = 2 << 17;
    const AHEAD: u64 = 300_000_000;
    let guest = timer(TSC_DEADLINE | u64::from(VECTOR), 0x6e0, AHEAD)?;
    fires_once(&guest, cpu::tsc() + AHEAD)?;
    guest.end()
}

fn a_one_shot_timer_fires_once() -> Outcome {
    let guest = timer(VECTOR.into(), 0x838, 100_000_000)?;
    fires_once(&guest, 0)?;
    guest.end()
}

fn a_periodic_timer_fires_again() -> Outcome {
    const PERIODIC: u64 = 1 << 17;
    let guest = timer(PERIODIC | u64::from(VECTOR), 0x838, 100_000_000)?;
    let mut deadline = guest.run_to_halt(0)?.deadline;
    for n in 1..4 {
        sleep_until("the period's end", deadline)?;
        let next = guest.run_to_halt(0)?.deadline;
        ensure("the next is later", next > deadline)?;
        deadline = next;
        ensure("interrupts", guest.interrupts(VECTOR) >= n)?;
    }
    guest.end()
}

fn a_deadline_that_a_read_finds_over_interrupts_at_once() -> Outcome {
    const TSC_DEADLINE: u64 = 2 << 17;
    // Reads the deadline until it is 0, and then how many interrupts came.
    let guest = Guest::new(code![
        "mov ecx, 0x80f",
        "mov eax, 0x1ff",
        "xor edx, edx",
        "wrmsr",
        "mov ecx, 0x832",
        "mov eax, ebx",
        "wrmsr",
        "sti",
        "rdtsc",
        "shl rdx, 32",
        "or rax, rdx",
        "add rax, 1000000",
        "mov rdx, rax",
        "shr rdx, 32",
        "mov ecx, 0x6e0",
        "wrmsr",
        "2: rdmsr",
        "or eax, edx",
        "jnz 2b",
        "mov rbp, [rsi]",
        "3: hlt",
        "jmp 3b",
    ])?;
    guest.end_interrupts();
    let mut state = guest.state(0)?;
    state.gpr[3] = TSC_DEADLINE | u64::from(VECTOR);
    state.gpr[6] = COUNTS + 8 * u64::from(VECTOR);
    guest.set_state(0, &state)?;
    guest.run_to_halt(0)?;
    equal("interrupts", guest.state(0)?.gpr[5], 1)?;
    guest.end()
}

fn the_tsc_is_the_guests_to_set() -> Outcome {
    const TSC_DEADLINE: u64 = 2 << 17;
    // TSC is set back to 0, which TSC_ADJUST shows; the deadline after it is in the new time.
    let guest = Guest::new(code![
        "mov ecx, 0x80f",
        "mov eax, 0x1ff",
        "xor edx, edx",
        "wrmsr",
        "mov ecx, 0x832",
        "mov eax, ebx",
        "wrmsr",
        "rdtsc",
        "shl rdx, 32",
        "or rax, rdx",
        "mov rdi, rax",
        "mov ecx, 0x10",
        "xor eax, eax",
        "xor edx, edx",
        "wrmsr",
        "mov ecx, 0x3b",
        "rdmsr",
        "shl rdx, 32",
        "or rax, rdx",
        "mov rsi, rax",
        "rdtsc",
        "shl rdx, 32",
        "or rax, rdx",
        "mov rbp, rax",
        "mov ecx, 0x6e0",
        "mov rax, 200000000",
        "xor edx, edx",
        "wrmsr",
        "sti",
        "2: hlt",
        "jmp 2b",
    ])?;
    guest.end_interrupts();
    let mut state = guest.state(0)?;
    state.gpr[3] = TSC_DEADLINE | u64::from(VECTOR);
    guest.set_state(0, &state)?;
    fires_once(&guest, 0)?;
    let state = guest.state(0)?;
    let (before, adjust, after) = (state.gpr[7], state.gpr[6], state.gpr[5]);
    ensure("it was set back", after < before || before < 1_000_000)?;
    ensure("TSC_ADJUST is by how much", adjust.wrapping_neg() >= before)?;
    ensure("its state says the same", state.tsc >= after)?;
    guest.end()
}

fn a_physical_interrupt_ends_a_turn() -> Outcome {
    let guest = Guest::new(code!["2: inc rbx", "jmp 2b"])?;
    let mut last = 0;
    for _ in 0..3 {
        let before = trap::count(apic::TIMER);
        match guest.turn(0)? {
            Exit::Interrupt => {}
            other => return guest.not(other, "an interrupt"),
        }
        equal("not taken yet", trap::count(apic::TIMER), before)?;
        cpu::take_interrupts();
        equal("taken", trap::count(apic::TIMER), before + 1)?;
        let rbx = guest.state(0)?.gpr[3];
        ensure("it goes on where it was", rbx > last)?;
        last = rbx;
    }
    guest.end()
}
