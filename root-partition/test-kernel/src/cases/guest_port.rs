//! A guest's port accesses, and the worker's answers.

use guest_proto::vcpu_page::{InterceptFlags as Flags, Reply, ReplyFlags};

use crate::guest::code::code;
use crate::guest::{Guest, layout};
use crate::report::{Outcome, cases, equal};

cases![
    a_port_write_tells_its_operands,
    a_port_read_takes_its_answer,
    a_string_write_is_left_to_the_worker,
    a_string_read_is_left_to_the_worker,
    the_worker_may_answer_with_an_exception,
    a_string_that_faults_keeps_its_progress,
];

fn a_port_write_tells_its_operands() -> Outcome {
    let guest = Guest::new(code![
        "mov eax, 0x12345678",
        "mov dx, 0x501",
        "out dx, al",
        "out dx, ax",
        "out dx, eax",
        "out 0x80, al",
        "hlt",
    ])?;
    let expected = [
        (0x501, 1, 0x78),
        (0x501, 2, 0x5678),
        (0x501, 4, 0x1234_5678),
        (0x80, 1, 0x78),
    ];
    for (port, size, data) in expected {
        let intercept = guest.port()?;
        let got = (intercept.address, intercept.size, intercept.data);
        equal("port, size, data", got, (port, size, data))?;
        equal(
            "write, flags",
            (
                intercept.is_write,
                intercept.flags & (Flags::STRING.bits() | Flags::REP.bits()),
            ),
            (1, 0),
        )?;
    }
    guest.halt(0)?;
    guest.end()
}

fn a_port_read_takes_its_answer() -> Outcome {
    let guest = Guest::new(code![
        "mov rbx, {data}",
        "mov dx, 0x502",
        "mov rax, -1",
        "in al, dx",
        "mov [rbx], rax",
        "mov rax, -1",
        "in ax, dx",
        "mov [rbx + 8], rax",
        "mov rax, -1",
        "in eax, dx",
        "mov [rbx + 16], rax",
        "hlt",
        ; data = const layout::DATA,
    ])?;
    for size in [1, 2, 4] {
        let intercept = guest.port()?;
        let got = (intercept.address, intercept.size, intercept.is_write);
        equal("port, size, write", got, (0x502, size, 0))?;
        guest.reply(0, 0x1122_3344_5566_7788);
    }
    guest.halt(0)?;
    let got = [0, 8, 16].map(|offset| guest.read(layout::DATA + offset));
    let expected = [0xffff_ffff_ffff_ff88, 0xffff_ffff_ffff_7788, 0x5566_7788];
    equal("RAX", got, expected)?;
    equal("the reply is taken", guest.shared(0).reply.load().flags, 0)?;
    guest.end()
}

fn a_string_write_is_left_to_the_worker() -> Outcome {
    const SOURCE: u64 = layout::DATA + 3;
    let guest = Guest::new(code![
        "mov rsi, {source}",
        "mov ecx, 5",
        "mov dx, 0x501",
        "rep outsb",
        "hlt",
        ; source = const SOURCE,
    ])?;
    let intercept = guest.port()?;
    let expected = Flags::STRING.bits() | Flags::REP.bits() | Flags::STATE.bits();
    equal("flags", intercept.flags, expected)?;
    equal(
        "port, size, write",
        (intercept.address, intercept.size, intercept.is_write),
        (0x501, 1, 1),
    )?;
    let state = guest.shared(0).state.load();
    equal("RSI, RCX", (state.gpr[6], state.gpr[1]), (SOURCE, 5))?;
    equal("rip", state.rip, intercept.rip)?;
    guest.emulate(0, |state| {
        state.gpr[6] += 5;
        state.gpr[1] = 0;
        state.rip += 2;
    });
    guest.halt(0)?;
    equal("RCX", guest.state(0)?.gpr[1], 0)?;
    guest.end()
}

fn a_string_read_is_left_to_the_worker() -> Outcome {
    let guest = Guest::new(code![
        "mov rdi, {target}",
        "mov ecx, 3",
        "mov dx, 0x502",
        "rep insb",
        "hlt",
        ; target = const layout::DATA,
    ])?;
    let intercept = guest.port()?;
    let expected = Flags::STRING.bits() | Flags::REP.bits() | Flags::STATE.bits();
    equal("flags", intercept.flags, expected)?;
    equal(
        "port, size, write",
        (intercept.address, intercept.size, intercept.is_write),
        (0x502, 1, 0),
    )?;
    // A byte at a time, as a worker may that has no more.
    for left in (0..3).rev() {
        guest.emulate(0, |state| {
            state.gpr[7] += 1;
            state.gpr[1] = left;
            // With none left the instruction is over: QEMU's TCG would exit for it again.
            state.rip += if left == 0 { 2 } else { 0 };
        });
        if left > 0 {
            equal("flags", guest.port()?.flags, expected)?;
            equal("RCX", guest.shared(0).state.load().gpr[1], left)?;
        }
    }
    guest.halt(0)?;
    equal("RDI", guest.state(0)?.gpr[7], layout::DATA + 3)?;
    guest.end()
}

fn the_worker_may_answer_with_an_exception() -> Outcome {
    const PAGE_FAULT: u32 = 14;
    let guest = Guest::new(code![
        "lea rax, [rip + 2f]",
        "mov [{notes} + 24], rax",
        "mov dx, 0x502",
        "in al, dx",
        "2: mov rbx, cr2",
        "hlt",
        ; notes = const layout::NOTES,
    ])?;
    guest.port()?;
    guest.shared(0).reply.store(&Reply {
        flags: ReplyFlags::EXCEPTION.bits(),
        exception: PAGE_FAULT,
        error_code: 2,
        fault_address: 0x1234_5000,
        ..Reply::default()
    });
    guest.halt(0)?;
    let [vector, code, _] = guest.exceptions().last();
    equal("vector, error code", (vector, code), (PAGE_FAULT.into(), 2))?;
    equal("CR2", guest.state(0)?.gpr[3], 0x1234_5000)?;
    guest.end()
}

fn a_string_that_faults_keeps_its_progress() -> Outcome {
    const PROTECTION: u32 = 13;
    let guest = Guest::new(code![
        "lea rax, [rip + 2f]",
        "mov [{notes} + 24], rax",
        "mov rdi, {target}",
        "mov ecx, 3",
        "mov dx, 0x502",
        "rep insb",
        "2: hlt",
        ; notes = const layout::NOTES, target = const layout::DATA,
    ])?;
    guest.port()?;
    guest.emulate(0, |state| {
        state.gpr[7] += 1;
        state.gpr[1] = 2;
    });
    guest.shared(0).reply.store(&Reply {
        flags: ReplyFlags::REGISTERS.bits() | ReplyFlags::EXCEPTION.bits(),
        exception: PROTECTION,
        ..Reply::default()
    });
    guest.halt(0)?;
    let [vector, code, _] = guest.exceptions().last();
    equal("vector, error code", (vector, code), (PROTECTION.into(), 0))?;
    let state = guest.state(0)?;
    equal(
        "RDI, RCX",
        (state.gpr[7], state.gpr[1]),
        (layout::DATA + 1, 2),
    )?;
    guest.end()
}
