//! From the loader's 32-bit mode, or an application processor's reset, to Rust in 64-bit mode.
#![allow(
    unsafe_code,
    reason = "entry points that assembly calls, and linker symbols"
)]

use core::arch::global_asm;
use core::sync::atomic::AtomicU32;

use super::memory::BootMemory;
use super::processors::{Code, WAIT_LOOP};
use super::{low, start, start_ap};
use crate::arch::boot::paging::{Access, Image};
use crate::arch::stack;
use crate::memory::Hpa;

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

.balign 8
multiboot2:
    .long 0xE85250D6, 0, multiboot2_end - multiboot2
    .long 0x17ADAF2A - (multiboot2_end - multiboot2)    /* the four add up to 0 */
    .short 1, 0                 /* needed: the memory map */
    .long 12, 6, 0
    .short 2, 0                 /* load addresses */
    .long 24, multiboot2, image_start, image_load_end, image_end
    .short 3, 0                 /* entry */
    .long 12, boot_entry32, 0
    .short 6, 0                 /* modules are page-aligned */
    .long 8
    .short 0, 0
    .long 8
multiboot2_end:

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
    movabs rsp, offset {stacks} + {top}
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
    imul rax, rax, {stride}
    movabs rsp, offset {stacks} + {top}
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

/* Copied to low memory, which is VM 0's; runs in guest mode. */
.code64
.global boot_wait
boot_wait:
    iretq                       /* the NMI handler */
    .org boot_wait + {wait_loop}
    mov ebx, esi                /* the APIC ID */
    mov ebp, {mailbox}
1:  pause
    cmp word ptr [rbp], 1       /* the upper half of the command's word is reserved */
    jne 1b
    cmp [rbp + 4], ebx
    jne 1b
    vmmcall                     /* from here on this CPU has all of VM 0's memory */
    mov rax, [rbp + 8]
    mov word ptr [rbp], 0       /* tells the waker that the command was taken */
    jmp rax
.global boot_wait_end
boot_wait_end:

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
    stacks = sym stack::STACKS,
    top = const stack::TOP,
    stride = const stack::STRIDE,
    aps = const CPUS - 1,
    wait_loop = const WAIT_LOOP,
    mailbox = const low::MAILBOX.as_u64(),
    bsp = sym boot_rust,
    ap = sym boot_rust_ap,
);

unsafe extern "C" {
    static image_start: u8;
    static image_end: u8;
    static resident_start: u8;
    static text_start: u8;
    static rodata_start: u8;
    static data_start: u8;
    static protected_start: u8;
    static protected_end: u8;
    static image_end_high: u8;
    static boot_trampoline: u8;
    static boot_trampoline_end: u8;
    static boot_wait: u8;
    static boot_wait_end: u8;
    static boot_ap_count: AtomicU32;
}

extern "C" fn boot_rust(magic: u32, info: u32) -> ! {
    let address = |symbol: *const u8| symbol as u64;
    let physical = |symbol| Hpa::new(address(symbol));
    let [text, rodata, data, protected, bss, end] = [
        &raw const text_start,
        &raw const rodata_start,
        &raw const data_start,
        &raw const protected_start,
        &raw const protected_end,
        &raw const image_end_high,
    ]
    .map(address);
    let image = Image {
        start: physical(&raw const image_start),
        resident: physical(&raw const resident_start),
        end: physical(&raw const image_end),
        sections: [
            (text..rodata, Access::Execute),
            (rodata..data, Access::Read),
            (data..protected, Access::Write),
            (protected..bss, Access::Read),
            (bss..end, Access::Write),
        ],
    };
    let code = |start: *const u8, end: *const u8| {
        // SAFETY: code in the image, which nobody writes before boot has ended.
        unsafe { core::slice::from_raw_parts(start, end as usize - start as usize) }
    };
    let code = Code {
        trampoline: code(&raw const boot_trampoline, &raw const boot_trampoline_end),
        wait: code(&raw const boot_wait, &raw const boot_wait_end),
        // SAFETY: the other CPUs add to it by a locked instruction.
        started: unsafe { &boot_ap_count },
    };
    // SAFETY: this is the boot CPU, first and once.
    let memory = unsafe { BootMemory::new(image.start..image.end) };
    start(memory, (magic, info), &image, &code)
}

extern "C" fn boot_rust_ap(index: u32) -> ! {
    start_ap(index)
}
