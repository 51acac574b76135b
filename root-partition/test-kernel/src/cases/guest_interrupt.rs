//! Interrupts into a guest: posted, sent, its own.

use guest_proto::Status;
use guest_proto::hypercall::Hypercall;
use guest_proto::ring::{Consumer, Ring};
use guest_proto::vcpu_page::{PostedKind, PostedWrite};

use super::NO_PARTITIONS;
use crate::guest::code::code;
use crate::guest::{Guest, layout};
use crate::hv;
use crate::report::{Outcome, cases, equal};

cases![
    a_posted_interrupt_wakes_a_halted_guest,
    a_posted_interrupt_waits_for_the_flag,
    a_halt_right_after_sti_is_not_slept_through,
    task_priority_holds_interrupts_back,
    several_at_once_are_all_delivered,
    a_level_interrupts_end_is_posted,
    an_interrupt_to_itself_is_delivered,
    messages_are_delivered,
    messages_to_nobody_are_not,
];

const VECTOR: u8 = 0x50;

/// A guest that turns its APIC on, then halts for ever, with interrupts on.
fn waiting() -> Outcome<Guest> {
    let guest = Guest::new(code![
        "mov ecx, 0x80f",
        "mov eax, 0x1ff",
        "xor edx, edx",
        "wrmsr",
        "sti",
        "2: hlt",
        "jmp 2b",
    ])?;
    guest.end_interrupts();
    guest.halt(0)?;
    Ok(guest)
}

fn post(guest: &Guest, vector: u8) {
    guest.shared(0).posted.post(vector, false);
}

fn a_posted_interrupt_wakes_a_halted_guest() -> Outcome {
    let guest = waiting()?;
    for n in 1..4 {
        post(&guest, VECTOR);
        guest.halt(0)?;
        equal("interrupts", guest.interrupts(VECTOR), n)?;
    }
    equal("others", guest.interrupts(VECTOR + 1), 0)?;
    guest.end()
}

fn a_posted_interrupt_waits_for_the_flag() -> Outcome {
    let guest = Guest::new(code![
        "mov ecx, 0x80f",
        "mov eax, 0x1ff",
        "xor edx, edx",
        "wrmsr",
        "out 0x80, al",
        "mov rbx, [{count}]",
        "sti",
        "nop",
        "nop",
        "cli",
        "mov rcx, [{count}]",
        "hlt",
        ; count = const layout::COUNTS + 8 * VECTOR as u64,
    ])?;
    guest.end_interrupts();
    guest.port()?;
    post(&guest, VECTOR);
    guest.halt(0)?;
    let state = guest.state(0)?;
    equal("before, after", (state.gpr[3], state.gpr[1]), (0, 1))?;
    guest.end()
}

fn a_halt_right_after_sti_is_not_slept_through() -> Outcome {
    let guest = Guest::new(code![
        "mov ecx, 0x80f",
        "mov eax, 0x1ff",
        "xor edx, edx",
        "wrmsr",
        "out 0x80, al",
        "sti",
        "hlt",
        "cli",
        "mov ebx, 1",
        "hlt",
    ])?;
    guest.end_interrupts();
    guest.port()?;
    post(&guest, VECTOR);
    guest.halt(0)?;
    equal("interrupts", guest.interrupts(VECTOR), 1)?;
    equal("past the first halt", guest.state(0)?.gpr[3], 1)?;
    guest.end()
}

fn task_priority_holds_interrupts_back() -> Outcome {
    let guest = Guest::new(code![
        "mov ecx, 0x80f",
        "mov eax, 0x1ff",
        "xor edx, edx",
        "wrmsr",
        "mov eax, 5",
        "mov cr8, rax",
        "sti",
        "out 0x80, al",
        "nop",
        "mov rbx, [{count}]",
        "mov eax, 4",
        "mov cr8, rax",
        // Here, or at the next exit where the CPU cannot tell (QEMU's TCG).
        "out 0x80, al",
        "mov rcx, [{count}]",
        "mov rdx, cr8",
        "cli",
        "hlt",
        ; count = const layout::COUNTS + 8 * VECTOR as u64,
    ])?;
    guest.end_interrupts();
    guest.port()?;
    post(&guest, VECTOR);
    guest.port()?;
    guest.halt(0)?;
    let state = guest.state(0)?;
    equal("at 5, at 4", (state.gpr[3], state.gpr[1]), (0, 1))?;
    equal("CR8", state.gpr[2], 4)?;
    guest.end()
}

