//! The tests that boot the image: scripts in VM 0, and machines that must be refused.

use std::panic::resume_unwind;
use std::thread;
use std::time::Duration;

use super::report::Report;
use super::script::Script;
use super::{LazyParts, door};
use crate::machine::{CableEnd, Machine};
use crate::parts::Parts;
use crate::run_folder::RunFolder;
use crate::{Result, bench, image, root};

pub(super) fn run(report: &mut Report, parts: &LazyParts, long: bool) -> Result<()> {
    for case in REFUSED {
        report.test(&format!("refuses to start: {}", case.name), || {
            case.check(parts.get()?)
        });
    }
    let mut tests: Vec<(String, Test)> = Vec::new();
    for &(name, test) in door::TESTS.iter().chain(bench::TESTS) {
        if report.wants(name) {
            tests.push((name.to_owned(), Box::new(test)));
        }
    }
    let (name, test) = bench::XEN_TEST;
    if !long {
        report.skip(name, "takes a long download; --long runs it");
    } else if report.wants(name) {
        tests.push((name.to_owned(), Box::new(test)));
    }
    for script in Script::all(&root().join("root-partition/tests"))? {
        if script.wants.long && !long {
            report.skip(&script.name, "takes long; --long runs it");
        } else if report.wants(&script.name) {
            // What they need is downloaded and built here: not by two of them at once.
            let machine = parts.get().and_then(|parts| machine(&script, parts));
            let name = script.name.clone();
            let test = move |parts: &Parts| pass(&script, &machine?, parts);
            tests.push((name, Box::new(test)));
        }
    }
    if tests.is_empty() {
        return Ok(());
    }
    // A part that can't be built is a failure of each test.
    let parts = parts.get();
    let tests = tests.into_iter().map(|(name, test)| {
        let parts = parts.clone();
        (name, move || test(parts?))
    });
    report.tests_at_once(tests);
    Ok(())
}

/// A test that boots the image.
type Test = Box<dyn FnOnce(&Parts) -> Result<()> + Send>;

/// A script's machine, with its files.
fn machine(script: &Script, parts: &Parts) -> Result<Machine> {
    let mut machine = script.machine();
    for (file, name) in &script.wants.files {
        file.add(&mut machine, name, parts)?;
    }
    if script.wants.debian {
        machine.disks.extend(image::debian_disks()?);
    }
    Ok(machine)
}

/// Runs a script on its machine, or on two with a cable between them.
fn pass(script: &Script, machine: &Machine, parts: &Parts) -> Result<()> {
    if !script.wants.two_machines {
        return pass_on(script, machine, parts);
    }
    let folder = RunFolder::new()?;
    let path = folder.join("cable");
    let ends = [CableEnd::First(path.clone()), CableEnd::Second(path)];
    thread::scope(|scope| {
        let runs = (1..).zip(ends).map(|(number, end)| {
            let machine = Machine {
                // Linux makes a variable of an option that it does not know.
                options: format!("{} machine={number}", machine.options),
                cable: Some(end),
                ..machine.clone()
            };
            let run = move || {
                let passed = pass_on(script, &machine, parts);
                passed.map_err(|why| format!("machine {number}: {why}"))
            };
            scope.spawn(run)
        });
        let runs: Vec<_> = runs.collect();
        let outcomes = runs.into_iter().map(|run| match run.join() {
            Ok(outcome) => outcome,
            Err(panic) => resume_unwind(panic),
        });
        let failures: Vec<_> = outcomes.filter_map(Result::err).collect();
        match failures.is_empty() {
            true => Ok(()),
            false => Err(failures.join("\n")),
        }
    })
}

/// Runs a script, which passes with status 0; what it printed belongs to a failure.
fn pass_on(script: &Script, machine: &Machine, parts: &Parts) -> Result<()> {
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
