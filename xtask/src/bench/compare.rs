//! `cargo xtask bench --compare A B`: what has changed between two measurements.

use super::results::{Results, Samples};
use super::rows::ROWS;
use super::table::{aligned, figure};

/// Changes below this share are not told.
const SMALLEST: f64 = 0.01;

/// Returns a table of the rows that have changed beyond their noise.
pub(super) fn text(before: &Results, after: &Results) -> String {
    let header = ["instructions", "system", "before", "after", "change"];
    let mut lines = vec![header.map(str::to_owned).to_vec()];
    for row in ROWS {
        for (system, measured) in &before.0 {
            let later = after.0.get(system).and_then(|rows| rows.get(row.id));
            let Some((before, after)) = measured.get(row.id).zip(later) else {
                continue;
            };
            if let Some(change) = change(before, after) {
                lines.push(vec![
                    row.title.into(),
                    system.to_string(),
                    figure(Some(before.median())),
                    figure(Some(after.median())),
                    format!("{:+.1} %", 100.0 * change),
                ]);
            }
        }
    }
    match lines.len() {
        1 => "nothing has changed\n".into(),
        _ => aligned(&lines),
    }
}

/// Returns the change of the median as a share of what it was; nothing if the samples overlap, or if it is small.
fn change(before: &Samples, after: &Samples) -> Option<f64> {
    let (low, high) = before.range();
    let (later_low, later_high) = after.range();
    let change = after.median() / before.median() - 1.0;
    let is_apart = high < later_low || later_high < low;
    (is_apart && change.abs() >= SMALLEST).then_some(change)
}

#[cfg(test)]
mod tests {
    use super::super::results::parse;
    use super::super::systems::System;
    use super::*;

    fn results(cpuid: &str) -> Results {
        let rows = parse(&format!(
            "bench - begin\nbench - cpuid: 10: {cpuid}\nbench - end\n"
        ))
        .unwrap();
        Results([(System::Kvm, rows)].into())
    }

    #[test]
    fn only_what_is_beyond_the_noise_is_told() {
        let before = results("1000 1010 1100");
        assert_eq!(
            text(&before, &results("1090 1200 1300")),
            "nothing has changed\n",
            "the samples overlap"
        );
        let close = results("2001 2001 2001");
        assert_eq!(
            text(&results("2000 2000 2000"), &close),
            "nothing has changed\n"
        );
        let text = text(&before, &results("505 505 505"));
        assert!(text.contains("-50.0 %"), "{text}");
        assert!(text.contains("a guest of KVM"), "{text}");
    }
}
