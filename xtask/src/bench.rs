//! `cargo xtask bench`: what operations cost on a bare machine, in a guest of KVM, and in a guest of the microvisor.
//!
//! All of them run on the same emulated machine, whose time-stamp counter counts instructions. The operations are those
//! of `root-partition/bench-kernel`.

mod profile;
mod results;
mod rows;
mod systems;
mod table;

use std::fs;
use std::path::PathBuf;

use crate::Result;
use crate::files::context;
use crate::parts::Parts;
use results::Results;
use systems::{Run, System};

/// Options of `cargo xtask bench`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Measure only these rows, which the JSON file names
    rows: Vec<String>,
    /// Measure only these systems
    #[arg(long, value_name = "SYSTEM", value_delimiter = ',')]
    only: Vec<System>,
    /// Write the samples of all rows to FILE, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Print instead in which functions the instructions of the rows are
    #[arg(long, requires = "rows")]
    profile: bool,
}

/// Measures, and prints the table.
pub(crate) fn run(options: &Options) -> Result<()> {
    let parts = Parts::prepare(None)?;
    let mut run = Run::new(&parts, &options.rows)?;
    let mut results = Results::default();
    let all = [System::Bare, System::Kvm, System::Microvisor];
    for system in all {
        if !options.only.is_empty() && !options.only.contains(&system) {
            continue;
        }
        eprintln!("measuring {system}");
        if options.profile {
            println!("{system}:\n{}", run.profile(system)?);
        } else {
            results.0.insert(system, run.measure(system)?);
        }
    }
    if options.profile {
        return Ok(());
    }
    if let Some(file) = &options.json {
        fs::write(file, results.to_json()?).map_err(context(file))?;
    }
    print!("{}", table::text(&results));
    Ok(())
}
