//! A daemon in a temporary directory, and `vmctl` talking to it.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::fake_worker;

/// Longer than anything here takes, even on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(60);

/// What a command did.
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    fn of(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self {
            code: output.status.code().expect("vmctl was killed"),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }

    /// It did what it should; its output.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, 0, "{}{}", self.stdout, self.stderr);
        self.stdout
    }

    /// It failed with this code and one line; the line.
    #[track_caller]
    pub(crate) fn fails(self, code: i32) -> String {
        assert_eq!(self.code, code, "{}{}", self.stdout, self.stderr);
        assert_eq!(self.stderr.lines().count(), 1, "{}", self.stderr);
        assert!(self.stderr.starts_with("vmctl: "), "{}", self.stderr);
        self.stderr
    }
}

pub(crate) struct Host {
    dir: TempDir,
    daemon: Option<Child>,
}

impl Host {
    /// A machine whose daemon does not run yet.
    pub(crate) fn off() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let machine = Self { dir, daemon: None };
        let worker = machine.path("worker");
        let test = std::env::current_exe().unwrap();
        let script = format!(
            "#!/bin/sh\n{}=$2 exec {} --exact fake_worker::serve --nocapture >/dev/null\n",
            fake_worker::ROLE,
            test.display()
        );
        fs::write(&worker, script).unwrap();
        fs::set_permissions(&worker, fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(machine.path("kernel"), kernel()).unwrap();
        machine
    }

    /// A machine with a daemon whose workers need no driver.
    pub(crate) fn on() -> Self {
        let mut machine = Self::off();
        machine.start_daemon(&["--without-driver"]);
        machine
    }

    pub(crate) fn start_daemon(&mut self, options: &[&str]) {
        let log = fs::File::create(self.path("daemon.log")).unwrap();
        self.start_daemon_with_log(options, log);
    }

    /// Starts a daemon whose standard error is `log`.
    pub(crate) fn start_daemon_with_log(&mut self, options: &[&str], log: impl Into<Stdio>) {
        self.spawn_daemon(options, log, "");
    }

    /// Starts a daemon whose standard error is journald's as far as it can tell.
    pub(crate) fn start_daemon_under_journald(&mut self, options: &[&str]) {
        let log = fs::File::create(self.path("daemon.log")).unwrap();
        let file = log.metadata().unwrap();
        let stream = format!("{}:{}", file.dev(), file.ino());
        self.spawn_daemon(options, log, &stream);
    }

    fn spawn_daemon(&mut self, options: &[&str], log: impl Into<Stdio>, stream: &str) {
        let mut command = self.command(&["daemon", "--worker"]);
        command.arg(self.path("worker"));
        command.arg("--state-dir").arg(self.path("state"));
        command.args(options).env("JOURNAL_STREAM", stream);
        let child = command.stderr(log).spawn().unwrap();
        self.daemon = Some(child);
        eventually("the daemon answers", || self.vmctl(&["list"]).code == 0);
    }

    /// The daemon dies, without a chance to do anything about it.
    pub(crate) fn kill_daemon(&mut self) {
        let mut daemon = self.daemon.take().unwrap();
        daemon.kill().unwrap();
        daemon.wait().unwrap();
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmctl"));
        command
            .args(args)
            .env("MICROVISOR_RUNTIME_DIR", self.path("run"))
            .stdin(Stdio::null());
        command
    }

    /// Runs `vmctl` with this standard error and returns its exit status.
    pub(crate) fn status_with_stderr(
        &self,
        args: &[&str],
        stderr: impl Into<Stdio>,
    ) -> Option<i32> {
        self.command(args).stderr(stderr).status().unwrap().code()
    }

    pub(crate) fn vmctl(&self, args: &[&str]) -> Ran {
        Ran::of(self.command(args).output().unwrap())
    }

    /// Runs `vmctl` with more environment variables.
    pub(crate) fn vmctl_with(&self, args: &[&str], variables: &[(&str, &str)]) -> Ran {
        let mut command = self.command(args);
        Ran::of(command.envs(variables.iter().copied()).output().unwrap())
    }

    /// Runs `vmctl` with this standard output.
    pub(crate) fn vmctl_to(&self, args: &[&str], stdout: impl Into<Stdio>) -> Ran {
        let mut command = self.command(args);
        command.stdout(stdout).stderr(Stdio::piped());
        Ran::of(command.spawn().unwrap().wait_with_output().unwrap())
    }

    /// Starts `vmctl`, to be fed and waited for.
    pub(crate) fn spawn(&self, args: &[&str]) -> Session {
        let mut command = self.command(args);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Session(command.spawn().unwrap())
    }

    /// Starts `vmctl` with a terminal for its input and output.
    pub(crate) fn spawn_on(&self, args: &[&str], terminal: &fs::File) -> Session {
        let mut command = self.command(args);
        command
            .stdin(terminal.try_clone().unwrap())
            .stdout(terminal.try_clone().unwrap())
            .stderr(Stdio::piped());
        Session(command.spawn().unwrap())
    }

    /// Starts `vmctl` with a terminal for its standard error.
    pub(crate) fn spawn_with_stderr(&self, args: &[&str], terminal: &fs::File) -> Session {
        let mut command = self.command(args);
        command
            .env("TERM", "linux")
            .stdout(Stdio::piped())
            .stderr(terminal.try_clone().unwrap());
        Session(command.spawn().unwrap())
    }

