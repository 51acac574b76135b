//! What stands in a guest's RAM: tables for 64-bit mode, handlers that note what they see, and the
//! case's code.

use core::fmt;

use super::Guest;
use super::code::code;
use crate::memory::{LARGE, PRESENT_WRITE_USER, Pages};

/// Pages of RAM.
pub const PAGES: u64 = 32;
/// What virtual CPU 0 executes.
pub const CODE: u64 = 0x1000;
/// Top page table: the first 512 GiB, identity.
pub const PML4: u64 = 0x2000;
const PDPT: u64 = 0x3000;
/// Global descriptor table.
pub const GDT: u64 = 0x4000;
/// Interrupt descriptor table of 64-bit mode: every vector has a handler.
pub const IDT: u64 = 0x5000;
const STUBS: u64 = 0x6000;
const HANDLER: u64 = 0x7000;
/// Vector of the last exception; then its error code, its RIP; then where to go on after one (0:
/// nowhere, halt); then 1 to end interrupts by x2APIC; then how many exceptions there were.
pub const NOTES: u64 = 0x8000;
/// How many interrupts came, by vector: 256 words.
pub const COUNTS: u64 = 0x8800;
/// A page for the case's own data.
pub const DATA: u64 = 0x9000;
/// Where virtual CPU 0's stack ends.
pub const STACK: u64 = 0xb000;
/// Where the second virtual CPU begins, in real mode: SIPI vector 0x10.
pub const SECOND: u64 = 0x1_0000;
/// End of RAM; what follows is not mapped.
pub const END: u64 = PAGES * 4096;

/// Selector of 64-bit code.
pub const CODE_SELECTOR: u16 = 0x10;
/// Selector of data.
pub const DATA_SELECTOR: u16 = 0x18;

/// Fills a guest's RAM.
pub fn fill(ram: Pages, code: &[u8]) {
    assert!(code.len() <= 4096, "the case's code is too long");
    ram.store(CODE, code);
    ram.store(PML4, &(PDPT | PRESENT_WRITE_USER));
    for gib in 0..512 {
        ram.store(PDPT + 8 * gib, &(gib << 30 | LARGE | PRESENT_WRITE_USER));
    }
    let gdt: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
    ram.store(GDT, &gdt);
    for vector in 0..256 {
        let stub = STUBS + 16 * vector;
        let gate: [u64; 2] = [stub | u64::from(CODE_SELECTOR) << 16 | 0x8e << 40, 0];
        ram.store(IDT + 16 * vector, &gate);
        ram.store(stub, &stub_bytes(stub, vector));
    }
    ram.store(HANDLER, handler());
}

/// `push 0` where the CPU pushes no error code, `push vector`, `jmp HANDLER`.
fn stub_bytes(at: u64, vector: u64) -> [u8; 16] {
    let mut bytes = [0x90; 16];
    let has_code = matches!(vector, 8 | 10..=14 | 17 | 21 | 29 | 30);
    let start = if has_code { 0 } else { 2 };
    if !has_code {
        bytes[..2].copy_from_slice(&[0x6a, 0]);
    }
    bytes[start] = 0x68;
    bytes[start + 1..start + 5].copy_from_slice(&(vector as u32).to_le_bytes());
    let end = at + start as u64 + 10;
    let distance = HANDLER.wrapping_sub(end) as u32;
    bytes[start + 5] = 0xe9;
    bytes[start + 6..start + 10].copy_from_slice(&distance.to_le_bytes());
    bytes
}

fn handler() -> &'static [u8] {
    code![
        "push rax",
        "push rcx",
        "push rdx",
        "mov rax, [rsp + 24]",
        "cmp rax, 32",
        "jae 2f",
        "mov [{notes}], rax",
        "mov rcx, [rsp + 32]",
        "mov [{notes} + 8], rcx",
        "mov rcx, [rsp + 40]",
        "mov [{notes} + 16], rcx",
        "inc qword ptr [{notes} + 40]",
        "mov rcx, [{notes} + 24]",
        "test rcx, rcx",
        "jz 4f",
        "mov [rsp + 40], rcx",
        "jmp 3f",
        "2: lock inc qword ptr [rax * 8 + {counts}]",
        "cmp qword ptr [{notes} + 32], 0",
        "je 3f",
        "mov ecx, 0x80b",
        "xor eax, eax",
        "xor edx, edx",
        "wrmsr",
        "3: pop rdx",
        "pop rcx",
        "pop rax",
        "add rsp, 16",
        "iretq",
        "4: hlt",
        "jmp 4b",
        ; notes = const NOTES, counts = const COUNTS,
    ]
}

/// The exceptions that the handlers noted.
#[derive(Clone, Copy)]
pub struct Exceptions<'a>(pub &'a Guest);

impl Exceptions<'_> {
    /// How many.
    pub fn count(self) -> u64 {
        self.0.read(NOTES + 40)
    }

    /// Vector, error code and RIP of the last.
    pub fn last(self) -> [u64; 3] {
        [0, 8, 16].map(|offset| self.0.read(NOTES + offset))
    }
}

impl fmt::Display for Exceptions<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [vector, code, rip] = self.last();
        match self.count() {
            0 => f.write_str("no exception in it"),
            n => write!(
                f,
                "{n} exceptions, the last {vector} ({code:#x}) at {rip:#x}"
            ),
        }
    }
}

impl Guest {
    /// What its exception handler noted.
    pub fn exceptions(&self) -> Exceptions<'_> {
        Exceptions(self)
    }

    /// How many interrupts of `vector` its handler counted.
    pub fn interrupts(&self, vector: u8) -> u64 {
        self.read(COUNTS + 8 * u64::from(vector))
    }

    /// Makes its handler end interrupts by x2APIC.
    pub fn end_interrupts(&self) {
        self.word(NOTES + 32)
            .store(1, core::sync::atomic::Ordering::Release);
    }
}
