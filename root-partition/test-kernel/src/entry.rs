//! The setup header of a bzImage, and from its entry points to Rust.
#![allow(unsafe_code, reason = "entry points that assembly calls")]

use core::arch::global_asm;

/// Bytes of stack of each of the two CPUs.
const STACK: usize = 128 * 1024;

#[repr(C, align(4096))]
struct Stack(core::cell::UnsafeCell<[u8; STACK]>);

// SAFETY: only the CPU whose stack it is uses it, through its stack pointer.
unsafe impl Sync for Stack {}

static STACKS: [Stack; 2] = [const { Stack(core::cell::UnsafeCell::new([0; STACK])) }; 2];

global_asm!(
    r#"
.section .setup, "a"
setup:
    .org setup + 0x1f1
    .byte 1                         /* setup_sects */
    .word 0
    .long code_paragraphs            /* syssize */
    .org setup + 0x1fe
    .word 0xaa55
    .org setup + 0x202
    .ascii "HdrS"
    .word 0x20f                     /* version 2.15 */
    .org setup + 0x22c
    .long 0x7fffffff                /* initrd_addr_max */
    .long 0x1000000                 /* kernel_alignment */
    .byte 0, 0                      /* not relocatable */
    .word 1                         /* xloadflags: 64-bit entry point */
    .org setup + 0x258
    .quad 0x1000000                 /* pref_address */
    .long memory_size               /* init_size */

    .org setup + 0x400

.section .entry, "ax"
.global entry64
entry64:
    cli
    cld
    mov rax, rsi
    mov rdi, offset load_end
    mov rcx, offset memory_end
    sub rcx, rdi
    mov rdx, rax
    xor eax, eax
    rep stosb
    mov rdi, rdx
    mov rsp, offset {stacks} + {stack}
    xor ebp, ebp
    call {first}
    ud2

entry64_second:
    cli
    cld
    mov rsp, offset {stacks} + 2 * {stack}
    xor ebp, ebp
    call {second}
    ud2
.text
"#,
    stacks = sym STACKS,
    stack = const STACK,
    first = sym first,
    second = sym second,
);

unsafe extern "C" {
    static entry64_second: u8;
}

extern "C" fn first(boot_params: u64) -> ! {
    test_kernel::first(boot_params, (&raw const entry64_second) as u64)
}

extern "C" fn second() -> ! {
    test_kernel::second::main()
}
