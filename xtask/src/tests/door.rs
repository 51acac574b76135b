//! The door by which scripts reach VM 0, seen from outside: its output, and its answer to machines that fail.

use std::fs;
use std::time::Duration;

use crate::Result;
use crate::files::context;
use crate::initramfs::Addition;
use crate::machine::Machine;
use crate::parts::Parts;
use crate::run_folder::RunFolder;

/// Prints every byte and much text, leaves a process behind that goes on printing, and kills
/// everything else.
const HARD_TO_PLEASE: &str = r#"
kill -KILL -1
for byte in $(seq 0 255); do printf "\\$(printf %o $byte)"; done
seq 100000
cat added/file
sh -c 'while usleep 1000; do echo noise >/dev/console; done' &
exit 77
"#;

type Test = fn(&Parts) -> Result<()>;

/// The tests by name.
pub(super) const TESTS: &[(&str, Test)] = &[
    ("door: a hang is an error, and says where", hang),
    ("door: output and status pass unchanged", output_and_status),
    ("door: a reset is an error", |parts| {
        early_end(parts, "reboot -f")
    }),
    ("door: a panic of VM 0 is an error", |parts| {
        early_end(parts, "echo c >/proc/sysrq-trigger")
    }),
];

fn output_and_status(parts: &Parts) -> Result<()> {
    let folder = RunFolder::new()?;
    let addition = folder.join("added.txt");
    fs::write(&addition, "added").map_err(context(&addition))?;
    let add = format!("{}:added/file", addition.display());
    let mut output = Vec::new();
    let status = run_script(parts, HARD_TO_PLEASE, 120, &[add.parse()?], &mut output)?;
    let mut expected: Vec<u8> = (0..=255).collect();
    for number in 1..=100_000 {
        expected.extend(format!("{number}\n").bytes());
    }
    expected.extend(b"added");
    if status != 77 {
        return Err(format!("status {status}"));
    }
    let length = output.len();
    match expected.iter().zip(&output).position(|(a, b)| a != b) {
        Some(at) => Err(format!("byte {at} of the output is another")),
        None if length != expected.len() => Err(format!("{length} bytes, not {}", expected.len())),
        None => Ok(()),
    }
}

/// The machine resets before the script has ended.
fn early_end(parts: &Parts, text: &str) -> Result<()> {
    let (why, _) = failure(parts, text, 120)?;
    match why.contains("before the script ended") {
        true => Ok(()),
        false => Err(why),
    }
}

fn hang(parts: &Parts) -> Result<()> {
    let (why, output) = failure(parts, "sleep 1000", 40)?;
    let output = String::from_utf8_lossy(&output);
    if why.contains("hangs") && why.contains("RIP=") && output.contains("sleep 1000") {
        Ok(())
    } else {
        Err(format!("{why}; it printed: {output}"))
    }
}

/// Returns the error that a failing script is reported with, and the script's output.
fn failure(parts: &Parts, text: &str, timeout: u64) -> Result<(String, Vec<u8>)> {
    let mut output = Vec::new();
    match run_script(parts, text, timeout, &[], &mut output) {
        Err(why) => Ok((why, output)),
        Ok(status) => Err(format!("it was status {status}")),
    }
}

fn run_script(
    parts: &Parts,
    text: &str,
    timeout: u64,
    add: &[Addition],
    output: &mut Vec<u8>,
) -> Result<u8> {
    let folder = RunFolder::new()?;
    let path = folder.join("door.sh");
    fs::write(&path, text).map_err(context(&path))?;
    let machine = Machine {
        add: add.to_vec(),
        timeout: Duration::from_secs(timeout),
        ..Machine::default()
    };
    let ended = machine.script(parts, &path, output)?;
    Ok(ended.status)
}
