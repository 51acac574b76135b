//! Faults on purpose, to test their reports. They are not in the image that is shipped, but only in one with the
//! feature `fault-injection`, and happen when VM 0's command line has `microvisor.fault=KIND`.
#![allow(unsafe_code, reason = "does what must not be done")]

use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use crate::arch::stack;

const WORD: &[u8] = b"microvisor.fault=";
/// The name of a fault on the command line, and the function that makes it.
type Kind = (&'static [u8], fn());

const KINDS: [Kind; 7] = [
    (b"panic", || panic!("on purpose")),
    (b"invalid-opcode", invalid_opcode),
    (b"read-absent", read_absent),
    (b"write-text", write_text),
    (b"execute-data", execute_data),
    (b"execute-startup", execute_startup),
    (b"stack-overflow", || {
        core::hint::black_box(overflow(1));
    }),
];
/// Exit of the boot CPU at which the fault happens: VM 0's kernel is well under way by then.
const EXIT: u32 = 50;

/// Index in `KINDS`, plus one.
static KIND: AtomicU8 = AtomicU8::new(0);
static EXITS: AtomicU32 = AtomicU32::new(0);
/// Address of a function of the start-up code.
static STARTUP: AtomicU64 = AtomicU64::new(0);

/// Takes the kind from VM 0's command line. `startup` is the address of a function of the start-up code.
pub fn arm(command_line: &[u8], startup: u64) {
    STARTUP.store(startup, Ordering::Relaxed);
    let kind = command_line
        .split(|byte| *byte == b' ')
        .find_map(|word| word.strip_prefix(WORD))
        .and_then(|name| KINDS.iter().position(|(kind, _)| *kind == name));
    KIND.store(kind.map_or(0, |n| n as u8 + 1), Ordering::Relaxed);
}

/// Counts exits, and makes the fault at the exit that is its time.
pub fn after_exit() {
    let kind = KIND.load(Ordering::Relaxed);
    if kind == 0 || stack::cpu() != Some(0) {
        return;
    }
    if EXITS.fetch_add(1, Ordering::Relaxed) == EXIT
        && let Some((_, fault)) = KINDS.get(usize::from(kind) - 1)
    {
        fault();
    }
}

fn invalid_opcode() {
    // SAFETY: an exception on purpose.
    unsafe { core::arch::asm!("ud2") };
}

fn read_absent() {
    // SAFETY: as above: VM 0 starts below, but no physical address is mapped at itself.
    unsafe { core::hint::black_box(core::ptr::read_volatile(0x10_0000 as *const u64)) };
}

fn write_text() {
    // SAFETY: as above.
    unsafe { (arm as *const () as *mut u8).write_volatile(0xc3) };
}

fn execute_data() {
    let code = core::hint::black_box([0xc3_u8; 16]);
    // SAFETY: as above.
    let data: extern "C" fn() = unsafe { core::mem::transmute(&raw const code) };
    data();
}

fn execute_startup() {
    let address = STARTUP.load(Ordering::Relaxed) as *const ();
    // SAFETY: as above: the function was there at boot.
    let code: extern "C" fn() = unsafe { core::mem::transmute(address) };
    code();
}

#[expect(unconditional_recursion, reason = "overflows the stack")]
fn overflow(n: u64) -> u64 {
    core::hint::black_box(overflow(n + 1)) + n
}
