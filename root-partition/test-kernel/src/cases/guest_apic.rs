//! A guest's local APIC by its registers: x2APIC's MSRs, and xAPIC's page with the worker between.

use guest_proto::Status;
use guest_proto::hypercall::Hypercall;
use guest_proto::vcpu_page::{InterceptFlags, InterceptKind, ReplyFlags};

use crate::guest::code::code;
use crate::guest::{Guest, Plan};
use crate::hv;
use crate::probe::GENERAL_PROTECTION;
use crate::report::{Outcome, cases, equal};

cases![
    x2apic_registers_follow_the_manual,
    the_apic_can_be_turned_off,
    an_xapic_read_comes_with_the_value,
    an_xapic_write_is_done_by_the_reply,
    a_wide_xapic_write_is_refused,
    the_workers_half_of_an_access_works,
    apic_registers_have_a_range,
];

const VECTOR: u8 = 0x61;

fn x2apic_registers_follow_the_manual() -> Outcome {
    let guest = Guest::for_msrs()?;
    let gp = Some([GENERAL_PROTECTION, 0]);
    for (register, value) in [(0x802, 0), (0x808, 0), (0x80f, 0xff), (0x81c, 0)] {
        equal("a read", guest.rdmsr(register)?, None)?;
        equal("value", guest.state(0)?.gpr[0], value)?;
    }
    equal("version", guest.rdmsr(0x803)?, None)?;
    equal("version", guest.state(0)?.gpr[0] & 0xff, 0x14)?;
    // Read-only; reserved bits; write-only; none (the DFR, ICR's upper half, beyond the last).
    for (register, value) in [
        (0x802, 1),
        (0x803, 1),
        (0x80b, 1),
        (0x808, 0x100),
        (0x832, 1 << 20),
    ] {
        equal("a write", guest.wrmsr(register, value)?, gp)?;
    }
    equal("EOI is not read", guest.rdmsr(0x80b)?, gp)?;
    for register in [0x80e, 0x831, 0x840, 0x8ff] {
        equal("a read", guest.rdmsr(register)?, gp)?;
        equal("a write", guest.wrmsr(register, 0)?, gp)?;
    }
    guest.end()
}

fn the_apic_can_be_turned_off() -> Outcome {
    const APIC_BASE: u32 = 0x1b;
    let guest = Guest::for_msrs()?;
    let gp = Some([GENERAL_PROTECTION, 0]);
    equal("x2APIC to xAPIC", guest.wrmsr(APIC_BASE, 0xfee0_0900)?, gp)?;
    equal("another base", guest.wrmsr(APIC_BASE, 0xfed0_0d00)?, gp)?;
    equal("off", guest.wrmsr(APIC_BASE, 0xfee0_0100)?, None)?;
    equal("no registers", guest.rdmsr(0x802)?, gp)?;
    equal("off to x2APIC", guest.wrmsr(APIC_BASE, 0xfee0_0d00)?, gp)?;
    equal("on", guest.wrmsr(APIC_BASE, 0xfee0_0900)?, None)?;
    equal("on", guest.state(0)?.apic_base, 0xfee0_0900)?;
    guest.end()
}

fn xapic(code: &[u8]) -> Outcome<Guest> {
    Guest::build(&Plan {
        x2apic: false,
        ..Plan::new(code)
    })
}

const APIC_ACCESS: u16 = InterceptFlags::STATE.bits() | InterceptFlags::APIC.bits();

/// Goes behind the guest's instruction of `length` bytes, and has `value` written to the register of the intercept.
fn reply_with_write(guest: &Guest, length: u64, value: u64) {
    guest.emulate(0, |state| state.rip += length);
    let page = guest.shared(0);
    let mut reply = page.reply.load();
    reply.flags |= ReplyFlags::APIC.bits();
    reply.data = value;
    page.reply.store(&reply);
}

fn an_xapic_read_comes_with_the_value() -> Outcome {
    let guest = xapic(code!["mov ebx, 0xfee00000", "mov eax, [rbx + 0x30]", "hlt",])?;
    let intercept = guest.intercept(0, InterceptKind::Memory)?;
    equal("address", intercept.address, 0xfee0_0030)?;
    equal("flags", intercept.flags, APIC_ACCESS)?;
    equal("version", intercept.data & 0xff, 0x14)?;
    guest.emulate(0, |state| state.rip += 3);
    guest.halt(0)?;
    guest.end()?;
    // The page behind it is not the APIC's.
    let guest = xapic(code!["mov ebx, 0xfee01000", "mov eax, [rbx + 0x30]", "hlt",])?;
    let intercept = guest.intercept(0, InterceptKind::Memory)?;
    equal("flags", intercept.flags, InterceptFlags::STATE.bits())?;
    equal("data", intercept.data, 0)?;
    guest.end()
}

