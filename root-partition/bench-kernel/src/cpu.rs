//! Instructions that Rust has no words for, beside those of the test kernel.
#![allow(unsafe_code, reason = "privileged instructions")]

use core::arch::asm;

use x86_64::registers::control::Cr3;
use x86_64::registers::model_specific::Msr;

pub use test_kernel::cpu::{cpuid, read_port, tsc, write_port};

/// Reads a model-specific register that this CPU has.
pub fn read_msr(register: u32) -> u64 {
    // SAFETY: reading one of the registers that are named here has no effect.
    unsafe { Msr::new(register).read() }
}

/// Writes a model-specific register that this CPU has.
pub fn write_msr(register: u32, value: u64) {
    // SAFETY: only registers of the local APIC are named here; the interrupts that they cause have handlers.
    unsafe { Msr::new(register).write(value) };
}

/// Writes CR3 with the value that it has.
pub fn reload_page_tables() {
    let (frame, flags) = Cr3::read();
    // SAFETY: the tables that are in use stay in use.
    unsafe { Cr3::write(frame, flags) };
}

/// Executes `vmmcall` with a number that no hypervisor knows.
pub fn hypercall() {
    // SAFETY: a hypervisor answers an unknown number in RAX and changes nothing else.
    unsafe { asm!("vmmcall", inlateout("rax") 0x4000_0000_u64 => _, options(nostack)) };
}

/// Tells QEMU's plugin that counting begins.
#[inline(always)]
pub fn mark_begin() {
    // SAFETY: a NOP with a displacement of "beg".
    unsafe {
        asm!(
            ".byte 0x0f, 0x1f, 0x84, 0x00, 0x62, 0x65, 0x67, 0x7f",
            options(nostack)
        )
    };
}

/// Tells QEMU's plugin that counting ends.
#[inline(always)]
pub fn mark_end() {
    // SAFETY: a NOP with a displacement of "end".
    unsafe {
        asm!(
            ".byte 0x0f, 0x1f, 0x84, 0x00, 0x65, 0x6e, 0x64, 0x7f",
            options(nostack)
        )
    };
}

/// A place for a command line in the image.
#[repr(C)]
struct BuiltIn {
    /// By this it is found.
    mark: [u8; 16],
    line: [u8; 496],
}

/// The command line where the loader gives none: `xtask/src/bench/xen.rs` writes it.
static BUILT_IN: BuiltIn = BuiltIn {
    mark: *b"command line is:",
    line: [b' '; 496],
};

/// Returns the command line in PVH's start information (Xen, `public/arch-x86/hvm/start_info.h`), or the image's own if
/// that is empty; nothing if it is not UTF-8.
pub fn command_line(start_info: u64) -> &'static str {
    const COMMAND_LINE: u64 = 24;
    let address: u32 = read(start_info + COMMAND_LINE);
    let line = match address {
        0 => c"",
        // SAFETY: the loader put a string with a final zero there, in memory that this kernel does not use.
        _ => unsafe { core::ffi::CStr::from_ptr(u64::from(address) as *const _) },
    };
    let line = match line.is_empty() {
        // The compiler must not take it for what it was when it was compiled.
        true => &core::hint::black_box(&BUILT_IN).line,
        false => line.to_bytes(),
    };
    core::str::from_utf8(line).unwrap_or_default()
}

/// Ends the machine, which every hypervisor does after a triple fault.
pub fn triple_fault() -> ! {
    let no_table = [0_u16; 5];
    // SAFETY: nothing runs after it.
    unsafe { asm!("lidt [{}]", "ud2", in(reg) &no_table, options(noreturn)) };
}

/// Reads four bytes from a port and the next three.
pub fn read_port32(port: u16) -> u32 {
    let value;
    // SAFETY: no port that is named here touches memory.
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack)) };
    value
}

/// A number that one access reads or writes.
pub trait Word: Copy {}

impl Word for u8 {}
impl Word for u16 {}
impl Word for u32 {}
impl Word for u64 {}

/// Reads device registers or memory.
#[inline(always)]
pub fn read<W: Word>(address: u64) -> W {
    // SAFETY: all of the lower 4 GiB is mapped; a read there has no effect on this kernel.
    unsafe { (address as *const W).read_volatile() }
}

/// Writes device registers, or memory that this kernel does not use for anything else.
#[inline(always)]
pub fn write<W: Word>(address: u64, value: W) {
    // SAFETY: as in `read`; the callers' addresses are those of devices, or outside of the kernel's image.
    unsafe { (address as *mut W).write_volatile(value) };
}

/// Copies a KiB from one place to another, in 128 steps of eight bytes. The callers' memory is above the kernel's image.
pub fn copy_kib(from: u64, to: u64) {
    // SAFETY: mapped memory that this kernel does not use for anything else.
    unsafe {
        asm!("rep movsq", inout("rsi") from => _, inout("rdi") to => _, inout("rcx") 128_u64 => _,
            options(nostack));
    }
}
