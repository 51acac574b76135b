//! The test kernel in VM 0's place: built, booted on 1 and 2 CPUs, and each line that it prints
//! is a test.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::files::context;
use crate::machine::{ICOUNT, TCG_OPTIONS, emulator};
use crate::packages;
use crate::run_folder::RunFolder;
use crate::{Result, freestanding, supervise};

/// Some seconds are usual.
const TIMEOUT: Duration = Duration::from_secs(120);
/// Calls of the long run, and its time.
const LONG_CALLS: u64 = 1_000_000;
const LONG_TIMEOUT: Duration = Duration::from_secs(1200);
/// QEMU's status when the test kernel says that all is well.
const WELL: i32 = 0x10 << 1 | 1;
const CONSOLE: &str = "console.log";

/// Builds it; its bzImage.
pub(crate) fn build() -> Result<PathBuf> {
    freestanding::build_package("test-kernel")
}

/// Runs it and tells `record` of each case.
pub(crate) fn run(record: &mut dyn FnMut(&str, &Result<()>)) {
    for cpus in [1, 2] {
        run_one(
            &format!("test kernel, {cpus} CPUs"),
            cpus,
            "",
            TIMEOUT,
            record,
        );
    }
}

/// Runs many calls at random on it, which differ each time, and tells `record` of them.
pub(crate) fn run_long(record: &mut dyn FnMut(&str, &Result<()>)) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let seed = now.map_or(0, |now| now.as_secs());
    let name = format!("test kernel, {LONG_CALLS} calls of seed {seed}");
    let options = format!(" random={LONG_CALLS} seed={seed}");
    run_one(&name, 2, &options, LONG_TIMEOUT, record);
}

/// Prints how many instructions a guest's exits take on one CPU, a line for each.
pub(crate) fn print_costs() -> Result<()> {
    let end = boot(1, " costs=1", &ICOUNT, TIMEOUT)?;
    for line in end.console.lines() {
        if let Some(cost) = line.strip_prefix("cost - ") {
            println!("{cost}");
        }
    }
    end.result(TIMEOUT)
}

fn run_one(
    name: &str,
    cpus: u32,
    options: &str,
    timeout: Duration,
    record: &mut dyn FnMut(&str, &Result<()>),
) {
    let end = boot(cpus, options, &[], timeout).and_then(|end| {
        for (case, result) in end.console.lines().filter_map(case) {
            record(&format!("{name}: {case}"), &result);
        }
        end.result(timeout)
    });
    record(&format!("{name}: it runs to its end"), &end);
}

/// What became of a machine.
struct End {
    console: String,
    /// QEMU's status, unless it had to be ended.
    status: Option<i32>,
    folder: RunFolder,
}

impl End {
    fn result(&self, timeout: Duration) -> Result<()> {
        let what = match self.status {
            Some(WELL) => return Ok(()),
            Some(status) => format!("QEMU's status is {status}"),
            None => format!("it hangs: no end after {} s", timeout.as_secs()),
        };
        let kept = self
            .folder
            .keep(&self.folder.join(CONSOLE), "test-kernel")?;
        let last = self.console.lines().next_back().unwrap_or_default();
        Err(format!(
            "{what}; the console ({}) ends: {last}",
            kept.display()
        ))
    }
}

fn boot(cpus: u32, options: &str, more: &[&str], timeout: Duration) -> Result<End> {
    packages::install_qemu()?;
    let (microvisor, kernel) = (freestanding::build()?, build()?);
    let folder = RunFolder::new()?;
    let log = folder.join(CONSOLE);
    let errors = folder.join("qemu.log");
    let module = format!("{}{options}", kernel.display());
    let mut qemu = qemu(cpus, &microvisor, &module, &log);
    qemu.args(more);
    qemu.stderr(File::create(&errors).map_err(context(&errors))?);
    let status = supervise::exit_code(&mut qemu, timeout)?;
    let console = fs::read(&log).map_err(context(&log))?;
    Ok(End {
        console: String::from_utf8_lossy(&console).into_owned(),
        status,
        folder,
    })
}

/// A machine without Linux: its kernel, with options after its path, is the only module.
pub(crate) fn qemu(cpus: u32, microvisor: &Path, kernel: &str, log: &Path) -> Command {
    let mut qemu = emulator();
    qemu.args(["-cpu", "EPYC-Milan", "-m", "1G", "-smp", &cpus.to_string()])
        .args(["-display", "none", "-no-reboot", "-nic", "none"])
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"])
        .args(["-monitor", "none", "-serial"])
        .arg(format!("file:{}", log.display()))
        .arg("-kernel")
        .arg(microvisor)
        .args(["-append", TCG_OPTIONS])
        .arg("-initrd")
        .arg(kernel)
        .stdin(Stdio::null());
    qemu
}

/// `ok - name` or `not ok - name: why`.
fn case(line: &str) -> Option<(&str, Result<()>)> {
    if let Some(name) = line.strip_prefix("ok - ") {
        return Some((name, Ok(())));
    }
    let rest = line.strip_prefix("not ok - ")?;
    let (name, why) = rest.split_once(": ").unwrap_or((rest, ""));
    Some((name, Err(why.into())))
}

#[cfg(test)]
mod tests {
    use super::case;

    #[test]
    fn lines_are_read() {
        assert_eq!(case("ok - map::a"), Some(("map::a", Ok(()))));
        let why = "answers Full (x.rs:1)".to_string();
        let line = "not ok - map::a: answers Full (x.rs:1)";
        assert_eq!(case(line), Some(("map::a", Err(why))));
        assert_eq!(case("microvisor: version 0.1.0"), None);
    }
}
