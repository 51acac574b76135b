//! The second CPU: it starts, and then answers the first one's interrupts.
#![allow(unsafe_code, reason = "a CPU's start in assembly")]

use core::arch::global_asm;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, Ordering};

use x86_64::instructions::interrupts;
use x86_64::registers::control::Cr3;

use crate::apic::Apic;
use crate::{cpu, trap};

/// ID of its local APIC.
pub const ID: u32 = 1;
/// Where it starts, in memory that nothing else uses.
const START: u64 = 0x8000;
const STACK: usize = 16 * 1024;

#[repr(C, align(16))]
struct Stack(UnsafeCell<[u8; STACK]>);

// SAFETY: only the second CPU uses it, through its stack pointer.
unsafe impl Sync for Stack {}

static STACK_MEMORY: Stack = Stack(UnsafeCell::new([0; STACK]));
static IS_UP: AtomicBool = AtomicBool::new(false);
/// What the second CPU is to do after its next interrupt.
static SPINS: AtomicBool = AtomicBool::new(false);
static IS_SPINNING: AtomicBool = AtomicBool::new(false);

// Copied to START: from real mode to 64-bit mode in one step, with the page tables of the first CPU.
global_asm!(
    r#"
.code16
bench_second:
    cli
    mov eax, cr4
    or eax, 0x20                    /* PAE */
    mov cr4, eax
    mov eax, cs:[SECOND_TABLES]
    mov cr3, eax
    mov ecx, 0xc0000080
    rdmsr
    or eax, 0x100                   /* EFER.LME */
    wrmsr
    lgdt cs:[SECOND_GDT]
    mov eax, 0x80010033             /* PG, WP, NE, ET, MP, PE */
    mov cr0, eax
    .byte 0x66, 0xea                /* ljmp 8:second64, at its place in the copy */
    .long {start} + SECOND_64
    .word 8
.balign 8
second_gdt:
    .word 23
    .long {start} + SECOND_GDT_ENTRIES
.balign 8
second_gdt_entries:
    .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff
bench_second_tables:
    .long 0
.code64
second64:
    mov ax, 16
    mov ds, ax
    mov es, ax
    mov ss, ax
    movabs rsp, offset {stack} + {size}
    xor ebp, ebp
    movabs rax, offset {main}
    call rax
    ud2
bench_second_end:
.set SECOND_TABLES, bench_second_tables - bench_second
.set SECOND_GDT, second_gdt - bench_second
.set SECOND_GDT_ENTRIES, second_gdt_entries - bench_second
.set SECOND_64, second64 - bench_second
"#,
    start = const START,
    stack = sym STACK_MEMORY,
    size = const STACK,
    main = sym main,
);

unsafe extern "C" {
    static bench_second: u8;
    static bench_second_tables: u8;
    static bench_second_end: u8;
}

/// Starts the second CPU, and waits until it is up. There must be one.
pub fn start(apic: Apic) {
    let code = &raw const bench_second;
    let tables = START + (&raw const bench_second_tables as u64 - code as u64);
    let length = &raw const bench_second_end as usize - code as usize;
    for at in 0..length {
        // SAFETY: the byte lies in the code above.
        cpu::write(START + at as u64, unsafe { code.add(at).read() });
    }
    let (frame, _) = Cr3::read();
    cpu::write(tables, frame.start_address().as_u64() as u32);
    apic.start(ID, START);
    while !IS_UP.load(Ordering::Acquire) {
        core::hint::spin_loop();
    }
}

/// Has the second CPU take interrupts in a loop, and answer none of them.
pub fn begin_spinning(apic: Apic) {
    SPINS.store(true, Ordering::Release);
    apic.interrupt(ID);
    while !IS_SPINNING.load(Ordering::Acquire) {
        core::hint::spin_loop();
    }
}

/// Has the second CPU halt again.
pub fn end_spinning() {
    SPINS.store(false, Ordering::Release);
}

extern "C" fn main() -> ! {
    trap::load();
    let Some(apic) = Apic::x2apic() else {
        crate::stop(format_args!("the second CPU has no x2APIC"));
    };
    apic.enable();
    IS_UP.store(true, Ordering::Release);
    loop {
        interrupts::enable_and_hlt();
        interrupts::disable();
        if SPINS.load(Ordering::Acquire) {
            interrupts::enable();
            IS_SPINNING.store(true, Ordering::Release);
            while SPINS.load(Ordering::Acquire) {
                core::hint::spin_loop();
            }
            interrupts::disable();
        } else {
            apic.interrupt(0);
        }
    }
}
