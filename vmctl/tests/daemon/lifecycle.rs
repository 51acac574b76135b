//! What becomes of a VM from its definition to its end.

use crate::fake_worker::PARTITION;
use crate::machine::{Host, eventually, kill};

#[test]
fn a_life() {
    let machine = Host::on();
    let root = machine.row("root");
    assert_eq!(
        (root["id"].as_u64(), root["state"].as_str()),
        (Some(0), Some("running"))
    );

    let created = machine.vmctl(&["create", &machine.config("demo", "vcpus = 2")]);
    assert_eq!(created.ok(), "demo: defined (never started)\n");
    let row = machine.row("demo");
    assert!(row["id"].is_null() && row["cpu_percent"].is_null() && row["uptime_ms"].is_null());
    assert_eq!(
        (row["vcpus"].as_u64(), row["memory"].as_u64()),
        (Some(2), Some(16 << 20))
    );

    let never = machine.vmctl(&["wait", "demo"]).fails(5);
    assert!(never.contains("demo was never started"), "{never}");
    let started = machine.vmctl(&["start", "demo", "--wait"]).ok();
    assert_eq!(started, "demo: running (guest runs)\n");
    let row = machine.row("demo");
    assert_eq!(row["id"], PARTITION);
    assert!(row["uptime_ms"].is_u64() && row["cpu_percent"].is_f64());
    let info = machine.info("demo");
    assert_eq!(info["config"]["memory"], "16M");
    assert!(info["worker_rss"].as_u64().unwrap() > 0);
    machine.vmctl(&["start", "demo"]).fails(5);
    let refused = machine.vmctl(&["delete", "demo"]).fails(5);
    assert!(refused.contains("vmctl kill demo"), "{refused}");

    let stopped = machine
        .vmctl(&["stop", "demo", "--wait", "--timeout", "60"])
        .ok();
    assert_eq!(stopped, "demo: stopped (guest powered off)\n");
    machine.assert_no_leftovers();
    assert!(machine.row("demo")["id"].is_null());
    // What is stopped stays stopped.
    machine.vmctl(&["stop", "demo"]).ok();

    machine.vmctl(&["start", "demo", "--wait"]).ok();
    for _ in 0..2 {
        assert_eq!(
            machine.vmctl(&["kill", "demo"]).ok(),
            "demo: stopped (killed)\n"
        );
    }
    machine.assert_no_leftovers();
    machine.vmctl(&["delete", "demo"]).ok();
    assert!(!machine.exists("state/demo"));
    for command in [
        "start", "stop", "kill", "info", "delete", "console", "logs", "wait",
    ] {
        let gone = machine.vmctl(&[command, "demo"]).fails(4);
        assert!(gone.contains("demo: no such VM"), "{gone}");
    }
}

#[test]
fn lists_are_for_people_too() {
    let machine = Host::on();
    machine.running("demo", "");
    let list = machine.vmctl(&["list"]).ok();
    let lines: Vec<&str> = list.lines().collect();
    let heading: Vec<&str> = lines[0].split_whitespace().collect();
    assert_eq!(
        heading,
        [
            "ID", "NAME", "STATE", "REASON", "VCPUS", "MEM", "CPU%", "UPTIME"
        ]
    );
    assert!(
        lines[1].trim_start().starts_with("0  root  running"),
        "{list}"
    );
    assert!(lines[2].contains("demo  running  guest runs"), "{list}");
    assert!(!list.contains('\x1b'), "colours without a terminal");
    let info = machine.vmctl(&["info", "demo"]).ok();
    assert!(info.contains("reason          guest runs\n"), "{info}");
}

#[test]
fn pause_and_resume() {
    let machine = Host::on();
    machine.running("demo", "");
    let paused = machine.vmctl(&["pause", "demo"]).ok();
    assert_eq!(paused, "demo: paused (held by the user)\n");
    machine.vmctl(&["pause", "demo"]).ok();
    let refused = machine.vmctl(&["stop", "demo"]).fails(5);
    assert!(refused.contains("vmctl resume demo"), "{refused}");
    machine.vmctl(&["wait", "demo", "--for", "paused"]).ok();
    machine.vmctl(&["resume", "demo"]).ok();
    assert_eq!(machine.state("demo").0, "running");

    machine.running("stiff", "cmdline = 'no-pause'");
    let refused = machine.vmctl(&["pause", "stiff"]).fails(5);
    assert!(refused.contains("can't be held"), "{refused}");
    assert_eq!(machine.state("stiff").0, "running");
}

