//! A virtual CPU's state: as root sets and reads it, and kept apart from root's own and from other
//! guests'.

use guest_proto::vcpu_page::{InterceptKind, ReplyFlags, Segment, VcpuState, Vectors};

use crate::guest::code::code;
use crate::guest::{Guest, layout};
use crate::report::{Outcome, cases, ensure, equal, fail};
use crate::{cpu, probe};

cases![
    a_state_is_read_as_it_was_set,
    guests_have_their_own_memory_and_registers,
    vector_registers_are_kept_apart,
    a_worker_reads_and_sets_vector_registers,
    a_bad_xcr0_faults,
    xsetbv_is_undefined_without_osxsave,
    debug_registers_are_kept_apart,
    breakpoints_and_single_steps_are_the_guests,
    roots_registers_are_its_own,
];

/// Everything that a state has, each value another.
fn colourful(guest: &Guest) -> Outcome<VcpuState> {
    let mut state = guest.state(0)?;
    for (n, gpr) in (1..).zip(&mut state.gpr) {
        *gpr = 0x0123_4567_89ab_cdef_u64.rotate_left(n);
    }
    state.gpr[4] = layout::STACK;
    state.rflags = 0x46;
    state.segment[4].base = 0x1234_5000;
    state.segment[5].base = 0xffff_8000_1234_5000;
    state.ldtr = Segment {
        selector: 0x28,
        attributes: 0x82,
        limit: 0xff,
        base: 0x8_0000,
    };
    state.cr2 = 0xdead_b000;
    state.dr = [0x1000, 0x2000, 0x3000, 0x4000];
    state.star = 0x0013_0008 << 32;
    state.lstar = 0xffff_8000_0000_1000;
    state.cstar = 0xffff_8000_0000_2000;
    state.sfmask = 0x4_7700;
    state.kernel_gs_base = 0xffff_8000_0000_3000;
    state.sysenter = [8, 0xffff_8000_0000_4000, 0xffff_8000_0000_5000];
    state.pat = 0x0606_0606_0606_0606;
    state.tsc_aux = 0x77;
    state.xcr0 = 3;
    Ok(state)
}

fn same(what: &str, got: &VcpuState, expected: &VcpuState) -> Outcome {
    let without_time = VcpuState {
        tsc: expected.tsc,
        ..*got
    };
    if without_time == *expected {
        return Ok(());
    }
    let words = |state: &VcpuState| -> [u64; 80] { zerocopy::transmute!(*state) };
    let (got, expected) = (words(&without_time), words(expected));
    let at = got.iter().zip(&expected).position(|(a, b)| a != b);
    let n = at.unwrap_or_default();
    fail(format_args!(
        "{what}: byte {:#x} of the state is {:#x}, not {:#x}",
        8 * n,
        got[n],
        expected[n]
    ))
}

fn a_state_is_read_as_it_was_set() -> Outcome {
    let guest = Guest::new(code!["out 0x80, al", "hlt"])?;
    let mut state = colourful(&guest)?;
    guest.set_state(0, &state)?;
    same("at once", &guest.state(0)?, &state)?;
    guest.port()?;
    state.rip += 2;
    same("after an exit", &guest.state(0)?, &state)?;
    guest.end()
}

fn guests_have_their_own_memory_and_registers() -> Outcome {
    let code = code![
        "2: add rbx, rcx",
        "mov [{data}], rbx",
        "out 0x80, al",
        "jmp 2b",
        ; data = const layout::DATA,
    ];
    let guests = [Guest::new(code)?, Guest::new(code)?, Guest::new(code)?];
    for (guest, step) in guests.iter().zip(1..) {
        guest.restart(|state| state.gpr[1] = step)?;
    }
    for round in 1..20 {
        for (guest, step) in guests.iter().zip(1..) {
            guest.port()?;
            equal("memory", guest.read(layout::DATA), round * step)?;
        }
    }
    guests.into_iter().try_for_each(Guest::end)
}

/// Turns AVX on and fills YMM0 and XMM15 from memory; after an exit, stores them.
fn vector_guest(pattern: u64) -> Outcome<Guest> {
    let guest = Guest::new(code![
        "mov rax, cr4",
        "or eax, 0x40000",
        "mov cr4, rax",
        "xor ecx, ecx",
        "xor edx, edx",
        "mov eax, 7",
        "xsetbv",
        "vmovdqu ymm0, [{data}]",
        "movdqu xmm15, [{data}]",
        "2: out 0x80, al",
        "vmovdqu [{data} + 0x40], ymm0",
        "movdqu [{data} + 0x60], xmm15",
        "jmp 2b",
        ; data = const layout::DATA,
    ])?;
    guest.ram.store(layout::DATA, &[pattern; 4]);
    Ok(guest)
}

