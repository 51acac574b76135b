//! Exceptions of the microvisor's own. Each is a panic, except for #GP at two instructions, which try a
//! model-specific register that the CPU may not have, and for #SX, by which an INIT is consumed.
//!
//! GIF is 0 whenever the microvisor runs after boot, so neither NMIs nor interrupts come here; they are VM 0's. GIF is
//! 1 for two instructions to consume an INIT. An NMI that comes in between is given to VM 0.
#![allow(
    unsafe_code,
    reason = "privileged instructions, and labels in assembly"
)]

use core::arch::{asm, global_asm, naked_asm};

/// Count of vectors that have an entry. No other vector is raised; it would be #GP.
pub(super) const VECTORS: usize = 32;
/// Bytes from one entry to the next.
const ENTRY: usize = 16;

/// The frame that an entry leaves on the stack.
#[repr(C)]
#[derive(Debug)]
struct Frame {
    /// R15 to R8, RBP, RDI, RSI, RDX, RCX, RBX, RAX.
    registers: [u64; 15],
    vector: u64,
    error: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

/// Returns the address of a vector's entry.
pub(super) fn entry(vector: usize) -> u64 {
    (&raw const exception_entries) as u64 + (vector * ENTRY) as u64
}

unsafe extern "C" {
    static exception_entries: u8;
}

// One entry for each vector, of equal length: a 0 where the CPU pushes no error code, which it does
// for 8, 10 to 14, 17, 21, 29 and 30 (APM vol. 2 table 8-1), and the vector.
global_asm!(
    ".pushsection .text.exception_entries, \"ax\"",
    ".set vector, 0",
    ".balign {entry}",
    ".global exception_entries",
    "exception_entries:",
    ".rept {vectors}",
    ".balign {entry}",
    ".if ((0x60227d00 >> vector) & 1) == 0",
    "push 0",
    ".endif",
    "push vector",
    "jmp {common}",
    ".set vector, vector + 1",
    ".endr",
    ".popsection",
    vectors = const VECTORS,
    entry = const ENTRY,
    common = sym common,
);

#[unsafe(naked)]
extern "C" fn common() {
    naked_asm!(
        "push rax",
        "push rbx",
        "push rcx",
        "push rdx",
        "push rsi",
        "push rdi",
        "push rbp",
        "push r8",
        "push r9",
        "push r10",
        "push r11",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "cld",
        "mov rdi, rsp",
        "call {handle}",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop r11",
        "pop r10",
        "pop r9",
        "pop r8",
        "pop rbp",
        "pop rdi",
        "pop rsi",
        "pop rdx",
        "pop rcx",
        "pop rbx",
        "pop rax",
        "add rsp, 16",
        "iretq",
        handle = sym handle,
    )
}

extern "sysv64" fn handle(frame: &mut Frame) {
    if !recover(frame) {
        panic!("{frame}");
    }
}

/// Recovers from an exception that is expected at one of the instructions below. Returns false for any other exception.
fn recover(frame: &mut Frame) -> bool {
    const NMI: u64 = 2;
    const GENERAL_PROTECTION: u64 = 13;
    const SECURITY: u64 = 30;
    let at = |label: *const u8| label as u64;
    let window = at(&raw const init_window)..=at(&raw const init_window_end);
    match frame.vector {
        GENERAL_PROTECTION if frame.rip == at(&raw const rdmsr_try) => {
            frame.rip = at(&raw const rdmsr_refused);
        }
        GENERAL_PROTECTION if frame.rip == at(&raw const wrmsr_try) => {
            frame.rip = at(&raw const wrmsr_refused);
        }
        // The INIT is consumed.
        SECURITY if window.contains(&frame.rip) => {}
        NMI if window.contains(&frame.rip) => frame.registers[Frame::RSI] = 1,
        _ => return false,
    }
    true
}

unsafe extern "C" {
    static rdmsr_try: u8;
    static rdmsr_refused: u8;
    static wrmsr_try: u8;
    static wrmsr_refused: u8;
    static init_window: u8;
    static init_window_end: u8;
}

// ECX = number, EDX:EAX = value; RSI = 1 if the CPU took it.
global_asm!(
    ".pushsection .text.try_msr, \"ax\"",
    ".global read_msr_or_not",
    "read_msr_or_not:",
    "xor esi, esi",
    ".global rdmsr_try",
    "rdmsr_try:",
    "rdmsr",
    "inc esi",
    ".global rdmsr_refused",
    "rdmsr_refused:",
    "ret",
    ".global write_msr_or_not",
    "write_msr_or_not:",
    "xor esi, esi",
    ".global wrmsr_try",
    "wrmsr_try:",
    "wrmsr",
    "inc esi",
    ".global wrmsr_refused",
    "wrmsr_refused:",
    "ret",
    // GIF is 1 in between; RSI = 1 if an NMI came.
    ".global open_init_window",
    "open_init_window:",
    "xor esi, esi",
    "stgi",
    ".global init_window",
    "init_window:",
    "nop",
    "clgi",
    ".global init_window_end",
    "init_window_end:",
    "ret",
    ".popsection",
);

/// Reads a model-specific register. Returns `None` if this CPU does not have it.
pub fn try_read_msr(msr: u32) -> Option<u64> {
    let (low, high, taken): (u32, u32, u64);
    // SAFETY: reads a register; `handle` goes on where the CPU has none of this number.
    unsafe {
        asm!("call read_msr_or_not", in("ecx") msr, out("eax") low, out("edx") high, out("rsi") taken);
    }
    (taken == 1).then(|| u64::from(high) << 32 | u64::from(low))
}

/// Writes a model-specific register. Returns false if this CPU refuses it.
///
/// # Safety
///
/// The value must not take from the microvisor what it relies on.
pub(super) unsafe fn try_write_msr(msr: u32, value: u64) -> bool {
    let taken: u64;
    // SAFETY: the caller's; `handle` goes on where the CPU refuses.
    unsafe {
        asm!(
            "call write_msr_or_not", in("ecx") msr, in("eax") value as u32,
            in("edx") (value >> 32) as u32, out("rsi") taken
        );
    }
    taken == 1
}

/// Lets a pending INIT in, which the CPU turns into #SX. Returns whether an NMI came with it.
///
/// # Safety
///
/// SVM is on, and VM_CR.R_INIT set.
pub(super) unsafe fn consume_init() -> bool {
    let nmi: u64;
    // SAFETY: the caller's; `handle` goes on after both, and IF is 0.
    unsafe { asm!("call open_init_window", out("rsi") nmi) };
    nmi != 0
}

impl Frame {
    const NAMES: [&str; 15] = [
        "r15", "r14", "r13", "r12", "r11", "r10", "r9", "r8", "rbp", "rdi", "rsi", "rdx", "rcx",
        "rbx", "rax",
    ];
    /// Index of RSI in `registers`.
    const RSI: usize = 10;
}

impl core::fmt::Display for Frame {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        writeln!(
            f,
            "exception {} ({}), error {:#x}, at rip {:#018x}",
            self.vector,
            name(self.vector),
            self.error,
            self.rip
        )?;
        let (cr2, cr3) = control_registers();
        write!(
            f,
            "  rsp {:#018x} rflags {:#x} cs {:#x} ss {:#x} cr2 {cr2:#018x} cr3 {cr3:#x}",
            self.rsp, self.rflags, self.cs, self.ss
        )?;
        let registers = Self::NAMES.iter().zip(&self.registers).rev();
        for (n, (name, value)) in registers.enumerate() {
            let separator = if n % 4 == 0 { "\n " } else { "" };
            write!(f, "{separator} {name:>3} {value:#018x}")?;
        }
        Ok(())
    }
}