#[test]
fn a_state_that_is_over_at_once_is_waited_for_with_success() {
    let machine = Host::on();
    machine.running("demo", "cmdline = 'still-full'");
    machine.vmctl(&["pause", "demo"]).ok();
    for _ in 0..5 {
        let resumed = machine.vmctl(&["resume", "demo"]).ok();
        assert_eq!(resumed, "demo: running (guest runs)\n");
        machine.vmctl(&["wait", "demo", "--for", "io-stalled"]).ok();
    }
}

/// Defines a disk for a VM.
fn with_disk(machine: &Host, more: &str) -> String {
    let image = machine.path("disk.raw");
    std::fs::write(&image, [0; 512]).unwrap();
    format!("{more}\n[[disk]]\npath = '{}'", image.display())
}

#[test]
fn info_shows_disks() {
    let machine = Host::on();
    machine.running("demo", &with_disk(&machine, ""));
    let info = machine.vmctl(&["info", "demo"]).ok();
    let disk = "disk            /top.qcow2 over /base.raw; 1G, read 5 KiB, written 6 KiB, in flight 7, \
                errors 8\n";
    assert!(info.contains(disk), "{info}");
    let info = machine.vmctl(&["info", "demo", "--format", "json"]).ok();
    let info: serde_json::Value = serde_json::from_str(&info).unwrap();
    assert_eq!(info["disks"][0]["files"][1]["format"], "raw");
    machine.vmctl(&["kill", "demo"]).ok();
    let info = machine.vmctl(&["info", "demo"]).ok();
    assert!(info.contains("disk            /"), "{info}");
    assert!(!info.contains("top.qcow2"), "{info}");
}

#[test]
fn a_worker_that_does_not_tell_its_disks_holds_up_nobody() {
    let machine = Host::on();
    let more = with_disk(&machine, "cmdline = 'no-disks'");
    machine.running("demo", &more);
    std::thread::scope(|scope| {
        let info = scope.spawn(|| machine.vmctl(&["info", "demo"]).ok());
        machine.vmctl(&["list"]).ok();
        let info = info.join().unwrap();
        assert!(info.contains("state           running\n"), "{info}");
        assert!(!info.contains("top.qcow2"), "{info}");
    });
}

#[test]
fn waiting() {
    let machine = Host::on();
    machine.running("demo", "cmdline = 'deaf'");
    let late = machine
        .vmctl(&["stop", "demo", "--timeout", "100ms"])
        .fails(9);
    assert!(late.contains("still running after 0.1 s"), "{late}");
    assert_eq!(
        machine.state("demo"),
        ("running".to_owned(), "guest runs".to_owned())
    );
    let waiter = machine.spawn(&["wait", "demo"]);
    let other = machine.spawn(&["wait", "demo", "--for", "paused"]);
    machine.vmctl(&["kill", "demo"]).ok();
    assert_eq!(waiter.end().ok(), "demo: stopped (killed)\n");
    other.end().fails(10);
}

