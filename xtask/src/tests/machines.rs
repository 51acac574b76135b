//! The tests that boot the image: scripts in VM 0, and machines that must be refused.

use std::time::Duration;

use super::LazyParts;
use super::report::Report;
use super::script::Script;
use crate::image;
use crate::machine::Machine;
use crate::parts::Parts;
use crate::{Result, root};

pub(super) fn run(report: &mut Report, parts: &LazyParts, long: bool) -> Result<()> {
    for case in REFUSED {
        report.test(&format!("refuses to start: {}", case.name), || {
            case.check(parts.get()?)
        });
    }
    let mut cases = Vec::new();
    for script in Script::all(&root().join("root-partition/tests"))? {
        if script.wants.long && !long {
            report.skip(&script.name, "takes long; --long runs it");
        } else if report.wants(&script.name) {
            // What they need is downloaded and built here: not by two of them at once.
            let machine = parts.get().and_then(|parts| machine(&script, parts));
            cases.push((script, machine));
        }
    }
    if cases.is_empty() {
        return Ok(());
    }
    let parts = parts.get()?;
    let tests = cases.into_iter().map(|(script, machine)| {
        let name = script.name.clone();
        (name, move || pass(&script, &machine?, parts))
    });
    report.tests_at_once(tests);
    Ok(())
}

/// A script's machine, with its files.
fn machine(script: &Script, parts: &Parts) -> Result<Machine> {
    let mut machine = script.machine();
    for (file, name) in &script.wants.files {
        machine.add_file(&file.path(parts)?, name)?;
    }
    if script.wants.debian {
        machine.disks.extend(image::debian_disks()?);
    }
    Ok(machine)
}

/// Runs a script, which passes with status 0; what it printed belongs to a failure.
fn pass(script: &Script, machine: &Machine, parts: &Parts) -> Result<()> {
    let mut output = Vec::new();
    let result = machine.script(parts, &script.path, &mut output);
    let result = result.and_then(|ended| match ended.status {
        0 => Ok(()),
        status => Err(format!(
            "status {status}; the console: {}",
            ended.keep_log()?.display()
        )),
    });
    result.map_err(|why| {
        let output = String::from_utf8_lossy(&output);
        format!("{why}\nIt printed:\n{}", output.trim_end())
    })
}

/// A machine on which the microvisor cannot run, and what it says.
struct Refused {
    name: &'static str,
    cpus: u32,
    cpu: &'static str,
    memory: &'static str,
    modules: bool,
    options: &'static str,
    says: &'static str,
}

const GOOD: Refused = Refused {
    name: "",
    cpus: 2,
    cpu: "EPYC-Milan",
    memory: "4G",
    modules: true,
    options: "",
    says: "",
};

const REFUSED: &[Refused] = &[
    Refused {
        name: "no SVM",
        cpu: "EPYC-Milan,svm=off",
        says: "this CPU has no SVM",
        ..GOOD
    },
    Refused {
        name: "no nested paging",
        cpu: "EPYC-Milan,npt=off",
        says: "no nested paging",
        ..GOOD
    },
    Refused {
        name: "256 MiB",
        memory: "256M",
        says: "at least 512 MiB are needed",
        ..GOOD
    },
    Refused {
        name: "65 CPUs",
        cpus: 65,
        says: "the machine has 65 CPUs; 64 are the most",
        ..GOOD
    },
    Refused {
        name: "a wrong option",
        options: "speculation=none",
        says: "command line: speculation= takes safe, guests or off",
        ..GOOD
    },
    Refused {
        name: "no modules",
        modules: false,
        says: "no boot modules",
        ..GOOD
    },
];

impl Refused {
    fn check(&self, parts: &Parts) -> Result<()> {
        let machine = Machine {
            cpus: self.cpus,
            cpu: self.cpu.into(),
            memory: self.memory.into(),
            modules: self.modules,
            own_options: self.options.into(),
            timeout: Duration::from_secs(30),
            ..Machine::default()
        };
        let why = machine.refusal(parts)?;
        if why.contains(self.says) {
            Ok(())
        } else {
            Err(format!("it says {why:?}"))
        }
    }
}
