//! A kernel that measures what operations cost: the same image runs on a bare machine, and as a guest of
//! any hypervisor that boots by PVH.
//!
//! `measure` takes the time of operations and prints it, `rows` are the operations. The other modules, and the console and
//! ports of the test kernel, are the little that a kernel needs. The first line on COM1 is `bench - begin`, each line
//! `bench - ID: OPERATIONS: TICKS TICKS...` is a result, in ticks of the time-stamp counter, and `bench - end` is the last
//! line.
#![no_std]

use core::fmt;

use measure::Bench;
use test_kernel::console;

pub mod apic;
pub mod cpu;
pub mod measure;
pub mod pci;
pub mod rows;
pub mod second;
pub mod trap;
pub mod virtio;

/// Measures rows, and ends the machine. With the option `end` it only ends the machine, and with `halt` it halts for ever.
/// `start_info` is the address that PVH leaves in EBX.
pub fn main(start_info: u64) -> ! {
    let mut bench = Bench::new(cpu::command_line(start_info));
    if bench.has_option("end") {
        cpu::triple_fault();
    }
    trap::init();
    apic::disable_legacy();
    if bench.has_option("halt") {
        wait_for_ever();
    }
    console::line(format_args!("bench - begin"));
    rows::run(&mut bench);
    bench.print();
    console::line(format_args!("bench - end"));
    cpu::triple_fault()
}

/// Halts and waits for an interrupt, which never comes. Xen would end a guest that halts with interrupts disabled.
fn wait_for_ever() -> ! {
    loop {
        x86_64::instructions::interrupts::enable_and_hlt();
    }
}

/// Ends the machine when nothing can go on.
pub fn stop(why: fmt::Arguments<'_>) -> ! {
    console::line(format_args!("bench - stopped: {why}"));
    cpu::triple_fault()
}
