//! What a guest does, and the exit that root sees.

use guest_proto::hypercall::CALLS;
use guest_proto::vcpu_page::{InterceptFlags as Flags, InterceptKind};

use crate::guest::code::code;
use crate::guest::{Exit, Guest, Mode, Plan, layout};
use crate::hv;
use crate::report::{Outcome, cases, ensure, equal};

cases![
    a_halt_ends_the_turn,
    a_triple_fault_is_a_shutdown,
    registers_stay_over_a_thousand_exits,
    real_mode_runs,
    protected_mode_runs,
    a_guests_hypercalls_do_nothing,
];

fn a_halt_ends_the_turn() -> Outcome {
    let guest = Guest::new(code!["hlt", "mov dx, 0x501", "out dx, al"])?;
    guest.halt(0)?;
    equal("rip", guest.state(0)?.rip, layout::CODE + 1)?;
    // Nothing woke it.
    guest.halt(0)?;
    guest.end()
}

fn a_triple_fault_is_a_shutdown() -> Outcome {
    let guest = Guest::new(code!["push 0", "push 0", "lidt [rsp]", "ud2",])?;
    let intercept = guest.intercept(0, InterceptKind::Shutdown)?;
    ensure(
        "it has the state",
        intercept.flags & Flags::STATE.bits() != 0,
    )?;
    equal("rip", guest.shared(0).state.load().rip, intercept.rip)?;
    // It is down for good, or until its state is set.
    guest.intercept(0, InterceptKind::Shutdown)?;
    guest.end()
}

fn registers_stay_over_a_thousand_exits() -> Outcome {
    let guest = Guest::new(code!["2: out 0x80, al", "dec ecx", "jnz 2b", "hlt",])?;
    let mut start = guest.state(0)?;
    for (n, gpr) in start.gpr.iter_mut().enumerate().filter(|(n, _)| *n != 4) {
        *gpr = 0x0101_0101_0101_0101 * (n as u64 + 1);
    }
    start.gpr[1] = 1000;
    guest.set_state(0, &start)?;
    for _ in 0..1000 {
        equal("data", guest.port()?.data, 1)?;
    }
    guest.halt(0)?;
    start.gpr[1] = 0;
    equal("registers", guest.state(0)?.gpr, start.gpr)?;
    guest.end()
}

fn run_mode(mode: Mode, code: &[u8]) -> Outcome {
    let guest = Guest::build(&Plan {
        mode,
        ..Plan::new(code)
    })?;
    let intercept = guest.port()?;
    let got = (intercept.address, intercept.size, intercept.data);
    equal("port, size, data", got, (0x501, 2, 0x1234))?;
    guest.halt(0)?;
    guest.end()
}

fn real_mode_runs() -> Outcome {
    run_mode(
        Mode::Real,
        code![
            ".code16",
            "mov dx, 0x501",
            "mov ax, 0x1234",
            "out dx, ax",
            "hlt"
        ],
    )
}

fn protected_mode_runs() -> Outcome {
    run_mode(
        Mode::Protected,
        code![
            ".code32",
            "mov edx, 0x501",
            "mov eax, 0x1234",
            "out dx, ax",
            "hlt"
        ],
    )
}

fn a_guests_hypercalls_do_nothing() -> Outcome {
    /// KVM's answer to a hypercall that it does not have.
    const KVM_ENOSYS: u64 = 1000_u64.wrapping_neg();
    // The number is in RAX; RBX to R15 must not change.
    let guest = Guest::new(code!["2: vmmcall", "out 0x80, al", "jmp 2b",])?;
    let partitions = hv::machine_info()?.partitions;
    let mut before = guest.state(0)?;
    let kvm = [0, 1, 5, 9, 11, 0xff];
    for number in CALLS.iter().map(|call| call.call.raw()).chain(kvm) {
        before.gpr[0] = number;
        before.rip = layout::CODE;
        guest.set_state(0, &before)?;
        match guest.run(0)? {
            Exit::Intercept(InterceptKind::Port, _) => {}
            other => return guest.not(other, "a port access after the call"),
        }
        let mut after = guest.state(0)?;
        equal("status", after.gpr[0], KVM_ENOSYS)?;
        after.gpr[0] = number;
        equal("other registers", after.gpr, before.gpr)?;
    }
    equal("partitions", hv::machine_info()?.partitions, partitions)?;
    guest.end()
}
