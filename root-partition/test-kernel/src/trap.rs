//! Descriptor tables, page tables, and what interrupts and exceptions come to.
//!
//! Every page is ring 3's too: `ring3` needs a few, and nobody is kept out of anything here.
#![allow(
    unsafe_code,
    reason = "descriptor tables, and entry points that the CPU calls"
)]

use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::memory::{LARGE, PRESENT_WRITE_USER};
use crate::{apic, probe, ring3};

/// Selector of ring 0's code.
pub const CODE: u16 = 0x10;
/// Selector of ring 0's data.
pub const DATA: u16 = 0x18;
/// Selector of ring 3's data.
pub const USER_DATA: u16 = 0x23;
/// Selector of ring 3's code.
pub const USER_CODE: u16 = 0x2b;
const TASK: u16 = 0x30;

const CPUS: usize = 2;
const NMI: u64 = 2;
const EXCEPTIONS: u64 = 32;

/// A cell that `init` fills before anything reads it.
#[repr(C, align(4096))]
struct Table<T>(UnsafeCell<T>);

// SAFETY: written by `init` of the CPU that it belongs to (shared ones: of the first CPU, before
// there is a second), then read by the CPU's own hardware alone.
unsafe impl<T> Sync for Table<T> {}

const GDT: [u64; 8] = [
    0,
    0,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x00cf_f300_0000_ffff,
    0x00af_fb00_0000_ffff,
    0,
    0,
];

static GDTS: [Table<[u64; 8]>; CPUS] = [const { Table(UnsafeCell::new(GDT)) }; CPUS];
/// Task state segments: only RSP0, at byte 4, is ever used.
static TASKS: [Table<[u32; 26]>; CPUS] = [const { Table(UnsafeCell::new([0; 26])) }; CPUS];
static IDT: Table<[[u64; 2]; 256]> = Table(UnsafeCell::new([[0; 2]; 256]));
static PML4: Table<[u64; 512]> = Table(UnsafeCell::new([0; 512]));
static PDPT: Table<[u64; 512]> = Table(UnsafeCell::new([0; 512]));
/// Where the CPU comes to from ring 3.
static STACKS: [Table<[u8; 16384]>; CPUS] = [const { Table(UnsafeCell::new([0; 16384])) }; CPUS];

static COUNTS: [AtomicU64; 256] = [const { AtomicU64::new(0) }; 256];

/// How many interrupts of `vector` came, on either CPU.
pub fn count(vector: u8) -> u64 {
    COUNTS[usize::from(vector)].load(Ordering::Acquire)
}

