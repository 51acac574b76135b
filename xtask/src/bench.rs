//! `cargo xtask bench`: what operations cost on a bare machine, in a guest of KVM, and in a guest of the microvisor.
//!
//! All of them run on the same emulated machine, whose time-stamp counter counts instructions. The operations are those
//! of `root-partition/bench-kernel`.

mod chart;
mod compare;
mod linux;
mod profile;
mod results;
mod rows;
mod systems;
mod table;
mod xen;

use std::fs;
use std::path::PathBuf;

use crate::Result;
use crate::files::context;
use crate::parts::Parts;
use linux::Linux;
use results::Results;
use rows::{Part, ROWS};
use systems::{Run, System};

/// Options of `cargo xtask bench`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Measure only these rows; a wrong name lists them
    rows: Vec<String>,
    /// Measure only these systems
    #[arg(long, value_name = "SYSTEM", value_delimiter = ',')]
    only: Vec<System>,
    /// Measure another hypervisor, too
    #[arg(long, value_name = "HYPERVISOR")]
    peer: Option<Peer>,
    /// Write the samples of all rows to FILE, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw a chart of the table's ratios into FILE, as SVG
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Print instead in which functions the instructions of the rows are
    #[arg(long, requires = "rows")]
    profile: bool,
    /// Run short loops of the bench kernel alone, to see that they work
    #[arg(long)]
    smoke: bool,
    /// Measure nothing: print what has changed between two files that --json wrote
    #[arg(long, num_args = 2, value_names = ["BEFORE", "AFTER"], exclusive = true)]
    compare: Vec<PathBuf>,
}

/// Another hypervisor that can be measured.
#[derive(Clone, Copy, PartialEq, clap::ValueEnum)]
enum Peer {
    /// Debian's Xen 4.17
    Xen,
}

type Test = fn(&Parts) -> Result<()>;

/// A run of the bench kernel on each system, in which every row is measured.
pub(crate) const TESTS: &[(&str, Test)] = &[
    ("bench: bare", |parts| check(parts, System::Bare)),
    ("bench: KVM", |parts| check(parts, System::Kvm)),
    ("bench: microvisor", |parts| {
        check(parts, System::Microvisor)
    }),
];

/// The same for Xen, which is a long download.
pub(crate) const XEN_TEST: (&str, Test) = ("bench: Xen", |parts| check(parts, System::Xen));

fn check(parts: &Parts, system: System) -> Result<()> {
    let measured = Run::new(parts, &[system], &[], true)?.measure(system)?;
    let mut wanted = ROWS.iter().filter(|row| {
        // Guests of Xen have the rows of a bare machine, and a few more.
        let is_there = row.is_bare || !matches!(system, System::Bare | System::Xen);
        row.part == Part::Kernel && is_there
    });
    let missing = wanted.find(|row| !measured.contains_key(row.id));
    missing.map_or(Ok(()), |row| Err(format!("{} was not measured", row.id)))
}

/// Measures, and prints the table.
pub(crate) fn run(options: &Options) -> Result<()> {
    if let [before, after] = &options.compare[..] {
        let (before, after) = (Results::read(before)?, Results::read(after)?);
        print!("{}", compare::text(&before, &after));
        return Ok(());
    }
    for row in &options.rows {
        check_name(row, options.profile)?;
    }
    let parts = Parts::prepare(None)?;
    let mut systems = vec![System::Bare, System::Kvm, System::Microvisor];
    if options.peer == Some(Peer::Xen) {
        systems.push(System::Xen);
    }
    if !options.only.is_empty() {
        systems = options.only.clone();
    }
    if options.profile && systems.contains(&System::Xen) {
        return Err("Debian's Xen has no symbols for a profile".into());
    }
    let mut run = Run::new(&parts, &systems, &options.rows, options.smoke)?;
    let mut results = Results::default();
    let is_wanted = |part: Part| {
        let mut rows = ROWS.iter().filter(|row| row.part == part);
        let is_named = rows.any(|row| options.rows.iter().any(|id| id == row.id));
        (options.rows.is_empty() || is_named) && (!options.smoke || part == Part::Kernel)
    };
    let is_linux = [Part::Guests, Part::Counted, Part::Root].map(is_wanted);
    let linux = match is_linux.contains(&true) && !options.profile {
        true => Some(Linux::new()?),
        false => None,
    };
    for system in systems {
        eprintln!("measuring {system}");
        if options.profile {
            println!("{system}:\n{}", run.profile(system)?);
            continue;
        }
        let measured = results.0.entry(system).or_default();
        if is_wanted(Part::Kernel) {
            measured.extend(run.measure(system)?);
        }
        let Some(linux) = &linux else { continue };
        if is_wanted(Part::Guests) {
            measured.extend(linux.measure_guests(&run, system)?);
        }
        if is_wanted(Part::Counted) {
            measured.extend(linux.measure_counted(&run, system)?);
        }
        if is_wanted(Part::Root) {
            measured.extend(linux.measure_root(&run, system)?);
        }
    }
    if options.profile {
        return Ok(());
    }
    if let Some(file) = &options.json {
        fs::write(file, results.to_json()?).map_err(context(file))?;
    }
    if let Some(file) = &options.svg {
        fs::write(file, chart::svg(&results)).map_err(context(file))?;
    }
    print!("{}", table::text(&results));
    Ok(())
}

/// Checks the name of a row; a profile has only rows of the bench kernel.
fn check_name(row: &str, is_profile: bool) -> Result<()> {
    let rows = ROWS.iter();
    let rows = rows.filter(|row| !is_profile || row.part == Part::Kernel);
    let known: Vec<_> = rows.map(|row| row.id).collect();
    if known.contains(&row) {
        return Ok(());
    }
    let known = known.join(", ");
    let profile = if is_profile { " of a profile" } else { "" };
    Err(format!("{row}: no such row{profile}; the rows are {known}"))
}
