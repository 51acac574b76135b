//! The door by which scripts reach VM 0, seen from outside: what comes out of it, and what it makes of
//! machines that fail.

use std::fs;
use std::time::Duration;

use super::LazyParts;
use super::report::Report;
use crate::Result;
use crate::files::{context, folder};
use crate::initramfs::Addition;
use crate::machine::Machine;

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

pub(super) fn run(report: &mut Report, parts: &LazyParts) {
    report.test("door: output and status pass unchanged", || {
        let addition = folder()?.join("added.txt");
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
            None if length != expected.len() => {
                Err(format!("{length} bytes, not {}", expected.len()))
            }
            None => Ok(()),
        }
    });
    for (name, text) in [
        ("a reset", "reboot -f"),
        ("a panic of VM 0", "echo c >/proc/sysrq-trigger"),
    ] {
        report.test(&format!("door: {name} is an error"), || {
            let (why, _) = failure(parts, text, 120)?;
            if why.contains("before the script ended") {
                Ok(())
            } else {
                Err(why)
            }
        });
    }
    report.test("door: a hang is an error, and says where", || {
        let (why, output) = failure(parts, "sleep 1000", 40)?;
        let output = String::from_utf8_lossy(&output);
        if why.contains("hangs") && why.contains("RIP=") && output.contains("sleep 1000") {
            Ok(())
        } else {
            Err(format!("{why}; it printed: {output}"))
        }
    });
}

/// What a script that fails is an error with, and what it printed.
fn failure(parts: &LazyParts, text: &str, timeout: u64) -> Result<(String, Vec<u8>)> {
    let mut output = Vec::new();
    match run_script(parts, text, timeout, &[], &mut output) {
        Err(why) => Ok((why, output)),
        Ok(status) => Err(format!("it was status {status}")),
    }
}

fn run_script(
    parts: &LazyParts,
    text: &str,
    timeout: u64,
    add: &[Addition],
    output: &mut Vec<u8>,
) -> Result<u8> {
    let path = folder()?.join("door.sh");
    fs::write(&path, text).map_err(context(&path))?;
    let machine = Machine {
        add: add.to_vec(),
        timeout: Duration::from_secs(timeout),
        ..Machine::default()
    };
    let ended = machine.script(parts.get()?, &path, output)?;
    Ok(ended.status)
}
