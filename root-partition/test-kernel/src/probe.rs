//! Accesses that may fault, and the exception that they fault with.
#![allow(unsafe_code, reason = "accesses that are meant to fault")]

use core::arch::global_asm;

use crate::trap::Frame;

/// #UD.
pub const INVALID_OPCODE: u64 = 6;
/// #GP.
pub const GENERAL_PROTECTION: u64 = 13;

/// What a probe leaves in RAX and RDX.
#[repr(C)]
struct Answer {
    value: u64,
    /// 0, or the exception's vector plus 1.
    fault: u64,
}

impl Answer {
    fn result(self) -> Result<u64, u64> {
        match self.fault.checked_sub(1) {
            None => Ok(self.value),
            Some(vector) => Err(vector),
        }
    }
}

// No probe moves RSP, so that `test_probe_fault` can return from each.
global_asm!(
    r#"
.global test_probes, test_probes_end, test_probe_fault, test_probe_read
.global test_probe_write, test_probe_rdmsr, test_probe_wrmsr, test_probe_svm, test_probe_invd
.global test_probe_outs
test_probes:
test_probe_read:
    mov rax, [rdi]
    xor edx, edx
    ret
test_probe_write:
    mov [rdi], rsi
    jmp 1f
test_probe_rdmsr:
    mov ecx, edi
    rdmsr
    shl rdx, 32
    or rax, rdx
    xor edx, edx
    ret
test_probe_wrmsr:
    mov ecx, edi
    mov rax, rsi
    mov rdx, rsi
    shr rdx, 32
    wrmsr
    jmp 1f
test_probe_outs:
    mov ecx, edx
    mov edx, edi
    rep outsb
    jmp 1f
test_probe_invd:
    invd
    jmp 1f
test_probe_svm:
    mov rax, rdi
    cmp esi, 0
    je 2f
    cmp esi, 1
    je 3f
    cmp esi, 2
    je 4f
    cmp esi, 3
    je 5f
    clgi
    jmp 1f
2:  vmrun rax
    jmp 1f
3:  vmload rax
    jmp 1f
4:  vmsave rax
    jmp 1f
5:  stgi
1:  xor eax, eax
    xor edx, edx
    ret
test_probes_end:
test_probe_fault:
    ret
"#
);

unsafe extern "C" {
    static test_probes: u8;
    static test_probes_end: u8;
    static test_probe_fault: u8;
    fn test_probe_read(address: u64) -> Answer;
    fn test_probe_write(address: u64, value: u64) -> Answer;
    fn test_probe_rdmsr(msr: u32) -> Answer;
    fn test_probe_wrmsr(msr: u32, value: u64) -> Answer;
    fn test_probe_invd() -> Answer;
    fn test_probe_outs(port: u16, address: u64, count: u32) -> Answer;
    fn test_probe_svm(address: u64, which: u32) -> Answer;
}

/// The handler of exceptions asks: whether this one came from a probe, which then returns it.
pub fn recover(frame: &mut Frame, vector: u64) -> bool {
    let (start, end) = (
        &raw const test_probes as u64,
        &raw const test_probes_end as u64,
    );
    if !(start..end).contains(&frame.rip) {
        return false;
    }
    frame.rip = &raw const test_probe_fault as u64;
    frame.rax = 0;
    frame.rdx = vector + 1;
    true
}

/// Reads 8 bytes at a physical address; or the exception.
pub fn read(address: u64) -> Result<u64, u64> {
    // SAFETY: a read changes nothing, and a fault is recovered from.
    unsafe { test_probe_read(address) }.result()
}

/// Writes 8 bytes at a physical address that this kernel has no other use for; or the exception.
pub fn write(address: u64, value: u64) -> Result<u64, u64> {
    // SAFETY: the callers name pages that they took from `memory`, or that are not this kernel's.
    unsafe { test_probe_write(address, value) }.result()
}

/// Reads a model-specific register; or the exception.
pub fn rdmsr(msr: u32) -> Result<u64, u64> {
    // SAFETY: reading changes nothing.
    unsafe { test_probe_rdmsr(msr) }.result()
}

/// Writes a model-specific register; or the exception.
pub fn wrmsr(msr: u32, value: u64) -> Result<u64, u64> {
    // SAFETY: the callers write what this kernel does not rely on.
    unsafe { test_probe_wrmsr(msr, value) }.result()
}

/// Writes so many bytes from `address` to a port by REP OUTSB; or the exception.
pub fn outs(port: u16, address: u64, count: u32) -> Result<u64, u64> {
    // SAFETY: it reads a page of the caller's.
    unsafe { test_probe_outs(port, address, count) }.result()
}

/// Executes INVD; or the exception.
pub fn invd() -> Result<u64, u64> {
    // SAFETY: the microvisor writes the caches back instead.
    unsafe { test_probe_invd() }.result()
}

/// Executes VMRUN, VMLOAD, VMSAVE, STGI or CLGI (`which` 0 to 4) with this RAX; or the exception.
pub fn svm(address: u64, which: u32) -> Result<u64, u64> {
    // SAFETY: root has no SVM; if it did, the case fails, and the machine may as well.
    unsafe { test_probe_svm(address, which) }.result()
}
