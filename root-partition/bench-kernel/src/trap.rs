//! The interrupt descriptor table: short handlers that count interrupts and end them, and a report of any exception.
#![allow(unsafe_code, reason = "entry points that the CPU calls")]

use core::arch::global_asm;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, Ordering};

use x86_64::VirtAddr;
use x86_64::registers::control::Cr2;
use x86_64::structures::idt::InterruptDescriptorTable;

use crate::apic::{X2APIC_VECTOR, XAPIC_VECTOR};

struct Table(UnsafeCell<InterruptDescriptorTable>);

// SAFETY: `init` fills it before anything reads it, and then only the hardware of the CPUs does.
unsafe impl Sync for Table {}

static IDT: Table = Table(UnsafeCell::new(InterruptDescriptorTable::new()));
static INTERRUPTS: AtomicU64 = AtomicU64::new(0);

/// How many interrupts came.
pub fn interrupts() -> u64 {
    INTERRUPTS.load(Ordering::Acquire)
}

global_asm!(
    r#"
bench_xapic:
    push rax
    inc qword ptr [{interrupts}]
    mov eax, 0xfee000b0
    mov dword ptr [rax], 0          /* end of interrupt */
    pop rax
    iretq

bench_x2apic:
    push rax
    push rcx
    push rdx
    lock inc qword ptr [{interrupts}]
    mov ecx, 0x80b                  /* end of interrupt */
    xor eax, eax
    xor edx, edx
    wrmsr
    pop rdx
    pop rcx
    pop rax
    iretq

bench_exception:
    mov rdi, rsp
    and rsp, -16
    call {exception}
"#,
    interrupts = sym INTERRUPTS,
    exception = sym exception,
);

unsafe extern "C" {
    static bench_xapic: u8;
    static bench_x2apic: u8;
    static bench_exception: u8;
}

extern "C" fn exception(frame: &[u64; 4]) -> ! {
    let address = Cr2::read_raw();
    crate::stop(format_args!(
        "exception, stack {frame:x?}, CR2 {address:#x}"
    ))
}

/// Loads the table on another CPU, after [`init`].
pub fn load() {
    // SAFETY: the table is complete, and nothing changes it any more.
    unsafe { (*IDT.0.get()).load_unsafe() };
}

/// Fills and loads the table. Exceptions all come to one report, which does not name their vector.
pub fn init() {
    let address = |symbol: *const u8| VirtAddr::new(symbol as u64);
    let exception = address(&raw const bench_exception);
    // SAFETY: the only CPU runs this once, before the table is loaded. Each entry is a handler that returns by IRET or
    // not at all.
    unsafe {
        let idt = &mut *IDT.0.get();
        idt.invalid_opcode.set_handler_addr(exception);
        idt.double_fault.set_handler_addr(exception);
        idt.general_protection_fault.set_handler_addr(exception);
        idt.page_fault.set_handler_addr(exception);
        idt[XAPIC_VECTOR].set_handler_addr(address(&raw const bench_xapic));
        idt[X2APIC_VECTOR].set_handler_addr(address(&raw const bench_x2apic));
    }
    load();
}
