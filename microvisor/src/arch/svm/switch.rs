//! The world switch: VMRUN, and the registers that it does not switch by itself.
#![allow(unsafe_code, reason = "the world switch")]

use core::arch::naked_asm;

use super::registers::Registers;
use crate::memory::Hpa;

/// Loads `registers`, runs the control block at physical address `vmcb`, stores `registers`.
///
/// GIF is 0 before and after: an interrupt that is pending stays so until VM 0 takes it. IF is 1
/// at VMRUN, because it decides whether a physical interrupt ends a guest's turn.
///
/// `host` is the physical address of the state that VMSAVE stored on this CPU: FS, GS, TR, LDTR and the
/// registers of SYSCALL and SYSENTER, which VMRUN does not switch.
///
/// # Safety
///
/// `vmcb` is a complete control block whose guest cannot reach the microvisor's memory; `host` is
/// this CPU's.
#[unsafe(naked)]
pub(super) unsafe extern "sysv64" fn enter(vmcb: Hpa, registers: &mut Registers, host: Hpa) {
    naked_asm!(
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "push rdx",
        "push rsi",
        "mov rax, rdi",
        "clgi",
        "sti",
        "mov rbx, [rsi]",
        "mov rcx, [rsi + 0x08]",
        "mov rdx, [rsi + 0x10]",
        "mov rdi, [rsi + 0x20]",
        "mov rbp, [rsi + 0x28]",
        "mov r8,  [rsi + 0x30]",
        "mov r9,  [rsi + 0x38]",
        "mov r10, [rsi + 0x40]",
        "mov r11, [rsi + 0x48]",
        "mov r12, [rsi + 0x50]",
        "mov r13, [rsi + 0x58]",
        "mov r14, [rsi + 0x60]",
        "mov r15, [rsi + 0x68]",
        "mov rsi, [rsi + 0x18]",
        "vmload rax",
        "vmrun rax",
        "cli",
        // The task register leads an exception to its stack, so it must not stay the guest's.
        "vmsave rax",
        "mov rax, [rsp + 8]",
        "vmload rax",
        "push rsi",
        "mov rsi, [rsp + 8]",
        "mov [rsi], rbx",
        "mov [rsi + 0x08], rcx",
        "mov [rsi + 0x10], rdx",
        "mov [rsi + 0x20], rdi",
        "mov [rsi + 0x28], rbp",
        "mov [rsi + 0x30], r8",
        "mov [rsi + 0x38], r9",
        "mov [rsi + 0x40], r10",
        "mov [rsi + 0x48], r11",
        "mov [rsi + 0x50], r12",
        "mov [rsi + 0x58], r13",
        "mov [rsi + 0x60], r14",
        "mov [rsi + 0x68], r15",
        "pop rbx",
        "mov [rsi + 0x18], rbx",
        "pop rsi",
        "pop rdx",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
    )
}
