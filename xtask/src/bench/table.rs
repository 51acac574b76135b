//! The table for a terminal.

use super::results::Results;
use super::rows::{Part, ROWS, Row};
use super::systems::System;

const HEADER: [&str; 6] = [
    "instructions",
    "bare",
    "KVM",
    "Microvisor",
    "ratio",
    "target",
];

/// Returns the table: a line for each row that was measured on some system.
pub(super) fn text(results: &Results) -> String {
    let mut lines = vec![HEADER.map(str::to_owned)];
    for row in ROWS {
        let of = |system| results.median(system, row.id);
        let (bare, kvm, microvisor) = (of(System::Bare), of(System::Kvm), of(System::Microvisor));
        if bare.or(kvm).or(microvisor).is_none() {
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
        lines.push([
            row.title.into(),
            figure(bare),
            figure(kvm),
            figure(microvisor),
            ratio.map_or("–".into(), |ratio| format!("{ratio:.3}")),
            target,
        ]);
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
pub(super) fn aligned<const COLUMNS: usize>(lines: &[[String; COLUMNS]]) -> String {
    let width = |column: usize| {
        let cells = lines.iter().map(|line| line[column].chars().count());
        cells.max().unwrap_or_default()
    };
    let mut text = String::new();
    for line in lines {
        let mut written = format!("{:<1$}", line[0], width(0));
        for (column, cell) in line.iter().enumerate().skip(1) {
            written += &match column + 1 == COLUMNS {
                true => format!("  {cell}"),
                false => format!("  {cell:>0$}", width(column)),
            };
        }
        text += written.trim_end();
        text.push('\n');
    }
    text
}
