//! This CPU's local APIC, in xAPIC mode as firmware leaves it: root's own, not a guest's.
#![allow(unsafe_code, reason = "the local APIC's registers")]

use crate::cpu;

/// Vector of the timer.
pub const TIMER: u8 = 0x40;
/// Vector of [`send`].
pub const KICK: u8 = 0x41;

const PAGE: u64 = 0xfee0_0000;
const END_OF_INTERRUPT: u64 = 0xb0;
const SPURIOUS: u64 = 0xf0;
const COMMAND: u64 = 0x300;
const COMMAND_DESTINATION: u64 = 0x310;
const TIMER_LVT: u64 = 0x320;
const LINT0: u64 = 0x350;
const TIMER_INITIAL: u64 = 0x380;
const TIMER_DIVIDE: u64 = 0x3e0;
const MASKED: u32 = 1 << 16;

fn write(register: u64, value: u32) {
    // SAFETY: identity mapped registers; what is written makes interrupts come that `trap` takes.
    unsafe { ((PAGE + register) as *mut u32).write_volatile(value) };
}

/// Turns it on, with nothing that interrupts; and the legacy interrupt controllers off.
pub fn init() {
    const ENABLED: u32 = 0x1ff;
    for port in [0x21, 0xa1] {
        cpu::write_port(port, 0xff);
    }
    write(TIMER_LVT, MASKED);
    write(LINT0, MASKED);
    write(SPURIOUS, ENABLED);
}

/// Sends [`KICK`] to the CPU of this APIC id.
pub fn send(id: u32) {
    command(id, KICK.into());
}

/// Sends an NMI.
pub fn send_nmi(id: u32) {
    command(id, 0b100 << 8);
}

fn command(id: u32, command: u32) {
    write(COMMAND_DESTINATION, id << 24);
    write(COMMAND, command);
}

/// Ends the interrupt in service.
pub fn end_of_interrupt() {
    write(END_OF_INTERRUPT, 0);
}

/// One interrupt of [`TIMER`] after about so many ticks of the APIC's clock (QEMU: 1 GHz).
pub fn arm_timer(ticks: u64) {
    const DIVIDE_BY_1: u32 = 0b1011;
    const DIVIDE_BY_128: u32 = 0b1010;
    let (divide, count) = match u32::try_from(ticks) {
        Ok(ticks) => (DIVIDE_BY_1, ticks),
        Err(_) => (
            DIVIDE_BY_128,
            u32::try_from(ticks / 128).unwrap_or(u32::MAX),
        ),
    };
    write(TIMER_DIVIDE, divide);
    write(TIMER_LVT, u32::from(TIMER));
    write(TIMER_INITIAL, count);
}

/// Takes the timer back.
pub fn stop_timer() {
    write(TIMER_INITIAL, 0);
    write(TIMER_LVT, MASKED);
}
