//! The chart: for each row the ratio to KVM, or of VM 0 to a bare machine, as a bar on a logarithmic axis.

use std::fmt::Write;

use super::results::Results;
use super::rows::ROWS;
use super::table::ratio;

/// The axis, with its marks.
const LEAST: f64 = 0.02;
const MOST: f64 = 2.0;
const MARKS: [f64; 6] = [0.02, 0.05, 0.1, 0.2, 0.5, 1.0];
/// Places in pixels.
const LEFT: f64 = 360.0;
const WIDTH: f64 = 480.0;
const LINE: f64 = 20.0;
const TOP: f64 = 60.0;

/// Returns the chart as an SVG image.
pub(super) fn svg(results: &Results) -> String {
    let rows = ROWS.iter();
    let bars: Vec<_> = rows
        .filter_map(|row| Some((row, ratio(results, row)?)))
        .collect();
    let height = TOP + LINE * bars.len() as f64 + 10.0;
    let bottom = height - 10.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"940\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"10\" y=\"20\" font-size=\"15\">Instructions of an operation in a guest of the microvisor, as a share of those with KVM</text>\n\
         <text x=\"10\" y=\"38\">VM 0: as a share of those on a bare machine. A line in a bar's row is its target.</text>\n"
    );
    for mark in MARKS {
        let x = place(mark);
        let colour = if mark == 1.0 { "black" } else { "lightgray" };
        let _ = writeln!(
            svg,
            "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{bottom}\" stroke=\"{colour}\"/>\
             <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{mark}</text>",
            TOP - 6.0
        );
    }
    for (number, (row, ratio)) in bars.iter().enumerate() {
        let y = TOP + LINE * number as f64;
        let (from, to) = (place(1.0).min(place(*ratio)), place(1.0).max(place(*ratio)));
        let is_met = row.target.is_none_or(|target| *ratio <= target);
        let colour = if is_met { "#2a7f62" } else { "#c77700" };
        let middle = y + LINE / 2.0 + 4.0;
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{middle:.1}\" text-anchor=\"end\">{}</text>\
             <rect x=\"{from:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{colour}\"/>\
             <text x=\"{:.1}\" y=\"{middle:.1}\">{ratio:.3}</text>",
            LEFT - 8.0,
            escaped(row.title),
            y + 3.0,
            (to - from).max(1.0),
            LINE - 6.0,
            LEFT + WIDTH + 10.0,
        );
        if let Some(target) = row.target {
            let x = place(target);
            let _ = writeln!(
                svg,
                "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{:.1}\" y2=\"{:.1}\" stroke=\"black\" stroke-width=\"2\"/>",
                y + 1.0,
                y + LINE - 1.0
            );
        }
    }
    svg + "</svg>\n"
}

/// Returns where a ratio is on the axis.
fn place(ratio: f64) -> f64 {
    let share = (ratio.clamp(LEAST, MOST) / LEAST).ln() / (MOST / LEAST).ln();
    LEFT + WIDTH * share
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::super::results::Samples;
    use super::super::systems::System;
    use super::*;

    #[test]
    fn a_row_has_a_bar_up_to_its_ratio() {
        let measured = |instructions| [("cpuid".into(), Samples::new(1, instructions))].into();
        let results = Results(
            [
                (System::Kvm, measured(1000)),
                (System::Microvisor, measured(100)),
            ]
            .into(),
        );
        let svg = svg(&results);
        assert_eq!(svg.matches("<rect x=").count(), 1, "{svg}");
        assert!(svg.contains(">0.100</text>"), "{svg}");
        let bar = format!("<rect x=\"{:.1}\"", place(0.1));
        assert!(svg.contains(&bar), "{svg}");
        assert_eq!(place(1e-9), LEFT);
    }
}