#[test]
fn a_request_to_stop_is_no_state() {
    let machine = Host::on();
    machine.running("demo", "cmdline = 'deaf'");
    let asked = machine.vmctl(&["stop", "demo"]).ok();
    assert_eq!(asked, "demo: running, stop asked 0s ago (guest runs)\n");
    assert!(machine.row("demo")["stop_asked_ms"].is_u64());
    let list = machine.vmctl(&["list"]).ok();
    assert!(list.contains("running  stop asked "), "{list}");
    // What it does goes on as if nothing had been asked.
    machine.vmctl(&["wait", "demo", "--for", "running"]).ok();
    machine.vmctl(&["pause", "demo"]).ok();
    machine.vmctl(&["resume", "demo"]).ok();
    let withdrawn = machine.vmctl(&["stop", "demo", "--cancel"]).ok();
    assert_eq!(withdrawn, "demo: running (guest runs)\n");
    assert!(machine.row("demo")["stop_asked_ms"].is_null());
    // A reboot is what it was before.
    let worker = machine.worker("demo");
    let mut console = machine.spawn(&["console", "demo"]);
    console.say("reboot\n");
    machine.wait_for_another_worker("demo", worker);
    drop(console.kill());
    // One that comes after the request is its end.
    machine.vmctl(&["stop", "demo"]).ok();
    let mut console = machine.spawn(&["console", "demo"]);
    console.say("reboot\n");
    let ended = machine.vmctl(&["wait", "demo"]).ok();
    assert_eq!(
        ended,
        "demo: stopped (guest rebooted; it was asked to stop)\n"
    );
    drop(console.kill());
}

#[test]
fn a_press_that_the_guest_has_not_seen_is_repeated() {
    let machine = Host::on();
    machine.running("demo", "cmdline = 'drowsy'");
    let stopped = machine.vmctl(&["stop", "demo", "--wait"]).ok();
    assert_eq!(stopped, "demo: stopped (guest powered off)\n");
}

#[test]
fn a_guest_that_does_not_stop_in_time_is_killed_if_that_is_wished() {
    let machine = Host::on();
    machine.running("demo", "cmdline = 'deaf'");
    let forced = ["stop", "demo", "--timeout", "100ms", "--force"];
    assert_eq!(machine.vmctl(&forced).ok(), "demo: stopped (killed)\n");
    // Held, it can't see the button.
    machine.vmctl(&["start", "demo", "--wait"]).ok();
    machine.vmctl(&["pause", "demo"]).ok();
    assert_eq!(machine.vmctl(&forced).ok(), "demo: stopped (killed)\n");
    let restarted = ["restart", "demo", "--timeout", "100ms"];
    for _ in 0..2 {
        let started = machine.vmctl(&restarted).ok();
        assert_eq!(started, "demo: running (guest runs)\n");
    }
    machine.running("good", "");
    let worker = machine.worker("good");
    let rebooted = machine.vmctl(&["reboot", "good", "--wait"]).ok();
    assert_eq!(rebooted, "good: running (guest runs)\n");
    assert_ne!(machine.worker("good"), worker);
    assert_eq!(machine.info("good")["reboots"], 1);
    machine.vmctl(&["kill", "good"]).ok();
    let refused = machine.vmctl(&["reboot", "good"]).fails(5);
    assert!(refused.contains("vmctl start good"), "{refused}");
}

#[test]
fn a_guest_that_reboots_at_once_is_braked_and_obeys() {
    let machine = Host::on();
    let config = machine.config("demo", "cmdline = 'loops'");
    machine.vmctl(&["create", &config]).ok();
    let waits = |machine: &Host| {
        eventually("it waits to boot again", || {
            machine.state("demo").1.contains("boots again after")
        });
    };
    for (command, end) in [
        ("stop", "stopped while it waited to boot again"),
        ("kill", "killed"),
    ] {
        machine.vmctl(&["start", "demo"]).ok();
        waits(&machine);
        let (state, reason) = machine.state("demo");
        assert_eq!(state, "starting");
        assert!(reason.starts_with("guest rebooted "), "{reason}");
        machine.vmctl(&["delete", "demo"]).fails(5);
        let ended = machine.vmctl(&[command, "demo"]).ok();
        assert_eq!(ended, format!("demo: stopped ({end})\n"));
        machine.assert_no_leftovers();
    }
}

#[test]
fn what_is_asked_while_a_guest_waits_to_boot_goes_to_its_next_worker() {
    let mut machine = Host::on();
    let config = machine.config("demo", "cmdline = 'loops'");
    machine.vmctl(&["create", &config]).ok();
    machine.vmctl(&["start", "demo"]).ok();
    eventually("it waits to boot again", || {
        machine.state("demo").1.contains("boots again after 2 s")
    });
    // Another daemon waits on.
    machine.kill_daemon();
    machine.start_daemon(&["--without-driver"]);
    let reason = machine.state("demo").1;
    assert!(reason.contains("boots again after "), "{reason}");
    let asked = machine.vmctl(&["reboot", "demo"]).ok();
    assert!(asked.starts_with("demo: starting ("), "{asked}");
    eventually("it boots again", || {
        machine.state("demo").1.contains("boots again after 4 s")
    });
    machine.vmctl(&["kill", "demo"]).ok();
}

