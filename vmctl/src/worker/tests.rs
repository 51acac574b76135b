//! A worker without a driver: what it says before there is a partition.

use super::*;
use guest_proto::control::{EndCause, Role};
use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::wire::Link;

/// Runs a worker that is told `commands`; its end, and what it told the daemon until then.
fn run(dir: &Path, commands: &[WorkerCommand]) -> (End, Vec<WorkerEvent>) {
    let socket = |name| UnixListener::bind(dir.join(name)).unwrap();
    let mut control = Control::new(socket("control.sock")).unwrap();
    let console = socket("console.sock");
    let stream = UnixStream::connect(dir.join("control.sock")).unwrap();
    let mut daemon = Link::new(stream, Role::Daemon, Role::Worker).unwrap();
    for command in commands {
        daemon.send(command).unwrap();
    }
    let args = WorkerArgs {
        name: "test".to_owned(),
        device: dir.join("no-device"),
        first_uid: 1000,
        log: "info".parse().unwrap(),
    };
    let log_dir = File::open(dir).unwrap().into();
    let end = work(&args, &mut control, console, log_dir, None).unwrap_or_else(|end| end);
    control.report_end(&end.event(), Duration::from_secs(10));
    drop(control);
    let mut events = Vec::new();
    while let Ok(event) = daemon.receive(Some(Instant::now() + Duration::from_secs(10))) {
        events.push(event);
    }
    assert_eq!(events.pop(), Some(end.event()));
    (end, events)
}

fn start(config: &str) -> WorkerCommand {
    WorkerCommand::Start {
        config: config.to_owned(),
    }
}

fn config(kernel: &Path, memory: &str) -> String {
    format!(
        "name = \"test\"\nmemory = \"{memory}\"\nkernel = \"{}\"\n",
        kernel.display()
    )
}

#[test]
fn a_missing_kernel_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let kernel = dir.path().join("vmlinuz");
    let (end, events) = run(dir.path(), &[start(&config(&kernel, "64M"))]);
    assert_eq!(end.cause, EndCause::StartFailed);
    assert_eq!(end.reason, format!("{}: no such file", kernel.display()));
    assert_eq!(events, []);
}

#[test]
fn before_it_is_started_it_reports_and_refuses() {
    let dir = tempfile::tempdir().unwrap();
    let commands = [
        WorkerCommand::Report,
        WorkerCommand::PowerButton,
        start("name = 1"),
    ];
    let (end, events) = run(dir.path(), &commands);
    assert_eq!(end.cause, EndCause::StartFailed);
    assert!(end.reason.contains("name"), "{}", end.reason);
    assert!(matches!(
        events.as_slice(),
        [
            WorkerEvent::State {
                state: VmState::Starting,
                ..
            },
            WorkerEvent::Refused { .. }
        ]
    ));
}

#[test]
fn a_missing_driver_and_too_much_memory_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let kernel = dir.path().join("kernel");
    std::fs::write(&kernel, loader::tests::pvh_kernel()).unwrap();
    let (end, _) = run(dir.path(), &[start(&config(&kernel, "64M"))]);
    assert_eq!(end.cause, EndCause::StartFailed);
    assert!(
        end.reason.contains("no-device") && end.reason.ends_with("the driver is not loaded"),
        "{}",
        end.reason
    );
    assert!(dir.path().join("console.log").exists());

    let dir = tempfile::tempdir().unwrap();
    let (end, _) = run(dir.path(), &[start(&config(&kernel, "500G"))]);
    assert!(
        end.reason.contains("more than the root partition has"),
        "{}",
        end.reason
    );
}
