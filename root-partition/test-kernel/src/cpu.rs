//! Instructions that Rust has no words for.
#![allow(unsafe_code, reason = "privileged instructions")]

use core::arch::asm;
use core::arch::x86_64::CpuidResult;

/// Stops this CPU for good.
pub fn halt() -> ! {
    loop {
        // SAFETY: halting touches no memory.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
}

/// Reads a byte from a port.
pub fn read_port(port: u16) -> u8 {
    let value;
    // SAFETY: no port that is named here touches memory.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack)) };
    value
}

/// Writes a byte to a port.
pub fn write_port(port: u16, value: u8) {
    // SAFETY: as in `read_port`.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack)) };
}

/// Writes two bytes to a port and the next.
pub fn write_port16(port: u16, value: u16) {
    // SAFETY: as in `read_port`.
    unsafe { asm!("out dx, ax", in("dx") port, in("ax") value, options(nomem, nostack)) };
}

/// Writes four bytes to a port and the next three.
pub fn write_port32(port: u16, value: u32) {
    // SAFETY: as in `read_port`.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack)) };
}

/// CPUID.
pub fn cpuid(leaf: u32, subleaf: u32) -> CpuidResult {
    core::arch::x86_64::__cpuid_count(leaf, subleaf)
}

/// Time-stamp counter.
pub fn tsc() -> u64 {
    // SAFETY: every 64-bit CPU has it, and it reads only the counter.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// XCR0.
pub fn xcr0() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: `enable_vectors` has set CR4.OSXSAVE, without which nobody asks.
    unsafe {
        asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// DR0 to DR3.
pub fn debug_registers() -> [u64; 4] {
    let (a, b, c, d);
    // SAFETY: reading changes nothing.
    unsafe {
        asm!("mov {}, dr0", "mov {}, dr1", "mov {}, dr2", "mov {}, dr3",
            out(reg) a, out(reg) b, out(reg) c, out(reg) d, options(nomem, nostack));
    }
    [a, b, c, d]
}

/// Sets DR0 to DR3, which DR7 does not enable.
pub fn set_debug_registers([a, b, c, d]: [u64; 4]) {
    // SAFETY: no breakpoint is enabled.
    unsafe {
        asm!("mov dr0, {}", "mov dr1, {}", "mov dr2, {}", "mov dr3, {}",
            in(reg) a, in(reg) b, in(reg) c, in(reg) d, options(nomem, nostack));
    }
}

/// Executes `vmmcall` with a number and arguments; RAX and RDX.
pub fn vmmcall(number: u64, args: [u64; 5]) -> (u64, u64) {
    let (status, value);
    // SAFETY: what a call takes away from this kernel is memory that `memory` handed out for it;
    // it may write pages behind the compiler's back, so memory is clobbered.
    unsafe {
        asm!(
            "vmmcall",
            inlateout("rax") number => status,
            in("rdi") args[0],
            in("rsi") args[1],
            inlateout("rdx") args[2] => value,
            in("r10") args[3],
            in("r8") args[4],
            options(nostack)
        );
    }
    (status, value)
}

/// Opens a window for interrupts that are pending.
pub fn take_interrupts() {
    // SAFETY: the handlers of `trap` keep every register, and this kernel is built without a red
    // zone.
    unsafe { asm!("sti", "nop", "nop", "cli") };
}

/// Lets SSE and AVX instructions execute, as far as the CPU has them; XCR0, or 0 without XSAVE.
pub fn enable_vectors() -> u64 {
    const XSAVE: u32 = 1 << 26;
    const OSFXSR: u64 = 0b11 << 9;
    const OSXSAVE: u64 = 1 << 18;
    let has_xsave = cpuid(1, 0).ecx & XSAVE != 0;
    let enabled = OSFXSR | if has_xsave { OSXSAVE } else { 0 };
    // SAFETY: this kernel is built without vector instructions; nothing depends on them faulting.
    unsafe {
        asm!(
            "mov {t}, cr0", "and {t}, ~0xc", "or {t}, 2", "mov cr0, {t}",
            "mov {t}, cr4", "or {t}, {bits}", "mov cr4, {t}",
            t = out(reg) _, bits = in(reg) enabled, options(nostack)
        );
    }
    if !has_xsave {
        return 0;
    }
    let xcr0 = u64::from(cpuid(0xd, 0).eax) & 0b111;
    // SAFETY: the bits are among those that the CPU names.
    unsafe {
        asm!("xsetbv", in("ecx") 0, in("eax") xcr0 as u32, in("edx") 0, options(nostack));
    }
    xcr0
}
