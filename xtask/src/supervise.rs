//! Watches a machine that nobody sits in front of: streams a script's output, and tells an end from a
//! hang.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use crate::Result;
use crate::files::context;

/// How often a machine is looked at.
const TICK: Duration = Duration::from_millis(20);
/// How long a machine may take to power off after the script.
const POWER_OFF: Duration = Duration::from_secs(30);
/// How long the microvisor may take to say all about its own failure.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// How long QEMU's monitor may take for an answer.
const ANSWER: Duration = Duration::from_secs(1);

/// The microvisor's lines after which nothing comes.
const REFUSAL: &str = "microvisor: cannot start: ";
const PANIC: &str = "microvisor: panic: ";

/// Where the machine's serial ports go.
pub(crate) struct Files {
    /// The first one: the microvisor's log, and VM 0's console.
    pub(crate) console: PathBuf,
    /// The second one: the script's output.
    pub(crate) output: PathBuf,
    /// The third one: the script's exit status, or why it could not be started.
    pub(crate) status: PathBuf,
}

/// Runs the machine until its script ended and it is off; the script's status.
pub(crate) fn script(
    qemu: &mut Command,
    files: &Files,
    timeout: Duration,
    output: &mut dyn Write,
) -> Result<u8> {
    let mut from = Tail::open(&files.output)?;
    let mut console = Tail::open(&files.console)?;
    let mut machine = Running::start(qemu, timeout)?;
    let mut fatal = None;
    let mut stopping = false;
    let mut text = Vec::new();
    let off = loop {
        let off = !machine.is_running()?;
        from.copy(output)?;
        text.extend(console.next()?);
        if let Some(line) = fatal_line(&mut text)
            && fatal.is_none()
        {
            fatal = Some(line);
            machine.limit(LAST_WORDS);
        }
        if !stopping && status(&files.status).is_some() {
            stopping = true;
            machine.limit(POWER_OFF);
        }
        if off || machine.is_late() {
            break off;
        }
        std::thread::sleep(TICK);
    };
    if !off && fatal.is_none() {
        machine.ask_where();
    }
    drop(machine);
    // What came between the last look and the end.
    from.copy(output)?;
    match (fatal, status(&files.status), off) {
        (Some(line), _, _) => Err(line),
        (None, Some(status), true) => status.parse().map_err(|_| status),
        (None, Some(status), false) => Err(format!(
            "the script ended ({status}), and then the machine did not power off"
        )),
        (None, None, true) => Err("the machine reset or went off before the script ended".into()),
        (None, None, false) => Err(format!(
            "the machine hangs: the script has not ended after {} s",
            timeout.as_secs()
        )),
    }
}

/// Runs a machine until the microvisor refuses to start; why it does.
pub(crate) fn refusal(qemu: &mut Command, console: &Path, timeout: Duration) -> Result<String> {
    let mut from = Tail::open(console)?;
    let mut machine = Running::start(qemu, timeout)?;
    let mut text = Vec::new();
    while machine.is_running()? && !machine.is_late() {
        text.extend(from.next()?);
        if let Some(line) = fatal_line(&mut text)
            && let Some(why) = line.strip_prefix(REFUSAL)
        {
            return Ok(why.to_owned());
        }
        std::thread::sleep(TICK);
    }
    Err("the microvisor did not refuse to start".into())
}

/// Runs a machine until its console has a line `last`; the console's text.
pub(crate) fn until(
    qemu: &mut Command,
    console: &Path,
    timeout: Duration,
    last: &str,
) -> Result<String> {
    let mut from = Tail::open(console)?;
    let mut machine = Running::start(qemu, timeout)?;
    let mut text = Vec::new();
    loop {
        let off = !machine.is_running()?;
        text.extend(from.next()?);
        let all = String::from_utf8_lossy(&text);
        if all.lines().any(|line| line == last) {
            return Ok(all.into_owned());
        }
        if off || machine.is_late() {
            return Err(format!("the machine does not say {last:?}"));
        }
        std::thread::sleep(TICK);
    }
}

/// Runs a machine to its end; QEMU's own status, or nothing if it takes longer than `timeout`.
pub(crate) fn exit_code(qemu: &mut Command, timeout: Duration) -> Result<Option<i32>> {
    let mut machine = Running::start(qemu, timeout)?;
    while machine.is_running()? {
        if machine.is_late() {
            return Ok(None);
        }
        std::thread::sleep(TICK);
    }
    let status = machine.child.wait().map_err(|error| error.to_string())?;
    Ok(status.code())
}