fn vector_registers_are_kept_apart() -> Outcome {
    let xcr0 = cpu::xcr0();
    if xcr0 & 0b100 == 0 {
        return fail(format_args!("this CPU has no AVX"));
    }
    let patterns = [0x1111_2222_3333_4444, 0x5555_6666_7777_8888];
    let guests = [vector_guest(patterns[0])?, vector_guest(patterns[1])?];
    for round in 0..5 {
        for (guest, pattern) in guests.iter().zip(patterns) {
            guest.port()?;
            equal("root's XCR0", cpu::xcr0(), xcr0)?;
            if round > 0 {
                let stored: [u64; 6] = guest.ram.load(layout::DATA + 0x40);
                equal("YMM0, XMM15", stored, [pattern; 6])?;
            }
        }
    }
    equal("the guest's XCR0", guests[0].state(0)?.xcr0, 7)?;
    guests.into_iter().try_for_each(Guest::end)
}

fn a_worker_reads_and_sets_vector_registers() -> Outcome {
    const LOW: u64 = 0x1111_2222_3333_4444;
    let guest = Guest::new(code![
        "mov rax, cr4",
        "or eax, 0x200",
        "mov cr4, rax",
        "mov rax, {low}",
        "movq xmm15, rax",
        "lea rbx, [rip + 2f]",
        "mov al, [{device}]",
        "2: movups [{data}], xmm0",
        "movups [{data} + 16], xmm15",
        "hlt",
        ; low = const LOW, device = const layout::END, data = const layout::DATA,
    ])?;
    guest.intercept(0, InterceptKind::Memory)?;
    guest.state(0)?;
    let page = guest.shared(0);
    let mut vectors = page.vectors.load();
    let mut expected = [0; 32];
    expected[30] = LOW;
    equal("XMM registers", vectors.xmm, expected)?;
    for (n, word) in (1..).zip(&mut vectors.xmm) {
        *word = n;
    }
    page.vectors.store(&vectors);
    guest.emulate(0, |state| state.rip = state.gpr[3]);
    let mut reply = page.reply.load();
    reply.flags |= ReplyFlags::VECTORS.bits();
    page.reply.store(&reply);
    guest.halt(0)?;
    let stored: [u64; 4] = guest.ram.load(layout::DATA);
    equal("XMM0, XMM15", stored, [1, 2, 31, 32])?;
    // Without the flag they are the guest's own.
    guest.restart(|state| state.rip = state.gpr[3])?;
    page.vectors.store(&Vectors::default());
    guest.halt(0)?;
    guest.state(0)?;
    equal("XMM0", page.vectors.load().xmm[0], 1)?;
    guest.end()
}

fn xsetbv_is_undefined_without_osxsave() -> Outcome {
    let guest = Guest::new(code![
        "xor ecx, ecx",
        "xor edx, edx",
        "mov eax, 1",
        "lea rdi, [rip + 2f]",
        "mov [{notes} + 24], rdi",
        "xsetbv",
        "2: hlt",
        ; notes = const layout::NOTES,
    ])?;
    guest.halt(0)?;
    equal("exceptions", guest.exceptions().count(), 1)?;
    equal(
        "vector",
        guest.exceptions().last()[0],
        probe::INVALID_OPCODE,
    )?;
    guest.end()
}

fn a_bad_xcr0_faults() -> Outcome {
    let guest = Guest::new(code![
        "mov rcx, cr4",
        "or ecx, 0x40000",
        "mov cr4, rcx",
        "mov ecx, ebx",
        "lea rdi, [rip + 2f]",
        "mov [{notes} + 24], rdi",
        "xsetbv",
        "2: hlt",
        ; notes = const layout::NOTES,
    ])?;
    // x87 off; AVX without SSE; bits that no CPU has; another register.
    for (n, (index, low, high)) in (1..).zip([(0, 0, 0), (0, 5, 0), (0, 7, 1 << 30), (1, 7, 0)]) {
        guest.restart(|state| {
            state.gpr[0] = low;
            state.gpr[2] = high;
            state.gpr[3] = index;
        })?;
        guest.halt(0)?;
        equal("exceptions", guest.exceptions().count(), n)?;
        equal(
            "vector",
            guest.exceptions().last()[0],
            probe::GENERAL_PROTECTION,
        )?;
    }
    guest.end()
}

