//! The CPU: instructions that Rust has no words for, and SVM.
#![allow(unsafe_code, reason = "privileged instructions")]

use core::arch::asm;
use core::arch::x86_64::CpuidResult;

pub mod memory;
pub mod port;
pub mod svm;

/// Stops this CPU for good.
pub fn halt() -> ! {
    loop {
        // SAFETY: halting touches no memory.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
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