fn name(vector: u64) -> &'static str {
    match vector {
        0 => "#DE",
        1 => "#DB",
        2 => "NMI",
        3 => "#BP",
        6 => "#UD",
        7 => "#NM",
        8 => "#DF",
        10 => "#TS",
        11 => "#NP",
        12 => "#SS",
        13 => "#GP",
        14 => "#PF",
        17 => "#AC",
        18 => "#MC",
        19 => "#XF",
        _ => "unexpected",
    }
}

/// Returns CR2 and CR3.
fn control_registers() -> (u64, u64) {
    let (cr2, cr3);
    // SAFETY: reads registers.
    unsafe {
        asm!("mov {}, cr2", "mov {}, cr3", out(reg) cr2, out(reg) cr3, options(nomem, nostack));
    }
    (cr2, cr3)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(vector: u64, rip: *const u8) -> Frame {
        Frame {
            registers: [7; 15],
            vector,
            error: 0,
            rip: rip as u64,
            cs: 8,
            rflags: 2,
            rsp: 0,
            ss: 16,
        }
    }

    #[test]
    fn a_register_that_is_refused_is_no_panic() {
        let mut read = frame(13, &raw const rdmsr_try);
        assert!(recover(&mut read));
        assert_eq!(read.rip, &raw const rdmsr_refused as u64);
        let mut write = frame(13, &raw const wrmsr_try);
        assert!(recover(&mut write));
        assert_eq!(write.rip, &raw const wrmsr_refused as u64);
    }

    #[test]
    fn an_init_is_consumed_and_an_nmi_is_told() {
        let window = [&raw const init_window, &raw const init_window_end];
        for rip in window {
            let mut init = frame(30, rip);
            assert!(recover(&mut init));
            assert_eq!((init.rip, init.registers), (rip as u64, [7; 15]));
            let mut nmi = frame(2, rip);
            assert!(recover(&mut nmi));
            assert_eq!(Frame::NAMES[Frame::RSI], "rsi");
            assert_eq!(nmi.registers[Frame::RSI], 1);
        }
    }

    #[test]
    fn everything_else_is() {
        let places = [
            &raw const rdmsr_try,
            &raw const wrmsr_try,
            &raw const init_window,
        ];
        for rip in places {
            for vector in [0, 1, 6, 8, 14, 18] {
                assert!(!recover(&mut frame(vector, rip)), "{vector}");
            }
        }
        for vector in 0..32 {
            assert!(!recover(&mut frame(vector, &raw const rdmsr_refused)));
        }
    }
}
