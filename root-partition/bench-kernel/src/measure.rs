//! Takes the time of an operation, and prints it.

use core::fmt::{self, Display};

use crate::{console, cpu};

/// How often a row is measured.
const SAMPLES: usize = 5;

/// Ticks of the samples of one row.
struct Samples([u64; SAMPLES]);

impl Display for Samples {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|ticks| write!(to, " {ticks}"))
    }
}

/// Prints the samples of a row: `sample` returns the ticks that `operations` operations took.
pub fn samples(id: &str, operations: u64, sample: impl FnMut(usize) -> u64) {
    let samples = Samples(core::array::from_fn(sample));
    console::line(format_args!("bench - {id}: {operations}:{samples}"));
}

/// Measures a loop of an operation, which `run` runs as often as it is told. A sample is the difference of a long loop
/// and a short one, so that the way into the loop does not count. The loop's own instructions, two or three, do.
pub fn row(id: &str, operations: u64, mut run: impl FnMut(u64)) {
    let short = operations / 10;
    // What is needed only once, memory of a hypervisor among it, is there afterwards.
    run(short);
    samples(id, operations, |_| {
        let first = ticks(|| run(short));
        let second = ticks(|| run(short + operations));
        second.saturating_sub(first)
    });
}

/// Ticks that something takes.
pub fn ticks(run: impl FnOnce()) -> u64 {
    let start = cpu::tsc();
    run();
    cpu::tsc().wrapping_sub(start)
}
