//! The stacks of every CPU. They tell which CPU executes the code, and the chain of its callers.
#![allow(unsafe_code, reason = "reads stacks, whose memory no Rust value owns")]

use core::arch::asm;
use core::cell::UnsafeCell;

use guest_proto::limits::MAX_CPUS;

const PAGE: usize = 4096;
const BYTES: usize = 32 << 10;
const FAULT_BYTES: usize = 8 << 10;

/// One CPU's stacks. The guards are not mapped in the microvisor's own page tables.
#[repr(C, align(4096))]
struct CpuStacks {
    guard: [u8; PAGE],
    stack: [u8; BYTES],
    fault_guard: [u8; PAGE],
    fault: [u8; FAULT_BYTES],
}

/// The stacks of all CPUs, by index.
#[derive(Debug)]
pub struct Stacks(UnsafeCell<[CpuStacks; MAX_CPUS as usize]>);

impl core::fmt::Debug for CpuStacks {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("CpuStacks")
    }
}

// SAFETY: only the CPU whose stacks they are uses an element, through its stack pointer.
unsafe impl Sync for Stacks {}

/// Stack memory, of which `entry` gives each CPU its part.
pub static STACKS: Stacks = Stacks(UnsafeCell::new(
    [const {
        CpuStacks {
            guard: [0; PAGE],
            stack: [0; BYTES],
            fault_guard: [0; PAGE],
            fault: [0; FAULT_BYTES],
        }
    }; MAX_CPUS as usize],
));

/// Bytes from one CPU's stacks to the next's.
pub const STRIDE: usize = size_of::<CpuStacks>();
/// Offset of the end of a CPU's stack in its part.
pub const TOP: usize = PAGE + BYTES;

fn base() -> u64 {
    STACKS.0.get() as u64
}

/// Returns which CPU this is, from 0, or `None` before the CPU is on its stack.
pub fn cpu() -> Option<usize> {
    let pointer: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, rsp", out(reg) pointer, options(nomem, nostack, preserves_flags)) };
    let offset = pointer.checked_sub(base())?;
    (offset < STRIDE as u64 * MAX_CPUS).then_some(offset as usize / STRIDE)
}

/// Returns the pages below the stacks. A stack that grows into such a page faults.
pub(super) fn guards() -> impl Iterator<Item = u64> {
    let places = (0..MAX_CPUS).flat_map(|cpu| [0, TOP as u64].map(|at| cpu * STRIDE as u64 + at));
    places.map(|offset| base() + offset)
}

/// Returns the end of a CPU's stack for exceptions.
pub(super) fn fault_top(cpu: usize) -> u64 {
    base() + ((cpu + 1) * STRIDE) as u64
}

/// Returns the return addresses of this CPU's callers, the innermost first, by the chain of frame pointers.
pub fn backtrace() -> impl Iterator<Item = u64> {
    /// A damaged chain may be a circle.
    const MOST: usize = 24;
    let mut frame: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, rbp", out(reg) frame, options(nomem, nostack, preserves_flags)) };
    core::iter::from_fn(move || {
        let caller = word(frame.checked_add(8)?)?;
        frame = word(frame)?;
        Some(caller)
    })
    .take_while(|caller| *caller != 0)
    .take(MOST)
}

/// Returns the word at `at`, if it is in one of this CPU's stacks.
fn word(at: u64) -> Option<u64> {
    let offset = at.checked_sub(base() + (cpu()? * STRIDE) as u64)? as usize;
    let stacks = [PAGE..TOP, TOP + PAGE..STRIDE];
    let inside = stacks
        .iter()
        .any(|stack| stack.contains(&offset) && stack.contains(&(offset + 7)));
    // SAFETY: in a mapped stack of this CPU's, which nobody else writes; aligned.
    (inside && at.is_multiple_of(8)).then(|| unsafe { (at as *const u64).read_volatile() })
}
