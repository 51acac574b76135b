//! From the loader's 32-bit mode, or an application processor's reset, to Rust in 64-bit mode.
#![allow(
    unsafe_code,
    reason = "entry points that assembly calls, and linker symbols"
)]

use core::arch::global_asm;

use microvisor::boot::{self, Image};

/// Bytes of stack per CPU; `AP_STACKS` and the boot CPU's stack are this large.
const STACK: usize = 16 * 1024;
const CPUS: usize = guest_proto::limits::MAX_CPUS as usize;

global_asm!(
    r#"
.set HIGH, 0xffffffff80000000
.set FLAGS, 0x00010003          /* page-aligned modules, memory map, address fields */

.section .multiboot, "a"
.balign 8
multiboot1:
    .long 0x1BADB002, FLAGS, -(0x1BADB002 + FLAGS)
    .long multiboot1, image_start, image_load_end, image_end, boot_entry32

.section .boot, "awx"
.code32
.global boot_entry32
boot_entry32:
    cli
    cld
    mov esp, offset boot_stack_end
    mov edi, eax                /* first two arguments of boot_rust */
    mov esi, ebx
    /* 512 GiB of physical memory in 1 GiB pages; CPUs with nested paging have them. */
    xor ecx, ecx
1:  mov eax, ecx
    shl eax, 30
    or eax, 0x83
    mov edx, ecx
    shr edx, 2
    mov [boot_pdpt + ecx * 8], eax
    mov [boot_pdpt + ecx * 8 + 4], edx
    inc ecx
    cmp ecx, 512
    jb 1b
    mov dword ptr [boot_pml4], offset boot_pdpt + 3
    mov dword ptr [boot_pml4 + 256 * 8], offset boot_pdpt + 3
    mov dword ptr [boot_pml4 + 511 * 8], offset boot_pdpt_high + 3
    mov dword ptr [boot_pdpt_high + 510 * 8], 0x83
    mov ebx, offset boot_long_bsp
    jmp to_long_mode

/* To 64-bit mode at ebx; keeps edi, esi. */
to_long_mode:
    mov eax, cr4
    or eax, 0x20                /* PAE */
    mov cr4, eax
    mov eax, offset boot_pml4
    mov cr3, eax
    mov ecx, 0xc0000080
    rdmsr
    or eax, 0x900               /* EFER.LME, NXE */
    wrmsr
    mov eax, 0x80010033         /* PG, WP, NE, ET, MP, PE */
    mov cr0, eax
    lgdt [boot_gdt_pointer]
    push 8
    push ebx
    retf

.code64
boot_long_bsp:
    mov ax, 16
    mov ds, ax
    mov es, ax
    mov ss, ax
    movabs rsp, offset {bsp_stack} + {stack}
    mov edi, edi
    mov esi, esi
    xor ebp, ebp
    movabs rax, offset {bsp}
    call rax

boot_long_ap:
    mov ax, 16
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov edi, 1
    lock xadd [boot_ap_count], edi
    cmp edi, {aps}
    jae 2f
    lea eax, [edi + 1]
    imul rax, rax, {stack}
    movabs rsp, offset {ap_stacks}
    add rsp, rax
    xor ebp, ebp
    movabs rax, offset {ap}
    call rax
2:  cli
    hlt
    jmp 2b

/* Copied to the start-up page; runs in real mode with CS = its page. */
.code16
.global boot_trampoline
boot_trampoline:
    cli
    cld
    mov eax, 0x11
    lgdt cs:[TRAMPOLINE_GDT]
    mov cr0, eax
    .byte 0x66, 0xea            /* ljmp 24:boot_ap32 */
    .long boot_ap32
    .word 24
.balign 4
trampoline_gdt:
    .word 39
    .long boot_gdt
.set TRAMPOLINE_GDT, trampoline_gdt - boot_trampoline
.global boot_trampoline_end
boot_trampoline_end:

.code32
boot_ap32:
    mov ax, 32
    mov ds, ax
    mov es, ax
    mov ss, ax
    /* Every CPU uses this stack only between here and its own; starts are one at a time. */
    mov esp, offset boot_stack_end
    mov ebx, offset boot_long_ap
    jmp to_long_mode

.balign 8
boot_gdt:
    .quad 0
    .quad 0x00af9b000000ffff    /* 8: 64-bit code */
    .quad 0x00cf93000000ffff    /* 16: data */
    .quad 0x00cf9b000000ffff    /* 24: 32-bit code */
    .quad 0x00cf93000000ffff    /* 32: data */
boot_gdt_pointer:
    .word 39
    .quad boot_gdt
.global boot_ap_count
.balign 4
boot_ap_count: .long 0
.balign 4096
boot_pml4: .fill 512, 8, 0
boot_pdpt: .fill 512, 8, 0
boot_pdpt_high: .fill 512, 8, 0
boot_stack: .fill 512, 1, 0
boot_stack_end:
.code64
.text
"#,
    bsp_stack = sym BSP_STACK,
    ap_stacks = sym AP_STACKS,
    stack = const STACK,
    aps = const CPUS - 1,
    bsp = sym boot_rust,
    ap = sym boot_rust_ap,
);

#[repr(C, align(4096))]
struct Stacks<const BYTES: usize>(core::cell::UnsafeCell<[u8; BYTES]>);

// SAFETY: only the CPU whose stack it is uses each part, through its stack pointer.
unsafe impl<const BYTES: usize> Sync for Stacks<BYTES> {}

static BSP_STACK: Stacks<STACK> = Stacks(core::cell::UnsafeCell::new([0; STACK]));
static AP_STACKS: Stacks<{ STACK * (CPUS - 1) }> =
    Stacks(core::cell::UnsafeCell::new([0; STACK * (CPUS - 1)]));

unsafe extern "C" {
    static image_start: u8;
    static image_end: u8;
    static boot_trampoline: u8;
    static boot_trampoline_end: u8;
}

extern "C" fn boot_rust(magic: u32, info: u32) -> ! {
    let image = Image {
        start: (&raw const image_start) as u64,
        end: (&raw const image_end) as u64,
        trampoline: (&raw const boot_trampoline) as u64,
        trampoline_end: (&raw const boot_trampoline_end) as u64,
    };
    boot::start(magic, info, &image)
}

extern "C" fn boot_rust_ap(index: u32) -> ! {
    boot::start_ap(index)
}
