//! Messages that can't be written: they end nothing.

use std::fs::{self, File};
use std::io;

use rustix::fs::{OFlags, fcntl_setfl};

use crate::machine::{Host, eventually};

fn full() -> File {
    File::options().write(true).open("/dev/full").unwrap()
}

/// Has the daemon log something.
fn log_something(machine: &Host) {
    let socket = machine.path("run/control.sock");
    let mut stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
    io::Write::write_all(&mut stream, &[0xff; 64]).unwrap();
    // The daemon hangs up once it has logged that this is no control protocol.
    io::copy(&mut stream, &mut io::sink()).unwrap();
}

#[track_caller]
fn assert_works(machine: &Host) {
    machine.running("demo", "");
    for _ in 0..3 {
        log_something(machine);
    }
    machine.vmctl(&["kill", "demo"]).ok();
    machine.vmctl(&["delete", "demo"]).ok();
}

#[test]
fn a_daemon_whose_log_is_on_a_full_disk_works() {
    let mut machine = Host::off();
    machine.start_daemon_with_log(&["--without-driver"], full());
    assert_works(&machine);
}

#[test]
fn a_daemon_whose_log_nobody_reads_works() {
    let mut machine = Host::off();
    let (reader, log) = io::pipe().unwrap();
    machine.start_daemon_with_log(&["--without-driver"], log);
    drop(reader);
    assert_works(&machine);
}

#[test]
fn a_daemon_whose_log_is_a_full_pipe_works_and_counts_what_is_lost() {
    let mut machine = Host::off();
    let (mut reader, log) = io::pipe().unwrap();
    let mut filler = log.try_clone().unwrap();
    fcntl_setfl(&filler, OFlags::NONBLOCK).unwrap();
    while io::Write::write(&mut filler, &[b'x'; 4096]).is_ok() {}
    while io::Write::write(&mut filler, b"x").is_ok() {}
    fcntl_setfl(&filler, OFlags::empty()).unwrap();
    drop(filler);
    machine.start_daemon_with_log(&["--without-driver"], log);
    assert_works(&machine);
    for _ in 0..300 {
        log_something(&machine);
    }
    let text = std::thread::spawn(move || {
        let mut text = Vec::new();
        while !String::from_utf8_lossy(&text).contains("lines were lost") {
            let mut chunk = [0; 4096];
            let count = io::Read::read(&mut reader, &mut chunk).unwrap();
            assert_ne!(count, 0, "{}", String::from_utf8_lossy(&text));
            text.extend(&chunk[..count]);
        }
    });
    eventually("lost lines are counted", || {
        log_something(&machine);
        text.is_finished()
    });
    text.join().unwrap();
}

#[test]
fn journald_gets_priorities() {
    let mut machine = Host::off();
    machine.start_daemon_under_journald(&["--without-driver", "--log", "info,daemon=debug"]);
    log_something(&machine);
    eventually("lines have priorities", || {
        let log = fs::read_to_string(machine.path("daemon.log")).unwrap();
        let has = |start: &str| log.lines().any(|line| line.starts_with(start));
        has("<6>vmctl daemon: listening on ")
            && has("<4>vmctl daemon: warning: a client was cut off: ")
            && has("<7>vmctl daemon: debug: daemon: client ")
    });
}

#[test]
fn less_severe_messages_are_left_out() {
    let mut machine = Host::off();
    machine.start_daemon(&["--without-driver", "--log", "warn"]);
    log_something(&machine);
    let log = || fs::read_to_string(machine.path("daemon.log")).unwrap();
    eventually("the warning is there", || {
        log().starts_with("vmctl daemon: warning: a client was cut off: ")
    });
    machine.running("demo", "");
    assert!(!log().contains("listening"), "{}", log());
}

#[test]
fn a_command_keeps_its_exit_status_without_standard_error() {
    let mut machine = Host::on();
    assert_eq!(machine.status_with_stderr(&["info", "a"], full()), Some(4));
    machine.kill_daemon();
    assert_eq!(machine.status_with_stderr(&["list"], full()), Some(8));
}

#[test]
fn a_worker_without_a_log_runs() {
    let machine = Host::on();
    machine.vmctl(&["create", &machine.config("demo", "")]).ok();
    fs::create_dir_all(machine.path("state/demo/worker.log/x")).unwrap();
    fs::create_dir_all(machine.path("state/demo/worker.log.1/x")).unwrap();
    machine.vmctl(&["start", "demo", "--wait"]).ok();
    let log = fs::read_to_string(machine.path("daemon.log")).unwrap();
    assert!(log.contains("this worker has no log"), "{log}");
}

#[test]
fn a_state_that_can_not_be_saved_is_told_and_saved_later() {
    let machine = Host::on();
    machine.running("demo", "");
    eventually("the state is saved", || {
        let saved = fs::read_to_string(machine.path("state/demo/state.toml"));
        saved.is_ok_and(|text| text.contains("\"running\""))
    });
    let in_the_way = machine.path("state/demo/state.toml.new");
    fs::create_dir_all(in_the_way.join("x")).unwrap();
    machine.vmctl(&["pause", "demo"]).ok();
    let (state, reason) = machine.state("demo");
    assert_eq!(state, "paused");
    assert!(reason.contains("this state can't be saved: "), "{reason}");
    fs::remove_dir_all(in_the_way).unwrap();
    eventually("the state is saved", || {
        machine.state("demo").1 == "held by the user"
    });
    let saved = fs::read_to_string(machine.path("state/demo/state.toml")).unwrap();
    assert!(saved.contains("state = \"paused\""), "{saved}");
}
