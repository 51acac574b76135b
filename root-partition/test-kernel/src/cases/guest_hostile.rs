//! What a worker gone wrong may put into a virtual CPU's page: each has a named answer, and the
//! machine goes on.

use guest_proto::Status;
use guest_proto::hypercall::Hypercall;
use guest_proto::vcpu_page::{InterceptKind, Reply, ReplyFlags, Segment, VcpuState};

use crate::guest::code::code;
use crate::guest::{Exit, Guest, layout};
use crate::report::{Outcome, cases, equal, fail};
use crate::{apic, cpu, hv};

cases![
    reserved_parts_of_a_state_are_refused,
    states_that_no_cpu_can_have_do_not_run,
    a_bad_reply_is_refused,
    a_reply_to_nothing_is_ignored,
    garbage_in_the_page_has_named_answers,
];

/// A state less one thing.
type Change = fn(&mut VcpuState);

fn reserved_parts_of_a_state_are_refused() -> Outcome {
    const CHANGES: &[Change] = &[
        |state| state.cr0 |= 1 << 32,
        |state| state.cr0 |= 1 << 6,
        |state| state.cr4 |= 1 << 63,
        |state| state.cr4 |= 1 << 13,
        |state| state.efer |= 1 << 12,
        |state| state.efer |= 1 << 63,
        |state| state.xcr0 = 0,
        |state| state.xcr0 = 2,
        |state| state.xcr0 = 5,
        |state| state.xcr0 |= 1 << 62,
        |state| state.dr6 |= 1 << 32,
        |state| state.dr7 |= 1 << 63,
        |state| state.pat = 2,
        |state| state.tsc_aux = 1 << 32,
        |state| state.apic_base = 0,
        |state| state.apic_base |= 1,
        |state| state.apic_base |= 1 << 40,
        |state| state.apic_base &= !(1 << 11),
        |state| state.run_state = 3,
        |state| state.run_state = u32::MAX,
        |state| state.interrupt_shadow = 2,
        |state| state.reserved[0] = 1,
        |state| state.reserved[14] = 1 << 63,
    ];
    let guest = Guest::new(code!["hlt"])?;
    let good = guest.state(0)?;
    for (n, change) in CHANGES.iter().enumerate() {
        let mut state = good;
        change(&mut state);
        let answer = guest.try_state(0, &state);
        if answer.status() != Some(Status::InvalidArgument) {
            return fail(format_args!("change {n} is answered {answer:x?}"));
        }
    }
    // Nothing of them was taken.
    equal("CR0", guest.state(0)?.cr0, good.cr0)?;
    guest.halt(0)?;
    guest.end()
}

/// Refused, or not run: the guest must not reach its `out`.
fn states_that_no_cpu_can_have_do_not_run() -> Outcome {
    const CHANGES: &[Change] = &[
        // Paging without protection; NW without CD.
        |state| state.cr0 &= !1,
        |state| state.cr0 |= 1 << 29,
        // Long mode without PAE; active without being enabled, and without paging.
        |state| state.cr4 &= !(1 << 5),
        |state| state.efer &= !(1 << 8),
        // 64-bit and 32-bit code at once.
        |state| state.segment[1].attributes |= 1 << 10,
        // An instruction pointer that is no address.
        |state| state.rip = 1 << 63,
        // No page tables.
        |state| state.cr3 = 0x7000_0000,
        |state| state.segment[1] = Segment::default(),
    ];
    for (n, change) in CHANGES.iter().enumerate() {
        let guest = Guest::new(code!["out 0x80, al", "hlt"])?;
        let mut state = guest.state(0)?;
        change(&mut state);
        let answer = guest.try_state(0, &state);
        match answer.status() {
            Some(Status::InvalidArgument) => {}
            Some(Status::Ok) => match guest.run(0)? {
                Exit::Intercept(
                    InterceptKind::EntryFailed | InterceptKind::Shutdown | InterceptKind::Memory,
                    _,
                ) => {}
                // Its own handler noted a fault.
                Exit::Halted(0) if guest.exceptions().count() > 0 => {}
                // QEMU's TCG runs what hardware refuses.
                Exit::Intercept(InterceptKind::Port, _) => {}
                other => return fail(format_args!("change {n} runs: {other:x?}")),
            },
            _ => return fail(format_args!("change {n} is answered {answer:x?}")),
        }
        guest.end()?;
    }
    Ok(())
}