/// The first whole line that is the microvisor's last; drops the others.
fn fatal_line(text: &mut Vec<u8>) -> Option<String> {
    while let Some(end) = text.iter().position(|&byte| byte == b'\n') {
        let line: Vec<u8> = text.drain(..=end).collect();
        let line = String::from_utf8_lossy(&line);
        if line.starts_with(REFUSAL) || line.starts_with(PANIC) {
            return Some(line.trim_end().to_owned());
        }
    }
    None
}

/// The line on the third serial port, once it is whole.
fn status(file: &Path) -> Option<String> {
    let text = fs::read(file).ok()?;
    let text = String::from_utf8_lossy(&text);
    let (line, _) = text.split_once('\n')?;
    Some(line.trim_end().to_owned())
}

/// A file that grows.
struct Tail(File);

impl Tail {
    fn open(path: &Path) -> Result<Self> {
        File::open(path).map(Self).map_err(context(path))
    }

    /// What is new.
    fn next(&mut self) -> Result<Vec<u8>> {
        let mut new = Vec::new();
        self.0
            .read_to_end(&mut new)
            .map_err(|error| format!("reading from the machine: {error}"))?;
        Ok(new)
    }

    /// Writes what is new to `to`. A reader that has gone away does not end the script.
    fn copy(&mut self, to: &mut dyn Write) -> Result<()> {
        let new = self.next()?;
        if new.is_empty() {
            return Ok(());
        }
        match to.write_all(&new).and_then(|()| to.flush()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(format!("writing the script's output: {error}"))
            }
            _ => Ok(()),
        }
    }
}

/// QEMU, ended when this is dropped.
struct Running {
    child: Child,
    end: Instant,
}

impl Running {
    fn start(qemu: &mut Command, timeout: Duration) -> Result<Self> {
        let child = qemu.spawn().map_err(|error| format!("{qemu:?}: {error}"))?;
        let end = Instant::now() + timeout;
        Ok(Self { child, end })
    }

    fn is_running(&mut self) -> Result<bool> {
        let ended = self.child.try_wait();
        Ok(ended.map_err(|error| error.to_string())?.is_none())
    }

    fn is_late(&self) -> bool {
        Instant::now() >= self.end
    }

    /// Asks QEMU's monitor for the CPUs' registers, twice.
    fn ask_where(&mut self) {
        if let Some(monitor) = &mut self.child.stdin {
            for _ in 0..2 {
                // A monitor that does not answer says enough.
                let _ = monitor.write_all(b"info registers -a\n");
                std::thread::sleep(ANSWER);
            }
        }
    }

    /// Gives it no more than that from now on.
    fn limit(&mut self, time: Duration) {
        self.end = self.end.min(Instant::now() + time);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Already gone is as good as killed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(folder: &Path) -> Files {
        let files = Files {
            console: folder.join("console"),
            output: folder.join("output"),
            status: folder.join("status"),
        };
        for file in [&files.console, &files.output, &files.status] {
            File::create(file).unwrap();
        }
        files
    }

    /// What is made of a machine that does `actions`, and what it passed on.
    fn outcome(actions: &str) -> (Result<u8>, Vec<u8>) {
        let folder = tempfile::tempdir().unwrap();
        let files = files(folder.path());
        let mut machine = Command::new("sh");
        machine.current_dir(folder.path()).args(["-c", actions]);
        let mut output = Vec::new();
        let result = script(&mut machine, &files, Duration::from_secs(2), &mut output);
        (result, output)
    }

    #[test]
    fn a_script_s_output_and_status_pass_unchanged() {
        let (result, output) = outcome(r"printf '\377\000\r\nx' >> output; echo 7 >> status");
        assert_eq!(result, Ok(7));
        assert_eq!(output, b"\xff\0\r\nx");
    }

    #[test]
    fn a_machine_that_fails_is_an_error() {
        let error = |actions| outcome(actions).0.unwrap_err();
        assert!(error("exit").contains("before the script ended"));
        assert!(error("exec sleep 9").contains("hangs"));
        assert!(error("echo 0 >> status; exec sleep 9").contains("did not power off"));
        assert_eq!(error("echo no daemon >> status"), "no daemon");
        let panic = "microvisor: panic: at the disco";
        assert_eq!(
            error(&format!("echo '{panic}' >> console; exec sleep 9")),
            panic
        );
    }

    #[test]
    fn half_a_status_is_none() {
        assert!(outcome("printf 1 >> status").0.is_err());
    }

    #[test]
    fn a_refusal_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let files = files(folder.path());
        let mut machine = Command::new("sh");
        let line = format!("echo boot; echo '{REFUSAL}too small'; exec sleep 9");
        let console = File::options().append(true).open(&files.console).unwrap();
        machine.args(["-c", &line]).stdout(console);
        let why = refusal(&mut machine, &files.console, Duration::from_secs(5));
        assert_eq!(why.as_deref(), Ok("too small"));
    }
}
