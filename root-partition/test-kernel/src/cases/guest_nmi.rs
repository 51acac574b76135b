//! NMIs into a guest.

use guest_proto::vcpu_page::{InterceptKind, Reply, ReplyFlags};
use x86_64::registers::rflags::RFlags;

use crate::guest::code::code;
use crate::guest::{Guest, layout, map};
use crate::memory::Pages;
use crate::report::{Outcome, cases, ensure, equal};

cases![
    an_nmi_is_delivered,
    an_nmi_comes_right_after_the_end_of_another,
    two_nmis_wait_but_not_three,
    while_one_is_in_service_one_waits,
    a_return_that_is_stepped_over_is_the_guests_own,
    a_return_from_an_nmi_that_faults_is_the_guests_fault,
    an_nmi_comes_right_after_an_interrupt_shadow,
    an_nmi_comes_with_the_end_of_an_exceptions_handler,
];

const NMI: u64 = 2;
const PROTECTION: u64 = 13;
const TRAP_FLAG: u64 = RFlags::TRAP_FLAG.bits();

/// What the CPU pushed before a handler that has halted.
struct Interrupted {
    rip: u64,
    flags: u64,
    stack: u64,
}

/// Where a handler's return is in the code of [`halting`].
const RETURN: u64 = 4;
/// Bytes that a handler has pushed on the CPU's own frame.
const PUSHED: u64 = 40;
const FRAME_FLAGS: u64 = 16;

/// The frame of the handler whose stack pointer this is.
fn interrupted(guest: &Guest, stack: u64) -> Interrupted {
    let word = |offset| guest.read(stack + PUSHED + offset);
    Interrupted {
        rip: word(0),
        flags: word(FRAME_FLAGS),
        stack: word(24),
    }
}

fn post(guest: &Guest, count: usize) {
    for _ in 0..count {
        guest.shared(0).posted.post_nmi();
    }
}

/// A guest that halts, and whose handlers halt, too.
fn halting() -> Outcome<Guest> {
    let guest = Guest::new(code!["hlt", "2: hlt", "jmp 2b", "iretq"])?;
    guest.halt(0)?;
    Ok(guest)
}

/// Returns from the handler that has halted.
fn go_back(guest: &Guest) -> Outcome {
    guest.restart(|state| {
        state.rip = layout::CODE + RETURN;
        state.gpr[4] += PUSHED;
    })
}

/// Code that counts its turns in R8 and notes in RBX how many exceptions there were had all of them before its first turn.
fn seen_once(guest: &Guest, exceptions: u64) -> Outcome {
    let gpr = guest.state(0)?.gpr;
    equal("turns, exceptions", (gpr[8], gpr[3]), (1, exceptions))
}

/// A guest that halts, and whose handlers return to such code.
fn counting() -> Outcome<Guest> {
    let guest = Guest::new(code![
        "lea rax, [rip + 2f]",
        "mov [{notes} + 24], rax",
        "hlt",
        "ud2",
        "2: mov rbx, [{notes} + 40]",
        "inc r8",
        "hlt",
        "ud2",
        ; notes = const layout::NOTES,
    ])?;
    guest.halt(0)?;
    Ok(guest)
}

fn an_nmi_is_delivered() -> Outcome {
    let guest = counting()?;
    post(&guest, 1);
    guest.halt(0)?;
    equal("exceptions", guest.exceptions().count(), 1)?;
    equal("vector", guest.exceptions().last()[0], NMI)?;
    guest.end()
}

fn an_nmi_comes_right_after_the_end_of_another() -> Outcome {
    let guest = halting()?;
    for _ in 0..2 {
        post(&guest, 1);
        guest.halt(0)?;
        equal("exceptions", guest.exceptions().count(), 1)?;
    }
    go_back(&guest)?;
    guest.halt(0)?;
    equal("exceptions", guest.exceptions().count(), 2)?;
    let [vector, _, rip] = guest.exceptions().last();
    equal("vector, place", (vector, rip), (NMI, layout::CODE + 1))?;
    guest.end()
}

fn two_nmis_wait_but_not_three() -> Outcome {
    let guest = counting()?;
    post(&guest, 3);
    guest.halt(0)?;
    seen_once(&guest, 2)?;
    equal("exceptions", guest.exceptions().count(), 2)?;
    guest.end()
}

