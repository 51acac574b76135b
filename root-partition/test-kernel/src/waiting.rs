//! Code that this kernel gives the second CPU to execute while it waits in the mailbox.
#![allow(
    unsafe_code,
    reason = "puts code into memory that another CPU executes"
)]

use core::arch::global_asm;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::memory::read;
use crate::report::{Outcome, ensure, fail};
use crate::second;
use crate::trap::gate;

/// From the mailbox to the page of the waiting CPU's code, which begins with its interrupt descriptors.
const PAGE: u64 = 0x1000;
/// Where the probe goes in that page.
const PROBE: u64 = 0x800;
/// From the loop's PAUSE to a place for a jump, as far as a short jump reaches.
const STEP: u64 = 0x70;
const PAUSE: [u8; 2] = [0xf3, 0x90];
const SHORT_JUMP: u8 = 0xeb;
const NEAR_JUMP: u8 = 0xe9;

// The loop jumps here from its PAUSE, with its APIC ID in EBX. The interrupt descriptor table of the probe
// has a gate for #GP alone.
global_asm!(
    r#"
.pushsection .rodata.waiting_probe, "a"
.global waiting_probe
waiting_probe:
    mov r15d, ebx
    mov r14, rsp
    lidt [rip + probe_table]
    mov eax, 0x80000001
    cpuid
    mov [rip + probe_features], rcx
    mov rdi, [rip + probe_target]
    mov rax, [rdi]
    mov [rip + probe_value], rax
    jmp 1f
waiting_probe_fault:
    mov qword ptr [rip + probe_fault], 1
1:  lidt [rip + probe_old_table]
    mov rsp, r14
    mov ebx, r15d
    mov rdi, [rip + probe_pause]
    mov word ptr [rdi], 0x90f3
    mov qword ptr [rip + probe_done], 1
    jmp rdi
.balign 8
waiting_probe_data:
probe_features: .quad 0
probe_target: .quad 0
probe_value: .quad 0
probe_fault: .quad 0
probe_pause: .quad 0
probe_done: .quad 0
    .word 0, 0, 0
probe_table: .word 14 * 16 - 1
    .quad 0
    .word 0, 0, 0
probe_old_table: .word 3 * 16 - 1
    .quad 0
waiting_probe_end:
.popsection
"#
);

unsafe extern "C" {
    static waiting_probe: u8;
    static waiting_probe_fault: u8;
    static waiting_probe_data: u8;
    static waiting_probe_end: u8;
}

/// What the waiting CPU found.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// ECX of CPUID 8000_0001.
    pub features: u64,
    /// The word at the address; `None` if the access was #GP.
    pub word: Option<u64>,
}

/// Makes the waiting CPU ask for CPUID 8000_0001 and read the word at `target`.
pub fn probe(target: u64) -> Outcome<Found> {
    let page = second::place()?.mailbox + PAGE;
    let Some(pause) = (page..page + PROBE).find(|at| read::<[u8; 2]>(*at) == PAUSE) else {
        return fail(format_args!("the waiting CPU's loop has no PAUSE"));
    };
    let (step, start) = (pause + STEP, page + PROBE);
    ensure("the page is free", read::<[u8; 5]>(step) == [0; 5])?;
    let (begin, end) = (&raw const waiting_probe, &raw const waiting_probe_end);
    let place = |symbol: *const u8| start + (symbol as u64 - begin as u64);
    // SAFETY: the page is root's to write, and its CPU executes none of these bytes yet.
    let write = |at: u64, bytes: &[u8]| unsafe {
        core::ptr::copy_nonoverlapping(bytes.as_ptr(), at as *mut u8, bytes.len());
    };
    // SAFETY: constant data of this kernel's.
    let code = unsafe { core::slice::from_raw_parts(begin, end as usize - begin as usize) };
    write(start, code);
    let data = place(&raw const waiting_probe_data);
    let word = |n: u64| data + 8 * n;
    write(word(1), &target.to_le_bytes());
    write(word(4), &pause.to_le_bytes());
    // The probe's own table follows its code; only the gate of #GP, vector 13, is looked at.
    let table = place(end).next_multiple_of(16);
    let handler = place(&raw const waiting_probe_fault);
    let [low, high] = gate(handler, 0).map(u64::to_le_bytes);
    write(table + 13 * 16, &low);
    write(table + 13 * 16 + 8, &high);
    write(word(7), &table.to_le_bytes());
    write(word(9), &page.to_le_bytes());
    let jump = |from: u64, to: u64, len: u64| to.wrapping_sub(from + len);
    let mut near = [NEAR_JUMP, 0, 0, 0, 0];
    near[1..].copy_from_slice(&(jump(step, start, 5) as u32).to_le_bytes());
    write(step, &near);
    let short = u16::from_le_bytes([SHORT_JUMP, jump(pause, step, 2) as u8]);
    // SAFETY: as above; the two bytes change at once.
    unsafe { (pause as *mut u16).write_volatile(short) };
    second::wait_for("the waiting CPU executes the probe", || load(word(5)) == 1)?;
    write(step, &[0; 5]);
    Ok(Found {
        features: load(word(0)),
        word: (load(word(3)) == 0).then(|| load(word(2))),
    })
}

fn load(at: u64) -> u64 {
    // SAFETY: aligned, and written by the probe only.
    unsafe { AtomicU64::from_ptr(at as *mut u64) }.load(Ordering::Acquire)
}