fn reading() -> Outcome<Guest> {
    let guest = Guest::new(code!["in al, 0x80", "hlt"])?;
    guest.port()?;
    Ok(guest)
}

fn run_answer(guest: &Guest) -> hv::Answer {
    hv::call(Hypercall::VcpuRun, [guest.id, 0])
}

fn a_bad_reply_is_refused() -> Outcome {
    let guest = reading()?;
    let bad = [
        (1 << 5, 0),
        (1 << 31, 0),
        (ReplyFlags::EXCEPTION.bits(), 32),
        (ReplyFlags::EXCEPTION.bits(), 2),
        (ReplyFlags::EXCEPTION.bits(), u32::MAX),
        (ReplyFlags::DATA.bits() | 1 << 5, 0),
        // The intercept is not about a register of the vLAPIC.
        (ReplyFlags::REGISTERS.bits() | ReplyFlags::APIC.bits(), 0),
    ];
    for (flags, exception) in bad {
        guest.shared(0).reply.store(&Reply {
            flags,
            exception,
            ..Reply::default()
        });
        run_answer(&guest).is(Status::InvalidArgument)?;
    }
    // It still waits for its answer.
    guest.reply(0, 0x55);
    guest.halt(0)?;
    equal("AL", guest.state(0)?.gpr[0] & 0xff, 0x55)?;
    guest.end()
}

fn a_reply_to_nothing_is_ignored() -> Outcome {
    let guest = Guest::new(code!["out 0x80, al", "hlt"])?;
    guest.port()?;
    let before = guest.state(0)?;
    guest.shared(0).reply.store(&Reply {
        flags: u32::MAX,
        exception: u32::MAX,
        data: u64::MAX,
        error_code: u64::MAX,
        fault_address: u64::MAX,
        reserved: [u64::MAX; 4],
    });
    guest.halt(0)?;
    equal("registers", guest.state(0)?.gpr, before.gpr)?;
    equal("exceptions", guest.exceptions().count(), 0)?;
    guest.end()
}

fn garbage_in_the_page_has_named_answers() -> Outcome {
    const WORDS: u64 = 512;
    let guest = Guest::new(code![
        "mov ecx, 0x80f",
        "mov eax, 0x1ff",
        "xor edx, edx",
        "wrmsr",
        "lea rax, [rip + 2f]",
        "mov [{notes} + 24], rax",
        "2: mov rsp, {stack}",
        "sti",
        "mov edx, 0x600",
        "out dx, eax",
        "in al, 0x80",
        "mov ebx, 0x10000000",
        "mov eax, [rbx]",
        "mov rsi, {notes}",
        "outsb",
        "cpuid",
        "hlt",
        "jmp 2b",
        ; notes = const layout::NOTES, stack = const layout::STACK,
    ])?;
    guest.end_interrupts();
    hv::call(Hypercall::DoorbellAdd, [guest.id, 0x600, 4, 1, 0]).ok()?;
    let page = guest.page_of(0);
    let good = guest.state(0)?;
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    for round in 0..2000 {
        // Some words at random, or all of the page.
        let count = if round % 8 == 0 { WORDS } else { next() % 16 };
        for _ in 0..count {
            let (at, value) = (next() % WORDS, next());
            let value = if value & 1 == 0 {
                value >> (value % 64)
            } else {
                value
            };
            page.word(at)
                .store(value, core::sync::atomic::Ordering::Relaxed);
        }
        let answer = match round % 16 {
            15 => hv::call(Hypercall::VcpuSetState, [guest.id, 0]),
            7 => guest.try_state(0, &good),
            _ => {
                apic::arm_timer(1_000_000);
                let answer = run_answer(&guest);
                apic::stop_timer();
                cpu::take_interrupts();
                answer
            }
        };
        match answer.status() {
            Some(Status::Ok | Status::InvalidArgument) => {}
            other => return fail(format_args!("round {round}: {other:?}")),
        }
    }
    // With a sane page it runs as ever.
    page.fill(0);
    guest.end()
}
