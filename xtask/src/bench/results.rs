//! What was measured: samples of each row on each system.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::systems::System;
use crate::Result;
use crate::files::context;

/// Samples of each row, by its identifier, on each system.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Results(pub(super) BTreeMap<System, Measured>);

/// Samples of each row on one system.
pub(super) type Measured = BTreeMap<String, Samples>;

/// How long some operations took, several times.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Samples {
    /// Operations of one sample.
    operations: u64,
    /// Instructions of each sample.
    instructions: Vec<u64>,
}

impl Samples {
    /// One sample.
    pub(super) fn new(operations: u64, instructions: u64) -> Self {
        Self {
            operations,
            instructions: vec![instructions],
        }
    }

    /// Returns the least and the most instructions that one operation takes.
    pub(super) fn range(&self) -> (f64, f64) {
        let each = |instructions: Option<&u64>| {
            *instructions.unwrap_or(&0) as f64 / self.operations as f64
        };
        (
            each(self.instructions.iter().min()),
            each(self.instructions.iter().max()),
        )
    }

    /// Returns the instructions that one operation takes: the median of the samples.
    pub(super) fn median(&self) -> f64 {
        let mut sorted = self.instructions.clone();
        sorted.sort_unstable();
        let middle = sorted.get(sorted.len() / 2).copied().unwrap_or_default();
        middle as f64 / self.operations as f64
    }
}

impl Results {
    /// Reads what [`Self::to_json`] has made.
    pub(super) fn read(file: &Path) -> Result<Self> {
        let text = fs::read_to_string(file).map_err(context(file))?;
        serde_json::from_str(&text).map_err(|error| format!("{}: {error}", file.display()))
    }

    pub(super) fn to_json(&self) -> Result<String> {
        let json = serde_json::to_string_pretty(self);
        json.map_err(|error| format!("the results: {error}"))
    }

    /// Returns the median of a row on a system, if it was measured there.
    pub(super) fn median(&self, system: System, row: &str) -> Option<f64> {
        Some(self.0.get(&system)?.get(row)?.median())
    }
}

/// Reads what runs of the bench kernel printed, among other lines. Fails if one of them did not come to its end.
pub(super) fn parse(console: &str) -> Result<Measured> {
    let lines = console
        .lines()
        .filter_map(|line| line.strip_prefix("bench - "));
    let mut measured = Measured::new();
    let (mut begun, mut ended) = (0, 0);
    for line in lines {
        match line.trim_end() {
            "begin" => begun += 1,
            "end" => ended += 1,
            line => measured.extend(row(line).map(|(row, samples)| (row.to_owned(), samples))),
        }
    }
    if begun > 0 && begun == ended {
        return Ok(measured);
    }
    let last = console.lines().next_back().unwrap_or_default();
    Err(format!(
        "the bench kernel did not come to its end, but to: {last}"
    ))
}

/// Returns how many operations ran between the bench kernel's marks, which it prints for each row.
pub(super) fn marked(console: &str) -> u64 {
    let lines = console
        .lines()
        .filter_map(|line| line.strip_prefix("marked - "));
    lines
        .filter_map(|number| number.trim_end().parse::<u64>().ok())
        .sum()
}

/// `cpuid: 1000: 439000 438990` → the row and its samples.
fn row(line: &str) -> Option<(&str, Samples)> {
    let mut fields = line.split(": ");
    let (row, operations, instructions) = (fields.next()?, fields.next()?, fields.next()?);
    let instructions: std::result::Result<Vec<u64>, _> =
        instructions.split_whitespace().map(str::parse).collect();
    let samples = Samples {
        operations: operations
            .parse()
            .ok()
            .filter(|operations| *operations > 0)?,
        instructions: instructions.ok().filter(|samples| !samples.is_empty())?,
    };
    Some((row, samples))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_bench_kernel_are_read() {
        let measured = parse(
            "SeaBIOS\nbench - begin\r\nbench - cpuid: 10: 40 50 4000\r\n....\nbench - end\n\
                   bench - begin\nbench - doorbell: 10: 50\nbench - end\n",
        )
        .unwrap();
        assert_eq!(measured.len(), 2);
        assert_eq!(measured["cpuid"].median(), 5.0);
    }

    #[test]
    fn a_kernel_that_stopped_is_an_error() {
        let error =
            parse("bench - begin\nbench - cpuid: 10: 40\nbench - stopped: exception").unwrap_err();
        assert!(error.contains("stopped: exception"), "{error}");
        assert!(row("cpuid: 0: 1").is_none());
    }
}
