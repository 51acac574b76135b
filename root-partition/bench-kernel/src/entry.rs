//! The PVH entry point, and from there to Rust in 64-bit mode.
#![allow(unsafe_code, reason = "an entry point that assembly calls")]

use core::arch::global_asm;

/// Bytes of stack.
const STACK: usize = 64 * 1024;

#[repr(C, align(4096))]
struct Stack(core::cell::UnsafeCell<[u8; STACK]>);

// SAFETY: only the one CPU uses it, through its stack pointer.
unsafe impl Sync for Stack {}

static STACK_MEMORY: Stack = Stack(core::cell::UnsafeCell::new([0; STACK]));

// The page tables map 4 GiB one to one, in pages of 1 GiB.
global_asm!(
    r#"
.section .note.pvh, "a", @note
    .long 4, 4, 18                  /* XEN_ELFNOTE_PHYS32_ENTRY */
    .asciz "Xen"
    .long entry32

.section .data.tables, "aw"
.balign 4096
pml4:
    .quad pdpt + 3
    .fill 511, 8, 0
pdpt:
    .quad 0x00000083, 0x40000083, 0x80000083, 0xc0000083
    .fill 508, 8, 0
gdt:
    .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff
gdt_pointer:
    .word 23
    .long gdt

.section .entry, "ax"
.code32
.global entry32
entry32:
    .byte 0x0f, 0x1f, 0x84, 0x00, 0x65, 0x6e, 0x64, 0x7f /* the mark of `mark_end`: a guest has begun */
    cli
    cld
    mov edi, ebx                    /* the start information: the argument of main */
    mov esp, offset {stack} + {size}
    mov eax, cr4
    or eax, 0x20                    /* PAE */
    mov cr4, eax
    mov eax, offset pml4
    mov cr3, eax
    mov ecx, 0xc0000080
    rdmsr
    or eax, 0x100                   /* EFER.LME */
    wrmsr
    mov eax, 0x80010033             /* PG, WP, NE, ET, MP, PE */
    mov cr0, eax
    lgdt [gdt_pointer]
    push 8
    mov ebx, offset entry64
    push ebx
    retf

.code64
entry64:
    mov ax, 16
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov edi, edi
    mov rsp, offset {stack} + {size}
    xor ebp, ebp
    call {main}
    ud2
.text
"#,
    stack = sym STACK_MEMORY,
    size = const STACK,
    main = sym main,
);

extern "C" fn main(start_info: u64) -> ! {
    bench_kernel::main(start_info)
}
