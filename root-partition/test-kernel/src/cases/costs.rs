//! What a guest's exits cost, in ticks of the time-stamp counter: with QEMU's `-icount shift=0` these are instructions.
//!
//! Each figure is the difference of two runs of the same loop, divided by the difference of their lengths, so that
//! making the call and entering the guest do not count. The guest's own instructions of the loop do.

use guest_proto::hypercall::Hypercall;
use guest_proto::ring::{Consumer, Ring};

use crate::guest::Guest;
use crate::guest::code::code;
use crate::report::{Case, Outcome, equal};
use crate::{console, cpu, hv};

/// Prints the figures.
pub const COSTS: &[Case] = &[Case {
    name: "exits_have_a_cost",
    run: print,
}];

const PORT: u64 = 0x600;
/// The two lengths of a loop. The ring has room for the writes of the longer one.
const SHORT: u64 = 20;
const LONG: u64 = 120;

/// How many times the guest's loop is to run stands in R12.
const COUNT: usize = 12;

fn print() -> Outcome {
    let cpuid = Guest::new(code![
        "2: xor eax, eax",
        "cpuid",
        "dec r12",
        "jnz 2b",
        "hlt"
    ])?;
    cost("cpuid", &cpuid, turn)?;
    cpuid.end()?;

    let posted = Guest::new(code![
        "mov edx, 0x600",
        "2: out dx, eax",
        "dec r12",
        "jnz 2b",
        "hlt"
    ])?;
    hv::call(Hypercall::DoorbellAdd, [posted.id, PORT, 4, 1, 0]).ok()?;
    cost("port write, posted", &posted, |guest, times| {
        let ticks = turn(guest, times)?;
        let ring = Ring::from(guest.shared(0));
        let mut consumer = Consumer::attach(ring);
        let writes = core::iter::from_fn(|| consumer.pop(ring)).count();
        equal("posted writes", writes as u64, times)?;
        Ok(ticks)
    })?;
    posted.end()?;

    let write = Guest::new(code![
        "mov edx, 0x500",
        "2: out dx, eax",
        "dec r12",
        "jnz 2b",
        "hlt"
    ])?;
    cost("port write, intercepted", &write, |guest, times| {
        turns(guest, times, || {})
    })?;
    write.end()?;

    let read = Guest::new(code![
        "mov edx, 0x500",
        "2: in eax, dx",
        "dec r12",
        "jnz 2b",
        "hlt"
    ])?;
    cost("port read, answered", &read, |guest, times| {
        turns(guest, times, || guest.reply(0, times))
    })?;
    read.end()
}

/// Prints what one round of a guest's loop costs. `measure` runs so many rounds, and returns the ticks that they took.
fn cost(name: &str, guest: &Guest, measure: impl Fn(&Guest, u64) -> Outcome<u64>) -> Outcome {
    let mut ticks = [0; 2];
    for (ticks, times) in ticks.iter_mut().zip([SHORT, LONG]) {
        guest.restart(|state| state.gpr[COUNT] = times)?;
        *ticks = measure(guest, times)?;
    }
    let [short, long] = ticks;
    let each = long.saturating_sub(short) / (LONG - SHORT);
    console::line(format_args!("cost - {name}: {each}"));
    Ok(())
}

/// Ticks of the one turn in which the guest runs until it halts.
fn turn(guest: &Guest, _times: u64) -> Outcome<u64> {
    turns(guest, 0, || {})
}

/// Ticks of `times` turns that end with an intercept, each of which `answer` answers, and of the turn that ends with a halt.
fn turns(guest: &Guest, times: u64, answer: impl Fn()) -> Outcome<u64> {
    let start = cpu::tsc();
    for _ in 0..times {
        hv::call(Hypercall::VcpuRun, [guest.id, 0]).ok()?;
        answer();
    }
    let value = hv::call(Hypercall::VcpuRun, [guest.id, 0]).ok()?;
    let ticks = cpu::tsc().wrapping_sub(start);
    match guest.exit(0, value)? {
        crate::guest::Exit::Halted(0) => Ok(ticks),
        other => guest.not(other, "a halt"),
    }
}
