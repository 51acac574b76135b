//! Several virtual CPUs of one guest, on one physical CPU.

use guest_proto::vcpu_page::{InterceptKind, RunState};

use crate::guest::code::code;
use crate::guest::{Exit, Guest, Mode, Plan, layout, start};
use crate::report::{Outcome, cases, equal};

cases![
    a_second_cpu_waits_for_a_sipi,
    init_and_sipi_start_it,
    init_stops_one_that_runs,
    a_broadcast_starts_all,
    an_interrupt_to_another_kicks_it,
    a_message_by_logical_destination_reaches_both,
    init_to_the_boot_cpu_is_a_reset,
];

const VECTOR: u8 = 0x61;

fn two(code: &[u8], second: &[u8]) -> Outcome<Guest> {
    let guest = Guest::build(&Plan {
        vcpus: 2,
        ..Plan::new(code)
    })?;
    guest.ram.store(layout::SECOND, second);
    guest.end_interrupts();
    Ok(guest)
}

/// Makes the second virtual CPU run in 64-bit mode at [`layout::SECOND`], without a SIPI.
fn start_second(guest: &Guest) -> Outcome {
    let mut state = start::state(Mode::Long);
    state.rip = layout::SECOND;
    state.gpr[4] = layout::STACK + 0x1000;
    state.apic_base = guest.state(1)?.apic_base;
    guest.set_state(1, &state)
}

fn a_second_cpu_waits_for_a_sipi() -> Outcome {
    let guest = two(code!["hlt"], code!["ud2"])?;
    for _ in 0..2 {
        match guest.run(1)? {
            Exit::WaitForSipi => {}
            other => return guest.not(other, "a wait for a SIPI"),
        }
    }
    let state = guest.state(1)?;
    equal("run state", state.run_state, RunState::WaitForSipi.raw())?;
    guest.halt(0)?;
    guest.end()
}

fn init_and_sipi_start_it() -> Outcome {
    let guest = two(
        code![
            "mov ecx, 0x830",
            "mov edx, 1",
            "mov eax, 0x4500",
            "wrmsr",
            "mov eax, 0x4610",
            "wrmsr",
            "hlt",
        ],
        code![
            ".code16",
            "mov ax, cs",
            "mov dx, 0x501",
            "out dx, ax",
            "mov eax, cr0",
            "out dx, eax",
            "hlt",
        ],
    )?;
    equal("kicked", guest.run_to_halt(0)?.kicked, 1 << 1)?;
    let intercept = guest.intercept(1, InterceptKind::Port)?;
    let got = (intercept.address, intercept.data);
    equal("port, CS", got, (0x501, layout::SECOND >> 4))?;
    let cr0 = guest.intercept(1, InterceptKind::Port)?.data;
    equal("CR0: CD, NW, ET", cr0, 0x6000_0010)?;
    guest.halt(1)?;
    // A second SIPI changes nothing.
    guest.end()
}

fn init_stops_one_that_runs() -> Outcome {
    let guest = two(
        code![
            "mov ecx, 0x830",
            "mov edx, 1",
            "mov eax, 0x4610",
            "wrmsr",
            "out 0x80, al",
            "mov eax, 0x4500",
            "wrmsr",
            "out 0x80, al",
            "mov eax, 0x4610",
            "wrmsr",
            "hlt",
        ],
        code!["out 0x80, al", "hlt", "nop"],
    )?;
    let port = |vcpu| match guest.run_on(vcpu)? {
        (Exit::Intercept(InterceptKind::Port, _), _) => Ok(()),
        (other, _) => guest.not(other, "a port access"),
    };
    start_second(&guest)?;
    port(1)?;
    // A SIPI to one that does not wait for it is lost.
    port(0)?;
    guest.halt(1)?;
    port(0)?;
    match guest.run(1)? {
        Exit::WaitForSipi => {}
        other => return guest.not(other, "a wait for a SIPI"),
    }
    let state = guest.state(1)?;
    equal("paging, long mode", (state.cr0 >> 31, state.efer), (0, 0))?;
    equal("kicked", guest.run_to_halt(0)?.kicked, 1 << 1)?;
    port(1)?;
    equal("CS", guest.state(1)?.segment[1].selector, 0x1000)?;
    guest.end()
}

fn a_broadcast_starts_all() -> Outcome {
    const VCPUS: usize = 64;
    let guest = Guest::build(&Plan {
        vcpus: VCPUS,
        ..Plan::new(code![
            "mov ecx, 0x830",
            "xor edx, edx",
            "mov eax, 0xc4500",
            "wrmsr",
            "mov eax, 0xc4610",
            "wrmsr",
            "hlt",
        ])
    })?;
    guest.ram.store(
        layout::SECOND,
        code![
            ".code16",
            "mov eax, 1",
            "cpuid",
            "shr ebx, 24",
            "mov eax, ebx",
            "out 0x80, al",
        ],
    );
    equal("kicked", guest.run_to_halt(0)?.kicked, !1)?;
    for vcpu in 1..VCPUS {
        let id = guest.intercept(vcpu, InterceptKind::Port)?.data;
        equal("APIC id", id, vcpu as u64)?;
    }
    guest.end()
}

fn an_interrupt_to_another_kicks_it() -> Outcome {
    let guest = two(
        code![
            "mov ecx, 0x830",
            "mov edx, 1",
            "mov eax, {vector}",
            "wrmsr",
            "hlt",
            ; vector = const VECTOR,
        ],
        code![
            "mov ecx, 0x80f",
            "mov eax, 0x1ff",
            "xor edx, edx",
            "wrmsr",
            "sti",
            "2: hlt",
            "jmp 2b",
        ],
    )?;
    start_second(&guest)?;
    guest.halt(1)?;
    equal("kicked", guest.run_to_halt(0)?.kicked, 1 << 1)?;
    guest.halt(1)?;
    equal("interrupts", guest.interrupts(VECTOR), 1)?;
    guest.end()
}

fn a_message_by_logical_destination_reaches_both() -> Outcome {
    // x2APIC: cluster 0, bits 0 and 1. The first is reached by its own write.
    let guest = two(
        code![
            "mov ecx, 0x80f",
            "mov eax, 0x1ff",
            "xor edx, edx",
            "wrmsr",
            "sti",
            "mov ecx, 0x830",
            "mov eax, 0x800 + {vector}",
            "mov edx, 3",
            "wrmsr",
            "nop",
            "hlt",
            ; vector = const VECTOR,
        ],
        code![
            "mov ecx, 0x80f",
            "mov eax, 0x1ff",
            "xor edx, edx",
            "wrmsr",
            "sti",
            "2: hlt",
            "jmp 2b",
        ],
    )?;
    start_second(&guest)?;
    guest.halt(1)?;
    let halt = guest.run_to_halt(0)?;
    equal("kicked, the other at least", halt.kicked & 1 << 1, 1 << 1)?;
    equal("interrupts of the first", guest.interrupts(VECTOR), 1)?;
    guest.halt(1)?;
    equal("interrupts of both", guest.interrupts(VECTOR), 2)?;
    guest.end()
}

fn init_to_the_boot_cpu_is_a_reset() -> Outcome {
    let guest = two(
        code!["hlt"],
        code![
            "mov ecx, 0x830",
            "xor edx, edx",
            "mov eax, 0x4500",
            "wrmsr",
            "hlt",
        ],
    )?;
    start_second(&guest)?;
    guest.halt(0)?;
    equal("kicked", guest.run_to_halt(1)?.kicked, 1)?;
    guest.intercept(0, InterceptKind::Reset)?;
    guest.end()
}