fn several_at_once_are_all_delivered() -> Outcome {
    let guest = waiting()?;
    let vectors = [0x20, 0x21, VECTOR, 0xfe, 0xff];
    for vector in vectors {
        post(&guest, vector);
    }
    guest.halt(0)?;
    let counts = vectors.map(|vector| guest.interrupts(vector));
    equal("each once", counts, [1; 5])?;
    equal("exceptions", guest.exceptions().count(), 0)?;
    guest.end()
}

fn a_level_interrupts_end_is_posted() -> Outcome {
    let guest = waiting()?;
    guest.shared(0).posted.post(VECTOR, true);
    guest.halt(0)?;
    equal("interrupts", guest.interrupts(VECTOR), 1)?;
    let ring = Ring::from(guest.shared(0));
    let mut consumer = Consumer::attach(ring);
    let Some(PostedWrite { kind, data, .. }) = consumer.pop(ring) else {
        return crate::report::fail(format_args!("no end of interrupt in the ring"));
    };
    let expected = (PostedKind::Eoi.raw(), VECTOR.into());
    equal("kind, vector", (kind, data), expected)?;
    // An edge-triggered one's end is nobody's business.
    post(&guest, VECTOR);
    guest.halt(0)?;
    equal("interrupts", guest.interrupts(VECTOR), 2)?;
    equal("the ring", consumer.pop(ring), None)?;
    guest.end()
}

fn an_interrupt_to_itself_is_delivered() -> Outcome {
    let guest = Guest::new(code![
        "mov ecx, 0x80f",
        "mov eax, 0x1ff",
        "xor edx, edx",
        "wrmsr",
        "sti",
        // SELF_IPI, then ICR with the shorthand "self", then ICR to id 0.
        "mov ecx, 0x83f",
        "mov eax, {vector}",
        "wrmsr",
        "nop",
        "mov rbx, [{count}]",
        "mov ecx, 0x830",
        "mov eax, 0x40000 + {vector}",
        "wrmsr",
        "nop",
        "mov rsi, [{count}]",
        "mov eax, {vector}",
        "wrmsr",
        "nop",
        "cli",
        "mov rdi, [{count}]",
        "hlt",
        ; count = const layout::COUNTS + 8 * VECTOR as u64, vector = const VECTOR,
    ])?;
    guest.end_interrupts();
    guest.halt(0)?;
    let gpr = guest.state(0)?.gpr;
    equal("after each", (gpr[3], gpr[6], gpr[7]), (1, 2, 3))?;
    guest.end()
}

fn send(guest: &Guest, address: u64, data: u64) -> hv::Answer {
    hv::call(Hypercall::InterruptSend, [guest.id, address, data])
}

fn messages_are_delivered() -> Outcome {
    const LEVEL: u64 = 1 << 15 | 1 << 14;
    let guest = waiting()?;
    equal("to wake", send(&guest, 0xfee0_0000, VECTOR.into()).ok()?, 1)?;
    guest.halt(0)?;
    equal("interrupts", guest.interrupts(VECTOR), 1)?;
    let level = send(&guest, 0xfee0_0000, LEVEL | u64::from(VECTOR));
    equal("to wake", level.ok()?, 1)?;
    guest.halt(0)?;
    equal("interrupts", guest.interrupts(VECTOR), 2)?;
    let ring = Ring::from(guest.shared(0));
    let end = Consumer::attach(ring).pop(ring);
    equal(
        "its end",
        end.map(|entry| entry.kind),
        Some(PostedKind::Eoi.raw()),
    )?;
    guest.end()
}

fn messages_to_nobody_are_not() -> Outcome {
    let guest = waiting()?;
    // A virtual CPU that is not there.
    equal("to wake", send(&guest, 0xfee0_5000, VECTOR.into()).ok()?, 0)?;
    for (address, data) in [
        (0xfee0_0000, 1 << 32),
        (0xfed0_0000, 0x50),
        (1 << 32 | 0xfee0_0000, 0x50),
    ] {
        send(&guest, address, data).is(Status::InvalidArgument)?;
    }
    guest.halt(0)?;
    equal("interrupts", guest.interrupts(VECTOR), 0)?;
    let own = guest.id;
    for id in NO_PARTITIONS.into_iter().filter(|id| *id != own) {
        let answer = hv::call(Hypercall::InterruptSend, [id, 0xfee0_0000, 0x50]);
        answer.is(Status::NoSuchPartition)?;
    }
    guest.end()
}
