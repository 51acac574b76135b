//! The sandbox is for ever, so each test runs in a process of its own: this program again, with
//! one ignored test.

use super::*;
use crate::console::log::{CURRENT, ConsoleLog, PREVIOUS};
use rustix::fs::{Mode, OFlags, openat};
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Command, Output};

const DIR: &str = "SANDBOX_TEST_DIR";

fn run(test: &str, dir: &std::path::Path) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture", "--test-threads=1"])
        .arg(format!("worker::sandbox::tests::{test}"))
        .env(DIR, dir)
        .output()
        .unwrap()
}

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// The directory, if this is one of those processes.
fn dir() -> Option<PathBuf> {
    std::env::var_os(DIR).map(PathBuf::from)
}

#[test]
fn a_worker_can_do_its_work() {
    let dir = tempfile::tempdir().unwrap();
    let output = run("inside_at_work", dir.path());
    assert!(
        output.status.success(),
        "{}: {}",
        output.status,
        text(&output)
    );
    let log_dir = dir.path().join("log");
    let log = std::fs::read_to_string(log_dir.join(CURRENT)).unwrap();
    assert_eq!(log, "after the sandbox\n");
    assert!(log_dir.join(PREVIOUS).exists());
    let seen = text(&output);
    assert!(
        seen.contains("files: refused") || seen.contains("this kernel has no Landlock"),
        "{seen}"
    );
}

#[test]
fn a_forbidden_call_ends_the_worker_and_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let output = run("inside_misbehaving", dir.path());
    assert_eq!(
        output.status.code(),
        Some(i32::from(super::super::end::EXIT_SANDBOX)),
        "{}",
        text(&output)
    );
    let line = format!("sandbox: system call {} is not allowed", libc::SYS_socket);
    assert!(text(&output).contains(&line), "{}", text(&output));
}

#[test]
fn what_reaches_others_is_forbidden() {
    let dir = tempfile::tempdir().unwrap();
    let cases = [
        ("inside_asking_the_device", libc::SYS_ioctl),
        ("inside_signalling_its_parent", libc::SYS_tgkill),
        ("inside_resizing_a_pipe", libc::SYS_fcntl),
    ];
    for (test, call) in cases {
        let output = run(test, dir.path());
        let line = format!("sandbox: system call {call} is not allowed");
        assert!(text(&output).contains(&line), "{test}: {}", text(&output));
    }
}

#[test]
#[ignore = "run by a_worker_can_do_its_work in a process of its own"]
fn inside_at_work() {
    let Some(state_dir) = dir() else { return };
    let path = state_dir.join("log");
    std::fs::create_dir(&path).unwrap();
    std::fs::write(state_dir.join("config.toml"), "as it was").unwrap();
    let log_dir = File::open(&path).unwrap();
    let mut log = ConsoleLog::open(log_dir.try_clone().unwrap().into(), 8);
    log.append(b"before the sandbox\n");
    let listener = UnixListener::bind(path.join("socket")).unwrap();
    listener.set_nonblocking(true).unwrap();
    let peer = UnixStream::connect(path.join("socket")).unwrap();

    begin().unwrap();
    lose_files(log_dir.as_fd());
    let (start, started) = std::sync::mpsc::channel::<()>();
    let (here, is_here) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || {
        here.send(()).unwrap();
        started.recv()
    });
    is_here.recv().unwrap();
    lose_system_calls().unwrap();

    log.append(b"after the sandbox\n");
    assert_eq!(log.problem(), None);
    // Root's files, and those of the VM that the daemon believes.
    let write = OFlags::WRONLY | OFlags::TRUNC;
    let config = openat(&log_dir, "../config.toml", write, Mode::empty());
    let made = openat(&log_dir, "../new", write | OFlags::CREATE, Mode::RUSR);
    if File::open("/etc/passwd").is_err() && config.is_err() && made.is_err() {
        eprintln!("files: refused");
    }
    let (client, _) = listener.accept().unwrap();
    client.set_nonblocking(true).unwrap();
    std::io::Write::write_all(&mut &client, b"hello").unwrap();
    drop((client, peer));
    start.send(()).unwrap();
    thread.join().unwrap().unwrap();
    drop(vec![1u8; 64 << 20]);
}

#[test]
#[ignore = "run by a_forbidden_call_ends_the_worker_and_is_named in a process of its own"]
fn inside_misbehaving() {
    if dir().is_none() {
        return;
    }
    begin().unwrap();
    lose_system_calls().unwrap();
    let _ = std::net::UdpSocket::bind("127.0.0.1:0");
}

#[test]
#[ignore = "run by what_reaches_others_is_forbidden in a process of its own"]
fn inside_asking_the_device() {
    if dir().is_none() {
        return;
    }
    begin().unwrap();
    let device = crate::driver::Device::open("/dev/null".as_ref()).unwrap();
    lose_system_calls().unwrap();
    let _ = device.list_partitions();
}

#[test]
#[ignore = "run by what_reaches_others_is_forbidden in a process of its own"]
fn inside_signalling_its_parent() {
    if dir().is_none() {
        return;
    }
    let parent = std::os::unix::process::parent_id() as i32;
    begin().unwrap();
    lose_system_calls().unwrap();
    violation::signal(parent);
}

#[test]
#[ignore = "run by what_reaches_others_is_forbidden in a process of its own"]
fn inside_resizing_a_pipe() {
    if dir().is_none() {
        return;
    }
    let (pipe, _other) = std::io::pipe().unwrap();
    begin().unwrap();
    lose_system_calls().unwrap();
    // A command that no worker needs.
    let _ = nix::fcntl::fcntl(&pipe, nix::fcntl::FcntlArg::F_GETPIPE_SZ);
}
