//! The CPU: instructions that Rust has no words for, and SVM.
#![allow(unsafe_code, reason = "privileged instructions")]

use core::arch::asm;
use core::arch::x86_64::CpuidResult;

pub mod descriptors;
mod exception;
pub mod extended;
pub mod hw;
pub mod memory;
pub mod paging;
pub mod port;
mod speculation;
pub mod stack;
pub mod svm;

pub use exception::try_read_msr;
pub use extended::predict_anew;
pub use speculation::Speculation;
pub use svm::{Cpu, guest_efer};

/// Stops this CPU for good.
pub fn halt() -> ! {
    loop {
        // SAFETY: halting touches no memory.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
}

/// Shuts this CPU down as a triple fault does, upon which the chipset resets the machine.
pub fn shut_down() -> ! {
    let no_table = [0_u8; 10];
    // SAFETY: nothing runs after it.
    unsafe { asm!("lidt [{}]", "ud2", in(reg) &raw const no_table, options(noreturn)) }
}

/// CPUID on this CPU.
pub fn cpuid(leaf: u32, subleaf: u32) -> CpuidResult {
    core::arch::x86_64::__cpuid_count(leaf, subleaf)
}

/// This CPU's initial APIC id.
pub fn apic_id() -> u32 {
    if cpuid(0, 0).eax >= 0xb && cpuid(0xb, 0).ebx != 0 {
        cpuid(0xb, 0).edx
    } else {
        cpuid(1, 0).ebx >> 24
    }
}

/// Whether the CPU opens the window for interrupts when CR8 lets a virtual interrupt's class in
/// (APM vol. 2 §15.21.2). QEMU's TCG opens it for a class that is held up, too, and aborts where a
/// write to CR8 opens it (10.0: `cpu_interrupt` without its lock): there, what the task priority
/// holds up waits for the next exit.
pub fn has_tpr_window() -> bool {
    const TCG: [&[u8; 4]; 3] = [b"TCGT", b"CGTC", b"GTCG"];
    let leaf = cpuid(0x4000_0000, 0);
    [leaf.ebx, leaf.ecx, leaf.edx] != TCG.map(|word| u32::from_le_bytes(*word))
}

/// Time stamp counter.
pub fn tsc() -> u64 {
    // SAFETY: RDTSC is available on every 64-bit CPU, and reads only the counter.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Reads a model-specific register that every CPU with SVM has.
fn read_msr(msr: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: private; the callers name architectural registers that exist.
    unsafe {
        asm!("rdmsr", in("ecx") msr, out("eax") low, out("edx") high, options(nomem, nostack));
    }
    u64::from(high) << 32 | u64::from(low)
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

/// # Safety
///
/// The value must not take from the microvisor what it relies on.
unsafe fn write_msr(msr: u32, value: u64) {
    // SAFETY: the caller's.
    unsafe {
        asm!(
            "wrmsr", in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32,
            options(nostack)
        );
    }
}
