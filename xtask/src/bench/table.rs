//! The table for a terminal.

use super::results::Results;
use super::rows::{Part, ROWS, Row};
use super::systems::System;

/// The systems that always have a column; Xen has one if it was measured.
const SYSTEMS: [(System, &str); 3] = [
    (System::Bare, "bare"),
    (System::Kvm, "KVM"),
    (System::Microvisor, "Microvisor"),
];

/// Returns the table: a line for each row that was measured on some system.
pub(super) fn text(results: &Results) -> String {
    let mut systems = SYSTEMS.to_vec();
    if results.0.contains_key(&System::Xen) {
        systems.insert(2, (System::Xen, "Xen"));
    }
    let names = systems.iter().map(|(_, name)| *name);
    let header = ["instructions"].into_iter().chain(names);
    let header = header.chain(["ratio", "target"]).map(str::to_owned);
    let mut lines: Vec<Vec<String>> = vec![header.collect()];
    for row in ROWS {
        let figures = systems.iter();
        let figures = figures.map(|(system, _)| results.median(*system, row.id));
        let figures: Vec<_> = figures.collect();
        if figures.iter().all(Option::is_none) {
            continue;
        }
        let ratio = ratio(results, row);
        let target = row.target.map_or(String::new(), |target| {
            let mark = match ratio {
                Some(ratio) if ratio > target => " missed",
                _ => "",
            };
            format!("{target}{mark}")
        });
        let mut line = vec![row.title.to_owned()];
        line.extend(figures.into_iter().map(figure));
        line.push(ratio.map_or("–".into(), |ratio| format!("{ratio:.3}")));
        line.push(target);
        lines.push(line);
    }
    aligned(&lines)
}

/// Returns what a row costs with the microvisor, as a share of what it costs without.
pub(super) fn ratio(results: &Results, row: &Row) -> Option<f64> {
    let other = match row.part {
        Part::Root => System::Bare,
        Part::Kernel | Part::Guests | Part::Counted => System::Kvm,
    };
    let ours = results.median(System::Microvisor, row.id)?;
    Some(ours / results.median(other, row.id)?)
}

/// Writes a figure with the digits that matter.
pub(super) fn figure(value: Option<f64>) -> String {
    match value {
        None => "–".into(),
        Some(value) if value < 100.0 => format!("{value:.1}"),
        Some(value) => format!("{value:.0}"),
    }
}

/// Writes lines in columns: the first one and the last one to the left, the others to the right.
pub(super) fn aligned(lines: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = lines.iter().filter_map(|line| line.get(column));
        let cells = cells.map(|cell| cell.chars().count());
        cells.max().unwrap_or_default()
    };
    let mut text = String::new();
    for line in lines {
        let mut written = String::new();
        for (column, cell) in line.iter().enumerate() {
            let width = width(column);
            written += &match column == 0 || column + 1 == line.len() {
                true => format!("{cell:<width$}  "),
                false => format!("{cell:>width$}  "),
            };
        }
        text += written.trim_end();
        text.push('\n');
    }
    text
}