fn an_xapic_write_is_done_by_the_reply() -> Outcome {
    // Enables the APIC, sends itself an interrupt, and ends the interrupt.
    let guest = xapic(code![
        "mov ebx, 0xfee00000",
        "sti",
        "mov [rbx + 0xf0], eax",
        "mov [rbx + 0x300], eax",
        "out 0x80, al",
        "mov [rbx + 0xb0], eax",
        "hlt",
    ])?;
    for (register, value) in [(0xf0, 0x1ff), (0x300, 0x4_0000 | u64::from(VECTOR))] {
        let intercept = guest.intercept(0, InterceptKind::Memory)?;
        equal("address", intercept.address, 0xfee0_0000 + register)?;
        equal("flags", intercept.flags, APIC_ACCESS)?;
        reply_with_write(&guest, 6, value);
    }
    guest.port()?;
    equal("interrupts", guest.interrupts(VECTOR), 1)?;
    let in_service = 0x100 + 0x10 * u64::from(VECTOR / 32);
    let bit = 1 << (VECTOR % 32);
    equal("in service", apic(&guest, in_service, 0).ok()?, bit)?;
    let intercept = guest.intercept(0, InterceptKind::Memory)?;
    equal("address", intercept.address, 0xfee0_00b0)?;
    reply_with_write(&guest, 6, 0);
    guest.halt(0)?;
    equal("in service after EOI", apic(&guest, in_service, 0).ok()?, 0)?;
    guest.end()
}

fn a_wide_xapic_write_is_refused() -> Outcome {
    let guest = xapic(code!["mov ebx, 0xfee00080", "mov [rbx], eax", "hlt"])?;
    guest.intercept(0, InterceptKind::Memory)?;
    reply_with_write(&guest, 2, 1 << 32);
    hv::call(Hypercall::VcpuRun, [guest.id, 0]).is(Status::InvalidArgument)?;
    reply_with_write(&guest, 0, 0x20);
    guest.halt(0)?;
    equal("task priority", apic(&guest, 0x80, 0).ok()?, 0x20)?;
    guest.end()
}

fn apic(guest: &Guest, register: u64, value: u64) -> hv::Answer {
    hv::call(Hypercall::VcpuApic, [guest.id, 0, register, value])
}

const WRITE: u64 = 1 << 31;

fn the_workers_half_of_an_access_works() -> Outcome {
    let guest = xapic(code!["sti", "2: hlt", "jmp 2b"])?;
    equal("id", apic(&guest, 0x20, 0).ok()?, 0)?;
    equal("version", apic(&guest, 0x30, 0).ok()? & 0xff, 0x14)?;
    apic(&guest, WRITE | 0xf0, 0x1ff).ok()?;
    equal("spurious vector", apic(&guest, 0xf0, 0).ok()?, 0x1ff)?;
    apic(&guest, WRITE | 0x80, 0x20).ok()?;
    equal("task priority", apic(&guest, 0x80, 0).ok()?, 0x20)?;
    guest.halt(0)?;
    // ICR with the shorthand "self".
    apic(&guest, WRITE | 0x310, 0).ok()?;
    apic(&guest, WRITE | 0x300, 0x4_0000 | u64::from(VECTOR)).ok()?;
    guest.halt(0)?;
    equal("interrupts", guest.interrupts(VECTOR), 1)?;
    let in_service = 0x100 + 0x10 * u64::from(VECTOR / 32);
    let bit = 1 << (VECTOR % 32);
    equal("in service", apic(&guest, in_service, 0).ok()?, bit)?;
    apic(&guest, WRITE | 0xb0, 0).ok()?;
    equal("in service after EOI", apic(&guest, in_service, 0).ok()?, 0)?;
    guest.end()
}

fn apic_registers_have_a_range() -> Outcome {
    let guest = xapic(code!["hlt"])?;
    for register in [
        1,
        8,
        0x21,
        0x1000,
        WRITE | 0x1000,
        WRITE | 4,
        1 << 32,
        u64::MAX,
    ] {
        let answer = apic(&guest, register, 0);
        if answer.status() != Some(Status::InvalidArgument) {
            answer.is(Status::OutOfRange)?;
        }
    }
    let wide = apic(&guest, WRITE | 0x80, 1 << 32);
    if wide.status() != Some(Status::InvalidArgument) {
        wide.is(Status::OutOfRange)?;
    }
    guest.end()?;
    // In x2APIC mode there is no page to access.
    let guest = Guest::new(code!["hlt"])?;
    apic(&guest, 0x20, 0).is(Status::InvalidState)?;
    guest.end()
}
