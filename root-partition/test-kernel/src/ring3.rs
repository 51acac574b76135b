//! An excursion to ring 3: one hypercall from there, and back.
#![allow(unsafe_code, reason = "an excursion to ring 3")]

use core::arch::global_asm;
use core::sync::atomic::AtomicU64;

use crate::hv::Answer;
use crate::trap::{DATA, USER_CODE, USER_DATA};

/// Vector of the gate that leads back.
pub const BACK: u8 = 0x80;

static STACK: AtomicU64 = AtomicU64::new(0);

// RBX, which neither the call nor the gate changes, points to the registers.
global_asm!(
    r#"
.global test_ring3_back, test_ring3_call
test_ring3_call:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    mov [rip + {stack}], rsp
    mov rbx, rdi
    mov rcx, rsp
    push {user_data}
    push rcx
    push 2
    push {user_code}
    lea rcx, [rip + 1f]
    push rcx
    mov rax, [rbx]
    mov rdi, [rbx + 8]
    mov rsi, [rbx + 16]
    mov rdx, [rbx + 24]
    mov r10, [rbx + 32]
    mov r8, [rbx + 40]
    iretq
1:  vmmcall
    int 0x80
test_ring3_back:
    mov rsp, [rip + {stack}]
    mov ecx, {data}
    mov ss, ecx
    mov ds, ecx
    mov es, ecx
    mov [rbx], rax
    mov [rbx + 24], rdx
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret
"#,
    stack = sym STACK,
    user_data = const USER_DATA,
    user_code = const USER_CODE,
    data = const DATA,
);

unsafe extern "C" {
    static test_ring3_back: u8;
    fn test_ring3_call(registers: &mut [u64; 6]);
}

/// Where the gate leads.
pub fn back() -> u64 {
    &raw const test_ring3_back as u64
}

/// Makes a hypercall from ring 3. On the first CPU only.
pub fn call(number: u64, args: [u64; 5]) -> Answer {
    let [a, b, c, d, e] = args;
    let mut registers = [number, a, b, c, d, e];
    // SAFETY: the tables of `trap` are loaded, and interrupts are off.
    unsafe { test_ring3_call(&mut registers) };
    Answer {
        status: registers[0],
        value: registers[3],
    }
}
