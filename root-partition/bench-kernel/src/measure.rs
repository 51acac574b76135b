//! Takes the time of operations, and prints it.

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

/// The rows that are wanted.
pub struct Bench {
    command_line: &'static str,
}

impl Bench {
    /// Takes the kernel's command line: the option `rows=ID+ID` selects rows, and without it all are wanted.
    pub fn new(command_line: &'static str) -> Self {
        Self { command_line }
    }

    fn wants(&self, id: &str) -> bool {
        let mut options = self.command_line.split_ascii_whitespace();
        let rows = options.find_map(|option| option.strip_prefix("rows="));
        rows.is_none_or(|rows| rows.split('+').any(|row| row == id))
    }

    /// Measures a loop of an operation, which `run` runs as often as it is told. A sample is the difference of a long loop
    /// and a short one, so that the way into the loop does not count. The loop's own instructions, two or three, do.
    pub fn row(&self, id: &str, operations: u64, mut run: impl FnMut(u64)) {
        if !self.wants(id) {
            return;
        }
        let short = operations / 10;
        // What is needed only once, memory of a hypervisor among it, is there afterwards.
        run(short);
        let sample = |_| {
            let first = ticks(|| run(short));
            let second = ticks(|| run(short + operations));
            second.saturating_sub(first)
        };
        print(id, operations, 2 * short + operations, sample);
    }

    /// Prints the samples of a row: `sample` returns the ticks that `operations` operations took.
    pub fn samples(&self, id: &str, operations: u64, sample: impl FnMut(usize) -> u64) {
        if self.wants(id) {
            print(id, operations, operations, sample);
        }
    }
}

/// Takes samples, of `operations` operations each, and prints them. `marked` operations of a sample are between the
/// marks for QEMU's plugin.
fn print(id: &str, operations: u64, marked: u64, sample: impl FnMut(usize) -> u64) {
    let samples = Samples(core::array::from_fn(sample));
    console::line(format_args!("bench - {id}: {operations}:{samples}"));
    let marked = marked * SAMPLES as u64;
    console::line(format_args!("marked - {marked}"));
}

/// Ticks that something takes, which is between two marks.
pub fn ticks(run: impl FnOnce()) -> u64 {
    cpu::mark_begin();
    let start = cpu::tsc();
    run();
    let end = cpu::tsc();
    cpu::mark_end();
    end.wrapping_sub(start)
}
