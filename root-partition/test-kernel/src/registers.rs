//! A hypercall with a known value in every general register, to see which ones it changes.
#![allow(unsafe_code, reason = "an instruction with every register chosen")]

use core::arch::global_asm;

/// RAX RCX RDX RBX RBP RSI RDI R8 to R15.
pub type Registers = [u64; 15];

global_asm!(
    r#"
.global test_registers_call
test_registers_call:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    push rdi
    mov rax, [rdi]
    mov rcx, [rdi + 0x08]
    mov rdx, [rdi + 0x10]
    mov rbx, [rdi + 0x18]
    mov rbp, [rdi + 0x20]
    mov rsi, [rdi + 0x28]
    mov r8, [rdi + 0x38]
    mov r9, [rdi + 0x40]
    mov r10, [rdi + 0x48]
    mov r11, [rdi + 0x50]
    mov r12, [rdi + 0x58]
    mov r13, [rdi + 0x60]
    mov r14, [rdi + 0x68]
    mov r15, [rdi + 0x70]
    mov rdi, [rdi + 0x30]
    vmmcall
    xchg rdi, [rsp]
    mov [rdi], rax
    mov [rdi + 0x08], rcx
    mov [rdi + 0x10], rdx
    mov [rdi + 0x18], rbx
    mov [rdi + 0x20], rbp
    mov [rdi + 0x28], rsi
    mov [rdi + 0x38], r8
    mov [rdi + 0x40], r9
    mov [rdi + 0x48], r10
    mov [rdi + 0x50], r11
    mov [rdi + 0x58], r12
    mov [rdi + 0x60], r13
    mov [rdi + 0x68], r14
    mov [rdi + 0x70], r15
    pop rax
    mov [rdi + 0x30], rax
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret
"#
);

unsafe extern "C" {
    fn test_registers_call(registers: &mut Registers);
}

/// Executes `vmmcall` with these registers, and leaves what they are after it.
pub fn call(registers: &mut Registers) {
    // SAFETY: as in `cpu::vmmcall`; every register that the compiler relies on is restored.
    unsafe { test_registers_call(registers) };
}
