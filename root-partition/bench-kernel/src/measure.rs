//! Takes the time of operations, and prints it.

use core::fmt::{self, Display};

use test_kernel::console;

use crate::cpu;

/// How often a row is measured.
const SAMPLES: usize = 5;

/// Rows that fit into [`Bench`].
const MOST_ROWS: usize = 64;

/// The samples of one row.
#[derive(Clone, Copy)]
struct Row {
    id: &'static str,
    /// Operations of one sample.
    operations: u64,
    /// Operations of all samples between the marks for QEMU's plugin.
    marked: u64,
    /// Ticks of each sample.
    ticks: [u64; SAMPLES],
}

/// The rows that are wanted, and what was measured. Nothing is printed before the end, because those who take the output
/// would work while the next rows are measured.
pub struct Bench {
    command_line: &'static str,
    rows: [Option<Row>; MOST_ROWS],
}

impl Bench {
    /// Takes the kernel's command line: the option `rows=ID+ID` selects rows, and without it all are wanted. With `smoke`
    /// loops are a tenth as long.
    pub fn new(command_line: &'static str) -> Self {
        Self {
            command_line,
            rows: [None; MOST_ROWS],
        }
    }

    /// Whether the command line has an option.
    pub fn has_option(&self, option: &str) -> bool {
        self.command_line
            .split_ascii_whitespace()
            .any(|word| word == option)
    }

    fn wants(&self, id: &str) -> bool {
        let mut options = self.command_line.split_ascii_whitespace();
        let rows = options.find_map(|option| option.strip_prefix("rows="));
        rows.is_none_or(|rows| rows.split('+').any(|row| row == id))
    }

    /// Measures a loop of an operation, which `run` runs as often as it is told. A sample is the difference of a long loop
    /// and a short one, so that the way into the loop does not count. The loop's own instructions, two or three, do.
    pub fn row(&mut self, id: &'static str, operations: u64, mut run: impl FnMut(u64)) {
        if !self.wants(id) {
            return;
        }
        let operations = match self.has_option("smoke") {
            true => operations / 10,
            false => operations,
        };
        let short = operations / 10;
        // What is needed only once, memory of a hypervisor among it, is there afterwards.
        run(short);
        let sample = |_| {
            let first = ticks(|| run(short));
            let second = ticks(|| run(short + operations));
            second.saturating_sub(first)
        };
        self.measure(id, operations, 2 * short + operations, sample);
    }

    /// Takes the samples of a row: `sample` returns the ticks that `operations` operations took.
    pub fn samples(&mut self, id: &'static str, operations: u64, sample: impl FnMut(usize) -> u64) {
        if self.wants(id) {
            self.measure(id, operations, operations, sample);
        }
    }

    fn measure(
        &mut self,
        id: &'static str,
        operations: u64,
        marked: u64,
        sample: impl FnMut(usize) -> u64,
    ) {
        let ticks = core::array::from_fn(sample);
        let row = Row {
            id,
            operations,
            marked: marked * SAMPLES as u64,
            ticks,
        };
        match self.rows.iter_mut().find(|place| place.is_none()) {
            Some(place) => *place = Some(row),
            None => crate::stop(format_args!("more than {MOST_ROWS} rows")),
        }
    }

    /// Prints the samples of each row.
    pub fn print(&self) {
        for row in self.rows.iter().flatten() {
            let (id, operations, ticks) = (row.id, row.operations, Ticks(row.ticks));
            console::line(format_args!("bench - {id}: {operations}:{ticks}"));
            console::line(format_args!("marked - {}", row.marked));
        }
    }
}

/// The ticks of a row as they are printed.
struct Ticks([u64; SAMPLES]);

impl Display for Ticks {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|ticks| write!(to, " {ticks}"))
    }
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