#[test]
fn a_killed_worker_is_a_crash_with_its_reason() {
    let machine = Host::on();
    machine.running("demo", "");
    let waiter = machine.spawn(&["wait", "demo"]);
    kill(machine.worker("demo"));
    let crashed = waiter.end().fails(10);
    assert!(
        crashed.contains("crashed (worker died: signal 9)"),
        "{crashed}"
    );
    machine.assert_no_leftovers();
    // It can be started again.
    machine.vmctl(&["start", "demo", "--wait"]).ok();
}

#[test]
fn a_vm_that_cannot_be_built_says_why() {
    let machine = Host::on();
    let config = machine.config("demo", "cmdline = 'no-kernel'");
    machine.vmctl(&["create", &config]).ok();
    let failed = machine.vmctl(&["start", "demo", "--wait"]).fails(10);
    assert!(failed.contains("kernel: /k: not a kernel"), "{failed}");
    assert_eq!(machine.state("demo").0, "crashed");
    machine.vmctl(&["delete", "demo"]).ok();
    machine.assert_no_leftovers();
}

#[test]
fn workers_that_break_the_protocol_are_ended() {
    let machine = Host::on();
    let cases = [
        (
            "babbles",
            10,
            "worker failed: a control frame of 4294967295 bytes is too long",
        ),
        (
            "hangs-up",
            10,
            "worker closed its control socket and did not exit",
        ),
        ("lingers", 0, "guest powered off"),
    ];
    for (how, ..) in cases {
        let config = machine.config(how, &format!("cmdline = '{how}'"));
        machine.vmctl(&["create", &config]).ok();
        machine.vmctl(&["start", how]).ok();
    }
    // Those that stay are given some seconds.
    for (how, code, reason) in cases {
        let ran = machine.vmctl(&["wait", how]);
        assert_eq!(ran.code, code, "{}{}", ran.stdout, ran.stderr);
        assert_eq!(machine.state(how).1, reason);
    }
    machine.assert_no_leftovers();
}

#[test]
fn events_are_lines_of_json() {
    let machine = Host::on();
    let events = machine.spawn(&["events"]);
    // There is no telling when it has subscribed, so something happens until it has seen enough.
    machine.vmctl(&["create", &machine.config("demo", "")]).ok();
    for _ in 0..3 {
        machine.vmctl(&["start", "demo", "--wait"]).ok();
        machine.vmctl(&["kill", "demo"]).ok();
    }
    let text = events.kill();
    let states: Vec<String> = text
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .map(|event| event["state"].as_str().unwrap().to_owned())
        .collect();
    let life = ["starting", "running", "stopping", "stopped"];
    assert!(states.windows(4).any(|seen| seen == life), "{states:?}");
}

#[test]
fn fifty_lives_leave_nothing() {
    let machine = Host::on();
    let config = machine.config("demo", "");
    let before = machine.daemon_has("fd");
    for round in 0..50 {
        machine.vmctl(&["create", &config]).ok();
        machine.vmctl(&["start", "demo"]).ok();
        if round % 2 == 0 {
            machine.vmctl(&["wait", "demo", "--for", "running"]).ok();
        }
        machine.vmctl(&["kill", "demo"]).ok();
        machine.vmctl(&["delete", "demo"]).ok();
    }
    machine.assert_no_leftovers();
    eventually("no descriptor is leaked", || {
        machine.daemon_has("fd") <= before
    });
    // The event loop, the log, the cleaner, the keeper and the keeper of networks.
    eventually("the threads of jobs have ended", || {
        machine.daemon_has("task") == 5
    });
    assert_eq!(machine.daemon_children(), "");
}
