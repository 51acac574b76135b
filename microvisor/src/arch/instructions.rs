//! Instructions for which Rust has no words.
#![allow(unsafe_code, reason = "privileged instructions")]

use core::arch::asm;
use core::arch::x86_64::CpuidResult;

use x86_64::VirtAddr;
use x86_64::instructions::port::Port;
use x86_64::instructions::tables::lidt;
use x86_64::instructions::{hlt, interrupts};
use x86_64::registers::model_specific::Msr;
use x86_64::structures::DescriptorTablePointer;

/// Stops this CPU for good.
pub fn halt() -> ! {
    loop {
        interrupts::disable();
        hlt();
    }
}

/// Shuts this CPU down as a triple fault does, upon which the chipset resets the machine.
pub fn shut_down() -> ! {
    let no_table = DescriptorTablePointer {
        limit: 0,
        base: VirtAddr::zero(),
    };
    // SAFETY: the exception that follows finds no handler, and ends this CPU.
    unsafe {
        lidt(&no_table);
        asm!("ud2", options(noreturn))
    }
}

/// Executes CPUID on this CPU.
pub fn cpuid(leaf: u32, subleaf: u32) -> CpuidResult {
    core::arch::x86_64::__cpuid_count(leaf, subleaf)
}

/// Returns this CPU's initial APIC id.
pub fn apic_id() -> u32 {
    if cpuid(0, 0).eax >= 0xb && cpuid(0xb, 0).ebx != 0 {
        cpuid(0xb, 0).edx
    } else {
        cpuid(1, 0).ebx >> 24
    }
}

/// Reads the time-stamp counter.
pub fn tsc() -> u64 {
    // SAFETY: RDTSC is available on every 64-bit CPU, and reads only the counter.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Reads a model-specific register that every CPU with SVM has.
pub(super) fn read_msr(number: u32) -> u64 {
    // SAFETY: the callers, all in `arch`, name architectural registers that exist.
    unsafe { Msr::new(number).read() }
}

/// Writes a model-specific register.
///
/// # Safety
///
/// The value must not take from the microvisor what it relies on.
pub(super) unsafe fn write_msr(number: u32, value: u64) {
    // SAFETY: the caller's.
    unsafe { Msr::new(number).write(value) };
}

/// Whether this CPU is in a machine check: MCG_STATUS.MCIP (APM vol. 2 §9.3.1).
pub fn in_machine_check() -> bool {
    const MCG_STATUS: u32 = 0x17a;
    const MCIP: u64 = 1 << 2;
    read_msr(MCG_STATUS) & MCIP != 0
}

/// Writes every cache back.
pub fn write_back_caches() {
    // SAFETY: changes no memory.
    unsafe { asm!("wbinvd", options(nostack)) };
}

/// Reads a byte from a port.
pub fn read_port(port: u16) -> u8 {
    // SAFETY: neither a port that the microvisor names nor one of root's that exits touches memory.
    unsafe { Port::new(port).read() }
}

/// Writes a byte to a port.
pub fn write_port(port: u16, value: u8) {
    // SAFETY: as in `read_port`.
    unsafe { Port::new(port).write(value) };
}
