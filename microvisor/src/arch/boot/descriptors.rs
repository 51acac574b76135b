//! Each CPU's descriptor table and task state segment, and the interrupt descriptor table of all.
//!
//! The task state segment has one purpose: it gives exceptions a stack of their own, so that they can be handled
//! when the interrupted stack is what failed (APM vol. 2 §8.9.4).
#![allow(unsafe_code, reason = "loads descriptor tables")]

use core::sync::atomic::{AtomicU64, Ordering};

use guest_proto::limits::MAX_CPUS;
use spin::Once;
use x86_64::instructions::tables::{lidt, load_tss};
use x86_64::registers::segmentation::SegmentSelector;
use x86_64::structures::DescriptorTablePointer;
use x86_64::structures::gdt::{Descriptor, GlobalDescriptorTable};
use x86_64::structures::tss::TaskStateSegment;
use x86_64::{PrivilegeLevel, VirtAddr};

use crate::arch::{exception, stack};

const CODE: SegmentSelector = SegmentSelector::new(1, PrivilegeLevel::Ring0);
/// Number of the interrupt stack that every exception uses, from 1.
const FAULT_STACK: u8 = 1;

/// The tables of one CPU.
struct PerCpu {
    task: Once<TaskStateSegment>,
    segments: Once<GlobalDescriptorTable>,
}

static CPUS: [PerCpu; MAX_CPUS as usize] = [const {
    PerCpu {
        task: Once::new(),
        segments: Once::new(),
    }
}; MAX_CPUS as usize];

/// The interrupt descriptor table. The microvisor's own page tables map it for reading only.
#[cfg_attr(target_os = "none", unsafe(link_section = ".protected"))]
static INTERRUPTS: [AtomicU64; 2 * exception::VECTORS] =
    [const { AtomicU64::new(0) }; 2 * exception::VECTORS];

/// Loads this CPU's tables: from here on an exception is a panic with a report.
pub fn load() {
    let Some((index, cpu)) = stack::cpu().and_then(|index| Some((index, CPUS.get(index)?))) else {
        return;
    };
    let task = cpu.task.call_once(|| {
        let mut task = TaskStateSegment::new();
        let fault_stack = usize::from(FAULT_STACK) - 1;
        task.interrupt_stack_table[fault_stack] = VirtAddr::new_truncate(stack::fault_top(index));
        task
    });
    let mut selector = SegmentSelector::NULL;
    let segments = cpu.segments.call_once(|| {
        let mut segments = GlobalDescriptorTable::new();
        segments.append(Descriptor::kernel_code_segment());
        segments.append(Descriptor::kernel_data_segment());
        selector = segments.append(Descriptor::tss_segment(task));
        segments
    });
    if index == 0 {
        fill_interrupts();
    }
    let interrupts = DescriptorTablePointer {
        limit: size_of_val(&INTERRUPTS) as u16 - 1,
        base: VirtAddr::new_truncate((&raw const INTERRUPTS) as u64),
    };
    segments.load();
    // SAFETY: the tables are complete and static; code and data stand where the segment registers have them.
    unsafe {
        lidt(&interrupts);
        load_tss(selector);
    }
}

fn fill_interrupts() {
    for (vector, gate) in INTERRUPTS.chunks_exact(2).enumerate() {
        let [low, high] = interrupt_gate(exception::entry(vector), CODE.0, FAULT_STACK);
        gate[0].store(low, Ordering::Relaxed);
        gate[1].store(high, Ordering::Relaxed);
    }
}

/// Returns a 64-bit interrupt gate to `entry` in the segment `code`. The handler runs on the interrupt stack with
/// number `stack`, or, if that is 0, on the interrupted stack.
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
        let [low, high] = interrupt_gate(ADDRESS, CODE.0, FAULT_STACK);
        assert_eq!(low, 0x8765_8e01_0008_4321);
        assert_eq!(high, 0xffff_ffff);
        let gate = interrupt_gate(0x1122_3344_5566_7788, 0x10, 0);
        assert_eq!(gate, [0x5566_8e00_0010_7788, 0x1122_3344]);
    }
}