/// What the stubs below push, and the CPU before them.
#[repr(C)]
#[derive(Debug)]
pub struct Frame {
    /// R15 to R8, RDI, RSI, RBP, RBX.
    kept: [u64; 12],
    /// RDX.
    pub rdx: u64,
    rcx: u64,
    /// RAX.
    pub rax: u64,
    vector: u64,
    error: u64,
    /// Instruction pointer.
    pub rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

// Each stub takes 16 bytes: it pushes 0 where the CPU pushes no error code, then its vector,
// sign-extended from a byte.
global_asm!(
    r#"
.global test_trap_stubs
.balign 16
test_trap_stubs:
.set vector, 0
.rept 256
    .balign 16
    .if (vector != 8) && ((vector < 10) || (vector > 14)) && (vector != 17) && (vector != 21)
    .byte 0x6a, 0
    .endif
    .byte 0x6a, vector
    jmp test_trap_common
    .set vector, vector + 1
.endr

test_trap_common:
    push rax
    push rcx
    push rdx
    push rbx
    push rbp
    push rsi
    push rdi
    push r8
    push r9
    push r10
    push r11
    push r12
    push r13
    push r14
    push r15
    mov rdi, rsp
    mov rbx, rsp
    and rsp, -16
    cld
    call {trap}
    mov rsp, rbx
    pop r15
    pop r14
    pop r13
    pop r12
    pop r11
    pop r10
    pop r9
    pop r8
    pop rdi
    pop rsi
    pop rbp
    pop rbx
    pop rdx
    pop rcx
    pop rax
    add rsp, 16
    iretq
"#,
    trap = sym trap,
);

unsafe extern "C" {
    static test_trap_stubs: u8;
}

extern "C" fn trap(frame: &mut Frame) {
    let vector = frame.vector & 0xff;
    if vector < EXCEPTIONS && vector != NMI {
        if probe::recover(frame, vector) {
            return;
        }
        crate::stop(format_args!("exception {vector} {frame:x?}"));
    }
    if let Some(count) = COUNTS.get(vector as usize) {
        count.fetch_add(1, Ordering::Release);
    }
    if vector >= EXCEPTIONS {
        apic::end_of_interrupt();
    }
}

/// Loads this CPU's tables. The first CPU is 0.
pub fn init(cpu: usize) {
    if cpu == 0 {
        fill_shared();
    }
    let (gdt, task) = (GDTS[cpu].0.get(), TASKS[cpu].0.get());
    let base = task as u64;
    let stack = STACKS[cpu].0.get() as u64 + 16384;
    // SAFETY: this CPU's own tables, which it does not use yet.
    unsafe {
        (*task)[1] = stack as u32;
        (*task)[2] = (stack >> 32) as u32;
        (*gdt)[6] = 103 | (base & 0xff_ffff) << 16 | 0x89 << 40 | (base >> 24 & 0xff) << 56;
        (*gdt)[7] = base >> 32;
    }
    let gdt_pointer = pointer(gdt as u64, 63);
    let idt_pointer = pointer(IDT.0.get() as u64, 4095);
    // SAFETY: the tables are complete, stay, and map what is in use as it was.
    unsafe {
        asm!(
            "lgdt [{gdt}]",
            "lidt [{idt}]",
            "mov cr3, {pml4}",
            "push {code}",
            "lea {t}, [rip + 2f]",
            "push {t}",
            "retfq",
            "2:",
            "mov ds, {data:e}",
            "mov es, {data:e}",
            "mov ss, {data:e}",
            "mov {t:e}, {task}",
            "ltr {t:x}",
            gdt = in(reg) &gdt_pointer,
            idt = in(reg) &idt_pointer,
            pml4 = in(reg) PML4.0.get(),
            code = const CODE,
            data = in(reg) u32::from(DATA),
            task = const TASK,
            t = out(reg) _,
        );
    }
}

/// What LGDT and LIDT take: a limit, and the address from byte 2 on.
fn pointer(base: u64, limit: u16) -> [u16; 5] {
    let word = |n: u32| (base >> (16 * n)) as u16;
    [limit, word(0), word(1), word(2), word(3)]
}

fn fill_shared() {
    let stubs = &raw const test_trap_stubs as u64;
    // SAFETY: before the tables are loaded, on the only CPU that runs.
    let (idt, pml4, pdpt) = unsafe { (&mut *IDT.0.get(), &mut *PML4.0.get(), &mut *PDPT.0.get()) };
    for (entry, n) in idt.iter_mut().zip(0..) {
        *entry = gate(stubs + 16 * n, 0);
    }
    idt[usize::from(ring3::BACK)] = gate(ring3::back(), 3);
    pml4[0] = PDPT.0.get() as u64 | PRESENT_WRITE_USER;
    for (entry, gib) in pdpt.iter_mut().zip(0_u64..) {
        *entry = gib << 30 | LARGE | PRESENT_WRITE_USER;
    }
}

/// An interrupt gate that ring `dpl` may call.
pub fn gate(handler: u64, dpl: u64) -> [u64; 2] {
    let low = (handler & 0xffff)
        | u64::from(CODE) << 16
        | (0x8e | dpl << 5) << 40
        | (handler >> 16 & 0xffff) << 48;
    [low, handler >> 32]
}
