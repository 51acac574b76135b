//! Each CPU's descriptor table and task state segment, and the interrupt descriptor table of all.
//!
//! The task state segment is there for one thing: an exception finds its own stack in it, also when
//! the stack that it interrupts is what failed (APM vol. 2 §8.9.4).
#![allow(unsafe_code, reason = "loads descriptor tables")]

use core::arch::asm;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use guest_proto::limits::MAX_CPUS;

use super::{exception, stack};

const CODE: u16 = 8;
const TASK: u16 = 0x18;

/// One CPU's.
struct PerCpu {
    /// Null, code, data, and the task state segment's descriptor, which takes two.
    segments: [AtomicU64; 5],
    task: [AtomicU32; TASK_WORDS],
}

/// Words of a task state segment without an I/O map (APM vol. 2 §12.2.5).
const TASK_WORDS: usize = 26;
/// Number of the interrupt stack that every exception uses.
const FAULT_STACK: u8 = 1;
/// Word of the first of the seven interrupt stacks.
const TASK_STACK: usize = 9;

static CPUS: [PerCpu; MAX_CPUS as usize] = [const {
    PerCpu {
        segments: [const { AtomicU64::new(0) }; 5],
        task: [const { AtomicU32::new(0) }; TASK_WORDS],
    }
}; MAX_CPUS as usize];

/// Mapped for reading only once the microvisor is on its own page tables.
#[cfg_attr(target_os = "none", unsafe(link_section = ".protected"))]
static INTERRUPTS: [AtomicU64; 2 * exception::VECTORS] =
    [const { AtomicU64::new(0) }; 2 * exception::VECTORS];

/// What LGDT and LIDT read.
#[repr(C, packed)]
struct Pointer {
    limit: u16,
    base: u64,
}

/// Loads this CPU's tables: from here on an exception is a panic with a report.
pub fn load() {
    let Some((index, cpu)) = stack::cpu().and_then(|index| Some((index, CPUS.get(index)?))) else {
        return;
    };
    let top = stack::fault_top(index);
    cpu.task[TASK_STACK].store(top as u32, Ordering::Relaxed);
    cpu.task[TASK_STACK + 1].store((top >> 32) as u32, Ordering::Relaxed);
    let task = (&raw const cpu.task) as u64;
    let segments = [
        0,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        task_descriptor(task),
        task >> 32,
    ];
    for (to, from) in cpu.segments.iter().zip(segments) {
        to.store(from, Ordering::Relaxed);
    }
    if index == 0 {
        fill_interrupts();
    }
    let segments = Pointer {
        limit: size_of_val(&cpu.segments) as u16 - 1,
        base: (&raw const cpu.segments) as u64,
    };
    let interrupts = Pointer {
        limit: size_of_val(&INTERRUPTS) as u16 - 1,
        base: (&raw const INTERRUPTS) as u64,
    };
    // SAFETY: the tables are complete, static, and have what the segment registers hold already.
    unsafe {
        asm!(
            "lgdt [{segments}]", "lidt [{interrupts}]", "ltr {task:x}",
            segments = in(reg) &raw const segments, interrupts = in(reg) &raw const interrupts,
            task = in(reg) TASK, options(nostack)
        );
    }
}

fn fill_interrupts() {
    for (vector, gate) in INTERRUPTS.chunks_exact(2).enumerate() {
        let [low, high] = interrupt_gate(exception::entry(vector), CODE, FAULT_STACK);
        gate[0].store(low, Ordering::Relaxed);
        gate[1].store(high, Ordering::Relaxed);
    }
}

/// The lower half of a 64-bit task state segment's descriptor, present and available.
fn task_descriptor(base: u64) -> u64 {
    const AVAILABLE_TASK: u64 = 0x89 << 40;
    let limit = (4 * TASK_WORDS - 1) as u64;
    limit | (base & 0xff_ffff) << 16 | AVAILABLE_TASK | (base >> 24 & 0xff) << 56
}

/// A 64-bit interrupt gate to `entry` in the segment `code`, on the interrupt stack of that number; 0: on
/// the stack of the time.
pub fn interrupt_gate(entry: u64, code: u16, stack: u8) -> [u64; 2] {
    const PRESENT_INTERRUPT: u64 = 0x8e << 40;
    let low = entry & 0xffff | (entry >> 16 & 0xffff) << 48;
    let (code, stack) = (u64::from(code) << 16, u64::from(stack) << 32);
    [low | code | stack | PRESENT_INTERRUPT, entry >> 32]
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: u64 = 0xffff_ffff_8765_4321;

    #[test]
    fn a_gate_holds_its_entry_in_three_parts() {
        // APM vol. 2 figure 4-24.
        let [low, high] = interrupt_gate(ADDRESS, CODE, FAULT_STACK);
        assert_eq!(low, 0x8765_8e01_0008_4321);
        assert_eq!(high, 0xffff_ffff);
        let gate = interrupt_gate(0x1122_3344_5566_7788, 0x10, 0);
        assert_eq!(gate, [0x5566_8e00_0010_7788, 0x1122_3344]);
    }

    #[test]
    fn a_task_descriptor_holds_its_base_in_three_parts() {
        // APM vol. 2 figure 4-22.
        assert_eq!(task_descriptor(ADDRESS), 0x8700_8965_4321_0067);
    }
}
