//! Guests on two physical CPUs at once.

use core::sync::atomic::Ordering;

use guest_proto::Status;
use guest_proto::hypercall::Hypercall;
use guest_proto::vcpu_page::InterceptKind;

use crate::guest::code::code;
use crate::guest::{Exit, Guest, Mode, Plan, layout, start};
use crate::hv::{self, Answer};
use crate::report::{Outcome, cases, ensure, equal};
use crate::{apic, cpu, second, trap};

cases![
    a_virtual_cpu_runs_on_one_at_a_time,
    a_kick_ends_a_turn_elsewhere,
    an_nmi_of_roots_ends_a_turn,
    a_posted_interrupt_is_seen_at_the_next_exit,
    two_virtual_cpus_run_at_once,
    a_virtual_cpu_moves_between_cpus,
    memory_taken_away_is_gone_after_the_epoch,
];

const VECTOR: u8 = 0x50;
/// Ticks after which the second CPU's timer ends its turn in any case: a minute.
const LONG: u64 = 60_000_000_000;

/// A turn on the second CPU, which takes the interrupt that ends it.
fn turn(args: [u64; 5]) -> Answer {
    let [id, vcpu, ..] = args;
    apic::arm_timer(LONG);
    let answer = hv::call(Hypercall::VcpuRun, [id, vcpu]);
    apic::stop_timer();
    cpu::take_interrupts();
    answer
}

#[track_caller]
fn begin(guest: &Guest, vcpu: usize) -> Outcome {
    second::begin(turn, [guest.id, vcpu as u64, 0, 0, 0])
}

#[track_caller]
fn finish(guest: &Guest, vcpu: usize) -> Outcome<Exit> {
    let value = second::finish()?.ok()?;
    guest.exit(vcpu, value)
}

/// Waits until the word at [`layout::DATA`] is not `old`.
#[track_caller]
fn wait_for_change(guest: &Guest, old: u64) -> Outcome {
    second::wait_for("the guest runs", || guest.read(layout::DATA) != old)
}

/// A guest that counts at [`layout::DATA`] and never exits.
fn counting() -> Outcome<Guest> {
    Guest::new(code!["2: inc qword ptr [{data}]", "jmp 2b"; data = const layout::DATA])
}

fn a_virtual_cpu_runs_on_one_at_a_time() -> Outcome {
    let guest = counting()?;
    begin(&guest, 0)?;
    wait_for_change(&guest, 0)?;
    let id = guest.id;
    hv::call(Hypercall::VcpuRun, [id, 0]).is(Status::Busy)?;
    hv::call(Hypercall::VcpuGetState, [id, 0]).is(Status::Busy)?;
    hv::call(Hypercall::VcpuSetState, [id, 0]).is(Status::Busy)?;
    hv::call(Hypercall::VcpuApic, [id, 0, 0x20, 0]).is(Status::Busy)?;
    hv::call(Hypercall::PartitionDestroy, [id]).is(Status::Busy)?;
    wait_for_change(&guest, guest.read(layout::DATA))?;
    second::kick();
    match finish(&guest, 0)? {
        Exit::Interrupt => {}
        other => return guest.not(other, "an interrupt"),
    }
    guest.state(0)?;
    guest.end()
}

fn a_kick_ends_a_turn_elsewhere() -> Outcome {
    let guest = Guest::new(code![
        "mov ecx, 0x80f",
        "mov eax, 0x1ff",
        "xor edx, edx",
        "wrmsr",
        "sti",
        "2: inc qword ptr [{data}]",
        "cmp qword ptr [{count}], 0",
        "je 2b",
        "out 0x80, al",
        ; data = const layout::DATA, count = const layout::COUNTS + 8 * VECTOR as u64,
    ])?;
    guest.end_interrupts();
    begin(&guest, 0)?;
    wait_for_change(&guest, 0)?;
    ensure(
        "nothing was outstanding",
        guest.shared(0).posted.post(VECTOR, false),
    )?;
    // It runs on and does not look.
    wait_for_change(&guest, guest.read(layout::DATA))?;
    equal("interrupts", guest.interrupts(VECTOR), 0)?;
    second::kick();
    match finish(&guest, 0)? {
        Exit::Interrupt => {}
        other => return guest.not(other, "an interrupt"),
    }
    begin(&guest, 0)?;
    match finish(&guest, 0)? {
        Exit::Intercept(InterceptKind::Port, _) => {}
        other => return guest.not(other, "a port access"),
    }
    equal("interrupts", guest.interrupts(VECTOR), 1)?;
    guest.end()
}

