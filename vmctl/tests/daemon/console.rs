//! Attaching to a guest, by `run` and by `console`, and what it wrote.

use std::fs::File;
use std::io::{Read, Write};

use rustix::process::{Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

use crate::machine::{Host, eventually};

#[test]
fn run_attaches_and_ends_with_the_guest() {
    let machine = Host::on();
    let mut session = machine.spawn(&["run", &machine.config("demo", "")]);
    session.say("off\n");
    let ran = session.end();
    assert!(
        ran.stderr.contains("[demo: stopped (guest powered off)]"),
        "{}",
        ran.stderr
    );
    assert_eq!(ran.ok(), "hello from the guest\r\noff\n");
    assert_eq!(
        machine.vmctl(&["logs", "demo"]).ok(),
        "hello from the guest\r\noff\n"
    );
    assert_eq!(machine.vmctl(&["logs", "demo", "-n", "1"]).ok(), "off\n");
    let error = machine.vmctl(&["console", "demo"]).fails(5);
    assert!(error.contains("vmctl start demo"), "{error}");
}

#[test]
fn run_fails_with_the_guest() {
    let machine = Host::on();
    let mut session = machine.spawn(&["run", &machine.config("demo", "")]);
    session.say("crash\n");
    let error = session.end().fails(10);
    assert!(
        error.contains("demo: crashed (triple fault at rip 0x10)"),
        "{error}"
    );
    // Its logs are worth keeping.
    assert_eq!(machine.state("demo").0, "crashed");
}

#[test]
fn run_keeps_nothing_of_what_never_ran() {
    let machine = Host::on();
    let config = machine.config("demo", "cmdline = 'no-kernel'");
    let error = machine.vmctl(&["run", &config]).fails(10);
    assert!(error.contains("kernel: /k: not a kernel"), "{error}");
    assert!(machine.row("demo").is_null());
    machine.assert_no_leftovers();
}

#[test]
fn a_reboot_keeps_the_user_attached() {
    let machine = Host::on();
    machine.running("demo", "");
    let first = machine.worker("demo");
    let mut session = machine.spawn(&["console", "demo"]);
    session.say("reboot\n");
    machine.wait_for_another_worker("demo", first);
    assert_eq!(machine.info("demo")["reboots"], 1);
    assert_eq!(machine.state("demo").0, "running");
    // The user is at the new one's console.
    session.say("off\n");
    let ran = session.end();
    assert!(ran.stderr.contains("[demo rebooted]"), "{}", ran.stderr);
    assert_eq!(ran.ok().matches("hello from the guest").count(), 2);
}

#[test]
fn the_escape_detaches_a_terminal() {
    let machine = Host::on();
    machine.running("demo", "");
    let (mut ours, theirs) = terminal();
    let session = machine.spawn_on(&["console", "demo"], &theirs);
    read_until(&mut ours, "hello from the guest");
    ours.write_all(b"ls\x1doff").unwrap();
    let ran = session.end();
    assert!(ran.stderr.contains("detached from demo"), "{}", ran.stderr);
    assert_eq!(ran.code, 0);
    assert_eq!(machine.state("demo").0, "running");
}

#[test]
fn what_is_piped_in_reaches_the_guest_to_the_last_byte() {
    let machine = Host::on();
    machine.running("demo", "");
    let mut session = machine.spawn(&["console", "demo"]);
    let bytes: String = (0..128).map(char::from).collect();
    session.say(&format!("{bytes} the rest"));
    eventually("all was typed", || {
        let log = machine.vmctl(&["logs", "demo"]).ok();
        log.contains(&format!("{bytes} the rest"))
    });
    session.kill();
}

#[test]
fn one_user_too_many_is_told_so() {
    let machine = Host::on();
    machine.running("demo", "");
    let mut sessions: Vec<_> = (0..16)
        .map(|_| machine.spawn(&["console", "demo"]))
        .collect();
    for (i, session) in sessions.iter_mut().enumerate() {
        session.say(&format!("user {i}."));
    }
    eventually("all are attached", || {
        let log = machine.vmctl(&["logs", "demo"]).ok();
        (0..16).all(|i| log.contains(&format!("user {i}.")))
    });
    let error = machine.vmctl(&["console", "demo"]).fails(5);
    assert!(error.contains("demo: 16 users are attached"), "{error}");
    sessions.pop().unwrap().kill();
    let mut session = machine.spawn(&["console", "demo"]);
    session.say("off\n");
    session.end();
    assert_eq!(machine.state("demo").0, "stopped");
}

#[test]
fn commands_that_follow_end_with_their_reader() {
    let machine = Host::on();
    machine.running("demo", "");
    for args in [
        &["logs", "demo", "-f"][..],
        &["events"],
        &["console", "demo"],
    ] {
        let session = machine.spawn(args);
        let ran = session.end_without_reader();
        assert_eq!((ran.code, &*ran.stderr), (1, ""), "{args:?}");
    }
}

#[test]
fn logs_are_there_without_a_daemon() {
    let mut machine = Host::on();
    machine.running("demo", "");
    machine.kill_daemon();
    let dir = machine.path("state");
    let dir = dir.to_str().unwrap();
    let log = machine.vmctl(&["logs", "demo", "--state-dir", dir]).ok();
    assert_eq!(log, "hello from the guest\r\n");
    machine
        .vmctl(&["logs", "demo", "--worker", "--state-dir", dir])
        .ok();
    for name in ["other", "../state/demo"] {
        machine.vmctl(&["logs", name, "--state-dir", dir]).fails(8);
    }
    machine.start_daemon(&["--without-driver"]);
}

#[test]
fn a_reboot_may_be_the_end() {
    let machine = Host::on();
    machine.running("demo", "on_reboot = 'stop'");
    let mut session = machine.spawn(&["console", "demo"]);
    session.say("reboot\n");
    session.end().ok();
    let reason = "guest rebooted".to_owned();
    assert_eq!(machine.state("demo"), ("stopped".to_owned(), reason));
}

/// Returns both sides of a terminal.
fn terminal() -> (File, File) {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY;
    let ours = File::from(openpt(flags).unwrap());
    grantpt(&ours).unwrap();
    unlockpt(&ours).unwrap();
    let name = ptsname(&ours, Vec::new()).unwrap().into_string().unwrap();
    let theirs = File::options().read(true).write(true).open(name).unwrap();
    (ours, theirs)
}

/// Reads until `text` has come.
fn read_until(terminal: &mut File, text: &str) {
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains(text) {
        let mut chunk = [0; 256];
        let n = terminal.read(&mut chunk).unwrap();
        seen.extend_from_slice(&chunk[..n]);
    }
}

#[test]
fn a_user_at_a_terminal_sees_that_a_command_takes_long() {
    let machine = Host::on();
    machine.running("demo", "cmdline = 'deaf'");
    let (mut ours, theirs) = terminal();
    let stop = ["stop", "demo", "--timeout", "60s", "--force"];
    let session = machine.spawn_with_stderr(&stop, &theirs);
    read_until(&mut ours, "demo: the guest was asked to power off (1s)");
    machine.vmctl(&["kill", "demo"]).ok();
    assert_eq!(session.end().ok(), "demo: stopped (killed)\n");
    // The line is taken back.
    read_until(&mut ours, "\r\x1b[K");
}

#[test]
fn the_guest_learns_the_size_of_the_terminal() {
    let machine = Host::on();
    machine.running("demo", "");
    let (mut ours, theirs) = terminal();
    let resize = |columns, rows| {
        let size = Winsize {
            ws_col: columns,
            ws_row: rows,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&theirs, size).unwrap();
    };
    resize(132, 43);
    let session = machine.spawn_on(&["console", "demo"], &theirs);
    read_until(&mut ours, "132 by 43");
    resize(90, 30);
    // A terminal tells the processes that it controls, and this one controls none.
    kill_process(session.pid(), Signal::WINCH).unwrap();
    read_until(&mut ours, "90 by 30");
    ours.write_all(b"\x1d").unwrap();
    session.end().ok();
}

#[test]
fn a_terminal_is_raw_only_while_it_is_attached() {
    let machine = Host::on();
    machine.running("demo", "");
    let (mut ours, theirs) = terminal();
    // Either side tells the terminal's settings.
    let line_mode = LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG;
    let settings = |ours: &File| tcgetattr(ours).unwrap().local_modes & line_mode;
    assert_eq!(settings(&ours), line_mode);

    let session = machine.spawn_on(&["console", "demo"], &theirs);
    read_until(&mut ours, "hello from the guest");
    assert!(settings(&ours).is_empty());
    // Not an interrupt, but the guest's; then the escape.
    ours.write_all(b"\x03\x1d").unwrap();
    session.end().ok();
    assert_eq!(settings(&ours), line_mode);
    assert_eq!(machine.state("demo").0, "running");
}
