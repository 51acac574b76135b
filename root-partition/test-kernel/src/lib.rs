//! A kernel that the microvisor boots in VM 0's place, and that drives every hypercall, good and
//! bad, without a Linux in between: each case prints a line, and the machine ends with a status.
//!
//! `cpu`, `trap`, `apic`, `memory`, `acpi`, `options` and `second` are the little that a kernel needs; `hv`
//! makes hypercalls; `cases` are the tests. Everything but the entry points compiles on the
//! host too, where nothing runs it.
#![no_std]

use core::fmt;

pub mod acpi;
pub mod apic;
pub mod cases;
pub mod console;
pub mod cpu;
pub mod guest;
pub mod hv;
pub mod memory;
pub mod options;
pub mod probe;
pub mod registers;
pub mod report;
pub mod ring3;
pub mod second;
pub mod trap;
pub mod waiting;

/// The first CPU: runs every case, or with the options `random=CALLS seed=SEED` only that many random calls on
/// both CPUs, or with `costs=1` only what exits cost. `second_entry` is where the second CPU begins.
pub fn first(boot_params: u64, second_entry: u64) -> ! {
    trap::init(0);
    cpu::enable_vectors();
    memory::init(boot_params);
    apic::init();
    let has_second = match second::find(boot_params) {
        Ok(has_second) => has_second,
        Err(why) => stop(format_args!("the second CPU: {why}")),
    };
    let mut well = true;
    let mut more: &[_] = &[];
    if has_second {
        more = cases::TWO_CPUS;
        let (group, cases) = cases::WAITING;
        well &= report::run(group, cases);
        if let Err(why) = second::start(second_entry) {
            stop(format_args!("the second CPU: {why}"));
        }
    }
    if options::number(boot_params, "costs=").is_some() {
        console::exit(report::run("costs", cases::costs::COSTS));
    }
    let random = options::number(boot_params, "random=");
    match random.zip(options::number(boot_params, "seed=")) {
        Some((calls, seed)) => {
            cases::random::set_long(calls, seed);
            well &= report::run("random", cases::random::LONG);
        }
        None => {
            for (group, cases) in cases::GROUPS.iter().chain(more) {
                well &= report::run(group, cases);
            }
        }
    }
    console::exit(well)
}

/// Ends the machine when nothing can go on.
pub fn stop(why: fmt::Arguments<'_>) -> ! {
    console::line(format_args!(
        "not ok - the test kernel runs to its end: {why}"
    ));
    console::exit(false)
}
