//! Sockets between guests and programs of VM 0.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use super::machine::{Host, eventually};

/// A machine with a program that listens at port 52 for the VM `demo`, and the directory of its socket.
fn listening() -> (Host, PathBuf, UnixListener) {
    let machine = Host::on();
    let dir = machine.path("run/vsock");
    std::fs::create_dir_all(&dir).unwrap();
    let listener = UnixListener::bind(dir.join("demo_52")).unwrap();
    (machine, dir, listener)
}

#[test]
fn the_daemon_connects_a_guest_to_the_program_that_listens() {
    let (machine, dir, listener) = listening();
    machine.running("demo", "[vsock]");
    let socket = dir.join("demo");
    assert!(socket.exists());
    let info = machine.vmctl(&["info", "demo"]).ok();
    let line = format!("vsock           CID 3 by {}\n", socket.display());
    assert!(info.contains(&line), "{info}");
    let mut console = machine.spawn(&["console", "demo"]);
    console.say("connect\n");
    let (stream, _) = listener.accept().unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    assert_eq!(line, "hello from the guest\n");
    // Nobody listens, and then nobody accepts.
    drop(listener);
    console.say("connect\n");
    let logs = |words: &str| {
        let logs = machine.vmctl(&["logs", "demo"]).ok();
        logs.matches(words).count()
    };
    eventually("a refusal", || logs("connections: 0") == 1);
    std::fs::remove_file(dir.join("demo_52")).unwrap();
    let listener = UnixListener::bind(dir.join("demo_52")).unwrap();
    rustix::net::listen(&listener, 1).unwrap();
    for count in 1..10 {
        console.say("connect\n");
        let told = || logs("connections: 0") + logs("connections: 1") > count + 1;
        eventually("an answer", told);
        if logs("connections: 0") == 2 {
            break;
        }
    }
    assert_eq!(logs("connections: 0"), 2, "the daemon waits for nobody");
    console.say("off\n");
    console.end().ok();
    eventually("the end", || !socket.exists());
    assert!(dir.join("demo_52").exists());
}

#[test]
fn a_guest_without_the_device_reaches_nobody() {
    let (machine, dir, _listener) = listening();
    machine.running("demo", "");
    assert!(!dir.join("demo").exists());
    let mut console = machine.spawn(&["console", "demo"]);
    console.say("connect\n");
    eventually("a refusal", || {
        machine
            .vmctl(&["logs", "demo"])
            .ok()
            .contains("connections: 0")
    });
    console.say("off\n");
    console.end().ok();
}

#[test]
fn the_directory_of_sockets_is_for_root_alone() {
    let machine = Host::on();
    let file = machine.config("demo", "[vsock]");
    machine.vmctl(&["create", &file]).ok();
    // It is made by whoever comes first.
    let listener = machine.spawn(&["vsock", "demo", "52", "--listen"]);
    let dir = machine.path("run/vsock");
    eventually("a socket", || dir.join("demo_52").exists());
    let mode = std::fs::metadata(&dir).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    listener.kill();
}

#[test]
fn wrong_addresses_are_named() {
    let machine = Host::on();
    for (text, what) in [
        (
            "cid = 2",
            "vsock.cid = 2: expected a number from 3 to 4294967294",
        ),
        (
            "cid = 4294967295",
            "vsock.cid = 4294967295: expected a number from 3",
        ),
        ("cid = -1", "vsock.cid = -1: expected a number from 3"),
        (
            "vhost = true",
            "\"vhost\" requires a \"cid\", which no other VM may have",
        ),
        ("port = 1", "vsock: unknown key \"port\""),
    ] {
        let file = machine.config("demo", &format!("[vsock]\n{text}"));
        let message = machine.vmctl(&["create", &file]).fails(3);
        assert!(message.contains(what), "{message}");
    }
}
