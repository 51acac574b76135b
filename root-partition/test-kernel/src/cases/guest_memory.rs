//! A guest's memory: what is there, what is not, and what comes and goes.

use core::sync::atomic::Ordering;

use guest_proto::hypercall::{Hypercall, MapFlags, MapRange};
use guest_proto::vcpu_page::{InterceptFlags as Flags, InterceptKind, RunState};

use crate::guest::code::code;
use crate::guest::{self, Guest, layout};
use crate::hv;
use crate::memory::Pages;
use crate::report::{Outcome, cases, ensure, equal};

cases![
    a_read_of_nothing_is_an_intercept,
    a_write_to_nothing_is_an_intercept,
    memory_that_is_mapped_late_is_found,
    read_only_memory_is_not_written,
    large_pages_come_apart,
];

/// A guest physical address where no RAM is.
const NOTHING: u64 = 0x1000_0000;

fn a_read_of_nothing_is_an_intercept() -> Outcome {
    let guest = Guest::new(code![
        "mov rbx, {nothing}",
        "mov eax, [rbx + 8]",
        "hlt",
        ; nothing = const NOTHING,
    ])?;
    let intercept = guest.intercept(0, InterceptKind::Memory)?;
    equal("address", intercept.address, NOTHING + 8)?;
    equal("present, write", intercept.error_code & 0b11, 0)?;
    ensure(
        "it has the state",
        intercept.flags & Flags::STATE.bits() != 0,
    )?;
    let state = guest.shared(0).state.load();
    equal(
        "rip",
        (intercept.rip, state.rip),
        (layout::CODE + 7, layout::CODE + 7),
    )?;
    guest.emulate(0, |state| {
        state.gpr[0] = 0xfeed;
        state.rip += 3;
    });
    guest.halt(0)?;
    let state = guest.state(0)?;
    equal("RAX", state.gpr[0], 0xfeed)?;
    equal("RBX", state.gpr[3], NOTHING)?;
    guest.end()
}

fn a_write_to_nothing_is_an_intercept() -> Outcome {
    let guest = Guest::new(code![
        "mov rbx, {nothing}",
        "mov [rbx], al",
        "hlt",
        ; nothing = const NOTHING,
    ])?;
    let intercept = guest.intercept(0, InterceptKind::Memory)?;
    equal("address", intercept.address, NOTHING)?;
    equal("present, write", intercept.error_code & 0b11, 0b10)?;
    guest.emulate(0, |state| state.rip += 2);
    guest.halt(0)?;
    guest.end()
}

fn memory_that_is_mapped_late_is_found() -> Outcome {
    let guest = Guest::new(code![
        "mov rbx, {nothing}",
        "mov rax, 0x1234",
        "mov [rbx + 0x10], rax",
        "mov rcx, [rbx + 0x18]",
        "hlt",
        ; nothing = const NOTHING,
    ])?;
    let intercept = guest.intercept(0, InterceptKind::Memory)?;
    equal("address", intercept.address, NOTHING + 0x10)?;
    let late = Pages::take(1);
    guest::map(guest.id, NOTHING >> 12, late)?;
    guest.halt(0)?;
    equal("written", late.load::<u64>(0x10), 0x1234)?;
    equal("read", guest.state(0)?.gpr[1], Pages::PATTERN)?;
    // And gone again.
    hv::call(Hypercall::MemoryUnmap, [guest.id, NOTHING >> 12, 1]).ok()?;
    hv::pass_epoch_everywhere()?;
    guest.restart(|_| {})?;
    guest.intercept(0, InterceptKind::Memory)?;
    guest.end()
}

fn read_only_memory_is_not_written() -> Outcome {
    let guest = Guest::new(code![
        "mov rbx, {nothing}",
        "mov rax, [rbx]",
        "mov [rbx], rbx",
        "hlt",
        ; nothing = const NOTHING,
    ])?;
    let page = Pages::take(1);
    let list = Pages::scratch();
    list.store(
        0,
        &MapRange {
            gpa_pfn: NOTHING >> 12,
            pfn: page.pfn(),
            pages: 1,
            flags: MapFlags::READ_ONLY.bits(),
        },
    );
    hv::deposit(guest.id, 8)?;
    hv::call(Hypercall::MemoryMap, [guest.id, list.pfn(), 0, 1]).ok()?;
    let intercept = guest.intercept(0, InterceptKind::Memory)?;
    equal("address", intercept.address, NOTHING)?;
    equal("present, write", intercept.error_code & 0b11, 0b11)?;
    equal("read", guest.shared(0).state.load().gpr[0], Pages::PATTERN)?;
    ensure("not written", page.holds(Pages::PATTERN))?;
    guest.end()
}

fn large_pages_come_apart() -> Outcome {
    const PAGES: u64 = 1024;
    const GONE: u64 = 100;
    let guest = Guest::new(code![
        "mov rbx, {nothing}",
        "xor ecx, ecx",
        "2: mov [rbx], rcx",
        "add rbx, 4096",
        "inc ecx",
        "cmp ecx, {pages}",
        "jb 2b",
        "hlt",
        "mov rax, [rsi]",
        "hlt",
        ; nothing = const NOTHING, pages = const PAGES,
    ])?;
    let ram = Pages::take_aligned(PAGES, 512);
    guest::map(guest.id, NOTHING >> 12, ram)?;
    guest.halt(0)?;
    for n in 0..PAGES {
        equal("page", ram.word(512 * n).load(Ordering::Acquire), n)?;
    }
    let after = guest.state(0)?.rip;
    hv::deposit(guest.id, 4)?;
    hv::call(
        Hypercall::MemoryUnmap,
        [guest.id, (NOTHING >> 12) + GONE, 1],
    )
    .ok()?;
    hv::pass_epoch_everywhere()?;
    for n in [GONE - 1, GONE + 1, 511, 512, PAGES - 1] {
        let mut state = guest.state(0)?;
        state.rip = after;
        state.gpr[6] = NOTHING + 4096 * n;
        state.run_state = RunState::Runnable.raw();
        guest.set_state(0, &state)?;
        guest.halt(0)?;
        equal("what a neighbour reads", guest.state(0)?.gpr[0], n)?;
    }
    guest.restart(|state| {
        state.rip = after;
        state.gpr[6] = NOTHING + 4096 * GONE;
    })?;
    guest.intercept(0, InterceptKind::Memory)?;
    // The frame is root's to give away, its neighbours are not.
    let give = |n: u64| hv::call(Hypercall::Deposit, [guest.id, ram.page(n).pfn(), 1]);
    give(GONE).ok()?;
    give(GONE + 1).is(guest_proto::Status::NotOwner)?;
    guest.end()
}
