//! `vmctl top`: who uses the CPUs, and why guests leave them.
//!
//! [`sample`] reads the driver's counters and `/proc`; [`rates`] compares two samples; this file
//! prints them, once or as a live screen.

mod rates;
mod sample;
mod screen;

use std::io;
use std::thread;
use std::time::Duration;

use serde::Serialize;

use super::DeviceArgs;
use super::output::{self, Colour, Column, Format, FormatArgs, Style, Table};
use crate::config::{BadDuration, parse_duration};
use crate::driver::Device;
use crate::exit::{ExitStatus, Failed};
use rates::{KINDS, Rates, compare};
use sample::Sample;

#[derive(Debug, clap::Args)]
pub(super) struct TopArgs {
    /// Print once, after one interval, as plain text
    #[arg(short, long)]
    batch: bool,
    /// Print COUNT times, as plain text, and end
    #[arg(short = 'n', long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    count: Option<u32>,
    /// Time between two measurements: 2s, 500ms
    #[arg(short, long, value_name = "TIME", default_value = "2s", value_parser = interval)]
    interval: Duration,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Error: a text is no interval.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum BadInterval {
    #[error(transparent)]
    NotATime(#[from] BadDuration),
    #[error("at least 100ms: CPU time is counted in ticks of 10 ms")]
    Short,
}

fn interval(text: &str) -> Result<Duration, BadInterval> {
    let interval = parse_duration(text)?;
    if interval < Duration::from_millis(100) {
        return Err(BadInterval::Short);
    }
    Ok(interval)
}

/// The output of `--format json`.
#[derive(Debug, Serialize)]
struct Report<'a> {
    interval_seconds: f64,
    rows: &'a [Rates],
}

pub(super) fn run(args: &TopArgs) -> Result<(), Failed> {
    let device = args.device.open()?;
    let take = || Sample::take(&device).map_err(|e| Failed::new(ExitStatus::Platform, e));
    let json = args.format.format == Format::Json;
    let stdout = io::IsTerminal::is_terminal(&io::stdout());
    if !args.batch && !json && stdout && args.count.is_none() {
        return live(&device, args.interval);
    }
    let mut before = take()?;
    let mut seen = [false; KINDS.len()];
    for round in 0..args.count.unwrap_or(1) {
        thread::sleep(args.interval);
        let after = take()?;
        let rows = compare(&before, &after);
        if json {
            output::json(&Report {
                interval_seconds: after.seconds_since(&before),
                rows: &rows,
            })?;
        } else {
            let gap = if round > 0 { "\n" } else { "" };
            let table = table(&rows, &mut seen).render(Style::default());
            output::text(&format!("{gap}{table}"))?;
        }
        before = after;
    }
    Ok(())
}

/// Count of a VM's exits for one reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Exits {
    /// Name of the kind in the ABI.
    pub(super) name: &'static str,
    /// The kind as `top` shows it.
    pub(super) heading: &'static str,
    /// All virtual CPUs together.
    pub(super) count: u64,
}

/// Returns the exits of a partition since it was made, by kind; nothing if it is gone.
pub(super) fn exits(device: &Device, id: u64) -> Vec<Exits> {
    let vcpus = device.partition_info(id).map_or(0, |info| info.vcpus);
    let counters = sample::counters(device, id, vcpus);
    let kinds = KINDS.iter().map(|kind| Exits {
        name: kind.name(),
        heading: kind.heading,
        count: counters.iter().map(|counters| kind.count(counters)).sum(),
    });
    kinds.collect()
}

fn live(device: &Device, interval: Duration) -> Result<(), Failed> {
    let take = || Sample::take(device).map_err(|e| Failed::new(ExitStatus::Platform, e));
    let mut before = take()?;
    let mut seen = [false; KINDS.len()];
    let mut screen = screen::Screen::enter()?;
    screen.draw("measuring ...\n")?;
    while !screen.quit_within(interval)? {
        let after = take()?;
        let rows = compare(&before, &after);
        let seconds = after.seconds_since(&before);
        let table = table(&rows, &mut seen).render(Style::of_stdout());
        screen.draw(&format!(
            "per second over {seconds:.1} s; q quits\n\n{table}"
        ))?;
        before = after;
    }
    Ok(())
}

/// Root's CPUs, then VMs; a column for each kind of exit that occurs, or was `seen` before, so that
/// columns do not come and go.
fn table(rows: &[Rates], seen: &mut [bool; KINDS.len()]) -> Table {
    for (kind, seen) in seen.iter_mut().enumerate() {
        *seen |= rows.iter().any(|row| row.by_kind[kind] > 0.0);
    }
    let kinds: Vec<usize> = (0..KINDS.len()).filter(|&kind| seen[kind]).collect();
    let mut columns = vec![
        Column::Right("ID"),
        Column::Left("NAME"),
        Column::Right("CPU%"),
        Column::Right("GUEST%"),
        Column::Right("EXITS/S"),
    ];
    columns.extend(kinds.iter().map(|&kind| Column::Right(KINDS[kind].heading)));
    let mut table = Table::new(columns);
    for row in rows {
        let percent = |value: Option<f64>| value.map_or("-".to_owned(), |v| format!("{v:.1}"));
        let fixed = [
            row.id.to_string(),
            row.name.clone(),
            percent(row.cpu_percent),
            percent(row.guest_percent),
            format!("{:.0}", row.exits),
        ];
        let by_kind = kinds
            .iter()
            .map(|&kind| format!("{:.0}", row.by_kind[kind]));
        let cells = fixed.into_iter().chain(by_kind);
        table.row(cells.map(|cell| (cell, Colour::Plain)));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_the_kinds_that_occurred() {
        let mut row = Rates {
            id: 3,
            name: "demo".to_owned(),
            cpu: None,
            cpu_percent: Some(12.34),
            guest_percent: None,
            exits: 7.0,
            by_kind: [0.0; KINDS.len()],
        };
        row.by_kind[1] = 7.0;
        let mut seen = [false; KINDS.len()];
        let mut render = |row: &Rates| {
            let table = table(std::slice::from_ref(row), &mut seen);
            table.render(Style::default())
        };
        assert_eq!(
            render(&row),
            "ID  NAME  CPU%  GUEST%  EXITS/S  CPUID\n 3  demo  12.3       -        7      7\n"
        );
        row.by_kind[1] = 0.0;
        assert!(render(&row).contains("CPUID\n"));
    }

    #[test]
    fn an_interval_has_a_least() {
        assert!(interval("50ms").is_err());
        assert_eq!(interval("1s"), Ok(Duration::from_secs(1)));
    }
}