fn while_one_is_in_service_one_waits() -> Outcome {
    let guest = halting()?;
    post(&guest, 1);
    guest.halt(0)?;
    post(&guest, 2);
    guest.halt(0)?;
    for _ in 0..2 {
        go_back(&guest)?;
        guest.halt(0)?;
    }
    equal("exceptions", guest.exceptions().count(), 2)?;
    guest.end()
}

fn a_return_that_is_stepped_over_is_the_guests_own() -> Outcome {
    for flag in [0, TRAP_FLAG] {
        let guest = halting()?;
        post(&guest, 1);
        guest.halt(0)?;
        let stack = guest.state(0)?.gpr[4];
        let flags = guest.word(stack + PUSHED + FRAME_FLAGS);
        flags.fetch_or(flag, core::sync::atomic::Ordering::AcqRel);
        post(&guest, 1);
        go_back(&guest)?;
        guest.halt(0)?;
        let state = guest.state(0)?;
        let second = interrupted(&guest, state.gpr[4]);
        equal("place", second.rip, layout::CODE + 1)?;
        equal("trap flag", second.flags & TRAP_FLAG, flag)?;
        equal("DR6", state.dr6 & 0x400f, 0)?;
        guest.end()?;
    }
    Ok(())
}

fn a_return_from_an_nmi_that_faults_is_the_guests_fault() -> Outcome {
    const NO_SUCH_SELECTOR: u64 = 0x48;
    let guest = halting()?;
    post(&guest, 1);
    guest.halt(0)?;
    let stack = guest.state(0)?.gpr[4];
    let code_selector = guest.word(stack + PUSHED + 8);
    code_selector.store(NO_SUCH_SELECTOR, core::sync::atomic::Ordering::Release);
    post(&guest, 1);
    go_back(&guest)?;
    guest.halt(0)?;
    // The handler of #GP halts, and the NMI comes there.
    equal("exceptions", guest.exceptions().count(), 3)?;
    equal("the last", guest.exceptions().last()[0], NMI)?;
    let nmi = interrupted(&guest, guest.state(0)?.gpr[4]);
    let fault = interrupted(&guest, nmi.stack);
    equal("place of the fault", fault.rip, layout::CODE + RETURN)?;
    equal("its trap flag", fault.flags & TRAP_FLAG, 0)?;
    equal(
        "its error code",
        guest.read(nmi.stack + 32),
        NO_SUCH_SELECTOR,
    )?;
    equal("its vector", guest.read(nmi.stack + 24), PROTECTION)?;
    guest.end()
}

fn an_nmi_comes_right_after_an_interrupt_shadow() -> Outcome {
    let guest = Guest::new(code![
        "sti",
        "mov rax, [{late}]",
        "2: lea rbx, [rip + 2b]",
        "hlt",
        "ud2",
        ; late = const layout::END,
    ])?;
    guest.intercept(0, InterceptKind::Memory)?;
    let page = Pages::take(1);
    map(guest.id, layout::PAGES, page)?;
    post(&guest, 1);
    guest.halt(0)?;
    equal("exceptions", guest.exceptions().count(), 1)?;
    let [_, _, rip] = guest.exceptions().last();
    ensure("past the shadow", rip > layout::CODE + 1)?;
    equal("no instruction later", guest.state(0)?.gpr[3], 0)?;
    guest.end()
}

fn an_nmi_comes_with_the_end_of_an_exceptions_handler() -> Outcome {
    let guest = Guest::new(code![
        "lea rax, [rip + 2f]",
        "mov [{notes} + 24], rax",
        "mov dx, 0x502",
        "in al, dx",
        "2: mov rbx, [{notes} + 40]",
        "inc r8",
        "hlt",
        "ud2",
        ; notes = const layout::NOTES,
    ])?;
    guest.port()?;
    guest.shared(0).reply.store(&Reply {
        flags: ReplyFlags::EXCEPTION.bits(),
        exception: PROTECTION as u32,
        ..Reply::default()
    });
    post(&guest, 1);
    guest.halt(0)?;
    seen_once(&guest, 2)?;
    equal("the last", guest.exceptions().last()[0], NMI)?;
    guest.end()
}