fn debug_registers_are_kept_apart() -> Outcome {
    let code = code![
        "mov dr0, rbx",
        "mov dr3, rbx",
        "2: out 0x80, al",
        "mov rcx, dr0",
        "mov rdx, dr3",
        "jmp 2b",
    ];
    let guests = [Guest::new(code)?, Guest::new(code)?];
    let values = [0x1111_0000, 0x2222_0000];
    for (guest, value) in guests.iter().zip(values) {
        guest.restart(|state| state.gpr[3] = value)?;
    }
    let own = [0x10, 0x20, 0x30, 0x40];
    cpu::set_debug_registers(own);
    for round in 0..4 {
        for (guest, value) in guests.iter().zip(values) {
            guest.port()?;
            equal("root's", cpu::debug_registers(), own)?;
            let state = guest.state(0)?;
            equal("in the state", (state.dr[0], state.dr[3]), (value, value))?;
            if round > 0 {
                equal("as read", (state.gpr[1], state.gpr[2]), (value, value))?;
            }
        }
    }
    guests.into_iter().try_for_each(Guest::end)
}

fn breakpoints_and_single_steps_are_the_guests() -> Outcome {
    const DEBUG: u64 = 1;
    let guest = Guest::new(code![
        "lea rax, [rip + 2f]",
        "mov dr0, rax",
        "lea rax, [rip + 3f]",
        "mov [{notes} + 24], rax",
        "mov eax, 0x402",
        "mov dr7, rax",
        "2: ud2",
        "3: mov rbx, dr6",
        "xor eax, eax",
        "mov dr7, rax",
        // The trap comes after the instruction, here one that exits; its handler does not return.
        "mov qword ptr [{notes} + 24], 0",
        "lea rsi, [rip + 4f]",
        "mov rdi, rbx",
        "pushfq",
        "or qword ptr [rsp], 0x100",
        "popfq",
        "cpuid",
        "4: ud2",
        ; notes = const layout::NOTES,
    ])?;
    guest.halt(0)?;
    equal("exceptions", guest.exceptions().count(), 2)?;
    let state = guest.state(0)?;
    equal("breakpoint 0", state.gpr[7] & 1, 1)?;
    let [vector, _, rip] = guest.exceptions().last();
    equal("vector, rip", (vector, rip), (DEBUG, state.gpr[6]))?;
    equal("single step", state.dr6 & 1 << 14, 1 << 14)?;
    guest.end()
}

/// STAR, LSTAR, CSTAR, SFMASK, FS base, GS base, kernel's GS base, SYSENTER's three, PAT, TSC_AUX.
const SWAPPED: [u32; 12] = [
    0xc000_0081,
    0xc000_0082,
    0xc000_0083,
    0xc000_0084,
    0xc000_0100,
    0xc000_0101,
    0xc000_0102,
    0x174,
    0x175,
    0x176,
    0x277,
    0xc000_0103,
];

fn roots_registers_are_its_own() -> Outcome {
    let read = || SWAPPED.map(|msr| probe::rdmsr(msr).unwrap_or(!0));
    let own = [
        0x0013_0008 << 32,
        0x1000,
        0x2000,
        0x4_0000,
        0x3000,
        0x4000,
        0x5000,
        8,
        0x6000,
        0x7000,
        0x0007_0406_0007_0406,
        5,
    ];
    for (msr, value) in SWAPPED.into_iter().zip(own) {
        equal("a write", probe::wrmsr(msr, value), Ok(0))?;
    }
    let guest = Guest::new(code!["out 0x80, al", "mov rbx, cr2", "hlt"])?;
    let state = colourful(&guest)?;
    guest.set_state(0, &state)?;
    guest.port()?;
    equal("root's registers", read(), own)?;
    guest.halt(0)?;
    equal("root's registers", read(), own)?;
    let after = guest.state(0)?;
    let guests = (
        after.star,
        after.kernel_gs_base,
        after.sysenter,
        after.tsc_aux,
    );
    let expected = (
        state.star,
        state.kernel_gs_base,
        state.sysenter,
        state.tsc_aux,
    );
    equal("the guest's", guests, expected)?;
    equal("its CR2", after.gpr[3], state.cr2)?;
    ensure("its bases", after.segment[5].base == state.segment[5].base)?;
    guest.end()
}