fn an_nmi_of_roots_ends_a_turn() -> Outcome {
    const NMI: u8 = 2;
    let guest = counting()?;
    let before = trap::count(NMI);
    begin(&guest, 0)?;
    wait_for_change(&guest, 0)?;
    second::send_nmi();
    match finish(&guest, 0)? {
        Exit::Interrupt => {}
        other => return guest.not(other, "an interrupt"),
    }
    equal("root took it", trap::count(NMI), before + 1)?;
    equal("the guest did not", guest.exceptions().count(), 0)?;
    guest.end()
}

fn a_posted_interrupt_is_seen_at_the_next_exit() -> Outcome {
    let guest = Guest::new(code![
        "mov ecx, 0x80f",
        "mov eax, 0x1ff",
        "xor edx, edx",
        "wrmsr",
        "sti",
        "2: cpuid",
        "inc qword ptr [{data}]",
        "cmp qword ptr [{count}], 0",
        "je 2b",
        "out 0x80, al",
        ; data = const layout::DATA, count = const layout::COUNTS + 8 * VECTOR as u64,
    ])?;
    guest.end_interrupts();
    begin(&guest, 0)?;
    wait_for_change(&guest, 0)?;
    guest.shared(0).posted.post(VECTOR, false);
    // The turn does not end for it.
    match finish(&guest, 0)? {
        Exit::Intercept(InterceptKind::Port, _) => {}
        other => return guest.not(other, "a port access"),
    }
    equal("interrupts", guest.interrupts(VECTOR), 1)?;
    guest.end()
}

fn two_virtual_cpus_run_at_once() -> Outcome {
    // The second waits for the first one's interrupt, then tells it so in memory.
    let guest = Guest::build(&Plan {
        vcpus: 2,
        ..Plan::new(code![
            "mov ecx, 0x830",
            "mov edx, 1",
            "mov eax, {vector}",
            "wrmsr",
            "2: pause",
            "cmp qword ptr [{data} + 8], 0",
            "je 2b",
            "hlt",
            ; vector = const VECTOR, data = const layout::DATA,
        ])
    })?;
    guest.end_interrupts();
    guest.ram.store(
        layout::SECOND,
        code![
            "mov ecx, 0x80f",
            "mov eax, 0x1ff",
            "xor edx, edx",
            "wrmsr",
            "sti",
            "2: inc qword ptr [{data}]",
            "cpuid",
            "cmp qword ptr [{count}], 0",
            "je 2b",
            "mov qword ptr [{data} + 8], 1",
            "cli",
            "hlt",
            ; data = const layout::DATA, count = const layout::COUNTS + 8 * VECTOR as u64,
        ],
    );
    let mut state = start::state(Mode::Long);
    state.rip = layout::SECOND;
    state.gpr[4] = layout::STACK + 0x1000;
    state.apic_base &= !(1 << 8);
    guest.set_state(1, &state)?;
    begin(&guest, 1)?;
    wait_for_change(&guest, 0)?;
    equal("kicked", guest.run_to_halt(0)?.kicked, 1 << 1)?;
    match finish(&guest, 1)? {
        Exit::Halted(0) => {}
        other => return guest.not(other, "a halt"),
    }
    equal("interrupts", guest.interrupts(VECTOR), 1)?;
    guest.end()
}

fn a_virtual_cpu_moves_between_cpus() -> Outcome {
    let guest = Guest::new(code![
        "2: inc rbx",
        "mov eax, ebx",
        "out 0x80, eax",
        "jmp 2b",
    ])?;
    for round in 0..20 {
        equal("here", guest.port()?.data, 2 * round + 1)?;
        begin(&guest, 0)?;
        match finish(&guest, 0)? {
            Exit::Intercept(InterceptKind::Port, i) => equal("there", i.data, 2 * round + 2)?,
            other => return guest.not(other, "a port access"),
        }
    }
    guest.end()
}

fn memory_taken_away_is_gone_after_the_epoch() -> Outcome {
    let guest = counting()?;
    begin(&guest, 0)?;
    wait_for_change(&guest, 0)?;
    let page = layout::DATA >> 12;
    hv::call(Hypercall::MemoryUnmap, [guest.id, page, 1]).ok()?;
    second::kick();
    match finish(&guest, 0)? {
        Exit::Interrupt => {}
        // It met the missing page before the kick came.
        Exit::Intercept(InterceptKind::Memory, _) => {}
        other => return guest.not(other, "an interrupt"),
    }
    hv::pass_epoch_everywhere()?;
    let count = guest.read(layout::DATA);
    let intercept = guest.intercept(0, InterceptKind::Memory)?;
    equal("address", intercept.address, layout::DATA)?;
    equal(
        "nothing was written since",
        guest.word(layout::DATA).load(Ordering::Acquire),
        count,
    )?;
    guest.end()
}