    /// Writes a configuration; `more` is added to it.
    pub(crate) fn config(&self, name: &str, more: &str) -> String {
        let path = self.path(&format!("{name}.toml"));
        let text = format!("name = \"{name}\"\nmemory = \"16M\"\nkernel = \"kernel\"\n{more}\n");
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// Defines a VM and starts it.
    #[track_caller]
    pub(crate) fn running(&self, name: &str, more: &str) {
        self.vmctl(&["create", &self.config(name, more)]).ok();
        self.vmctl(&["start", name, "--wait"]).ok();
    }

    /// Its row of `vmctl list --format json`.
    #[track_caller]
    pub(crate) fn row(&self, name: &str) -> Value {
        let list = self.vmctl(&["list", "--format", "json"]).ok();
        let list: Vec<Value> = serde_json::from_str(&list).unwrap();
        let mut rows = list.into_iter().filter(|row| row["name"] == name);
        let row = rows.next().unwrap_or_default();
        assert!(rows.next().is_none());
        row
    }

    /// State and reason.
    #[track_caller]
    pub(crate) fn state(&self, name: &str) -> (String, String) {
        let row = self.row(name);
        let text = |key: &str| row[key].as_str().unwrap().to_owned();
        (text("state"), text("reason"))
    }

    #[track_caller]
    pub(crate) fn info(&self, name: &str) -> Value {
        serde_json::from_str(&self.vmctl(&["info", name, "--format", "json"]).ok()).unwrap()
    }

    #[track_caller]
    pub(crate) fn worker(&self, name: &str) -> Pid {
        let pid = self.info(name)["worker_pid"].as_i64().unwrap();
        Pid::from_raw(i32::try_from(pid).unwrap()).unwrap()
    }

    /// How many descriptors (`fd`) or threads (`task`) the daemon has.
    pub(crate) fn daemon_has(&self, what: &str) -> usize {
        let pid = self.daemon.as_ref().unwrap().id();
        fs::read_dir(format!("/proc/{pid}/{what}")).unwrap().count()
    }

    /// Process ids of the daemon's children.
    pub(crate) fn daemon_children(&self) -> String {
        let pid = self.daemon.as_ref().unwrap().id();
        fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap()
    }

    #[track_caller]
    pub(crate) fn wait_for_another_worker(&self, name: &str, than: Pid) {
        eventually("another worker runs", || {
            let info = self.info(name);
            let pid = info["worker_pid"].as_i64();
            info["state"] == "running"
                && pid.is_some_and(|pid| pid != i64::from(than.as_raw_nonzero().get()))
        });
    }

    /// Nothing is left of any VM but its definition.
    #[track_caller]
    pub(crate) fn assert_no_leftovers(&self) {
        let sockets = fs::read_dir(self.path("run/vms")).map_or(0, Iterator::count);
        assert_eq!(sockets, 0, "sockets of VMs that have ended");
    }

    pub(crate) fn exists(&self, name: &str) -> bool {
        Path::new(&self.path(name)).exists()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if self.daemon.is_none() {
            return;
        }
        let list = self.vmctl(&["list", "--format", "json"]);
        let list: Vec<Value> = serde_json::from_str(&list.stdout).unwrap_or_default();
        for row in &list {
            self.vmctl(&["kill", row["name"].as_str().unwrap_or_default()]);
        }
        self.kill_daemon();
    }
}

/// A `vmctl` that runs.
pub(crate) struct Session(Child);

impl Session {
    /// Types; the end of input comes with [`Self::end`].
    pub(crate) fn say(&mut self, text: &str) {
        let stdin = self.0.stdin.as_mut().unwrap();
        stdin.write_all(text.as_bytes()).unwrap();
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.0)
    }

    /// Waits for it.
    pub(crate) fn end(self) -> Ran {
        Ran::of(self.0.wait_with_output().unwrap())
    }

    /// Closes its standard output, and waits for it.
    pub(crate) fn end_without_reader(mut self) -> Ran {
        drop(self.0.stdout.take());
        Ran::of(self.0.wait_with_output().unwrap())
    }

    pub(crate) fn kill(mut self) -> String {
        self.0.kill().unwrap();
        let output = self.0.wait_with_output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }
}

pub(crate) fn kill(pid: Pid) {
    kill_process(pid, Signal::KILL).unwrap();
}

/// Waits until something holds.
#[track_caller]
pub(crate) fn eventually(what: &str, holds: impl Fn() -> bool) {
    let end = Instant::now() + TIMEOUT;
    while !holds() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A flat Multiboot image, the smallest thing that is a kernel.
pub(crate) fn kernel() -> Vec<u8> {
    const MAGIC: u32 = 0x1bad_b002;
    const FLAGS: u32 = 1 << 16;
    const BASE: u32 = 0x10_0000;
    let sum = 0_u32.wrapping_sub(MAGIC + FLAGS);
    let mut image: Vec<u8> = [MAGIC, FLAGS, sum, BASE, BASE, BASE + 4096, 0, BASE + 32]
        .into_iter()
        .flat_map(u32::to_le_bytes)
        .collect();
    image.resize(4096, 0xf4);
    image
}
