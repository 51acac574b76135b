//! The daemon's own death, and what the next one finds.

use std::fs;

use crate::fake_worker::PARTITION;
use crate::machine::{Machine, eventually, kill};

#[test]
fn the_next_daemon_finds_living_workers() {
    let mut machine = Machine::on();
    machine.running("demo", "");
    machine.vmctl(&["create", &machine.config("idle", "")]).ok();
    let worker = machine.worker("demo");
    for _ in 0..2 {
        machine.kill_daemon();
        machine.vmctl(&["list"]).fails(8);
        machine.start_daemon(&["--without-driver"]);
        assert_eq!(machine.worker("demo"), worker);
        let row = machine.row("demo");
        assert_eq!(row["id"], PARTITION);
        assert_eq!(
            (row["state"].as_str(), row["reason"].as_str()),
            (Some("running"), Some("guest runs"))
        );
        assert!(row["uptime_ms"].is_u64());
        assert_eq!(machine.state("idle").0, "defined");
    }
    // It can be spoken to.
    machine.vmctl(&["pause", "demo"]).ok();
    machine.vmctl(&["resume", "demo"]).ok();
    let stopped = machine.vmctl(&["stop", "demo", "--timeout", "60"]).ok();
    assert_eq!(stopped, "demo: stopped (guest powered off)\n");
    machine.assert_no_leftovers();
}

#[test]
fn a_worker_that_died_meanwhile_is_noticed() {
    let mut machine = Machine::on();
    machine.running("demo", "");
    let worker = machine.worker("demo");
    machine.kill_daemon();
    kill(worker);
    machine.start_daemon(&["--without-driver"]);
    eventually("the worker is found dead", || {
        machine.state("demo").0 == "crashed"
    });
    // Not quite dead yet, it may have been found and lost.
    let reason = machine.state("demo").1;
    assert!(reason.starts_with("worker died"), "{reason}");
    machine.assert_no_leftovers();
    machine.vmctl(&["start", "demo", "--wait"]).ok();
}

#[test]
fn an_adopted_worker_that_dies_is_noticed() {
    let mut machine = Machine::on();
    machine.running("demo", "");
    machine.kill_daemon();
    machine.start_daemon(&["--without-driver"]);
    kill(machine.worker("demo"));
    let crashed = machine.vmctl(&["wait", "demo"]).fails(10);
    assert!(crashed.contains("worker died"), "{crashed}");
    machine.assert_no_leftovers();
}

#[test]
fn another_boot_has_no_workers() {
    let mut machine = Machine::on();
    machine.running("demo", "");
    let worker = machine.worker("demo");
    machine.kill_daemon();
    let state = machine.path("state/demo/state.toml");
    let text = fs::read_to_string(&state).unwrap();
    let line = text
        .lines()
        .find(|line| line.starts_with("boot_id"))
        .unwrap();
    fs::write(&state, text.replace(line, "boot_id = \"another\"")).unwrap();
    machine.start_daemon(&["--without-driver"]);
    eventually("the state is given up", || {
        machine.state("demo").0 == "crashed"
    });
    assert_eq!(machine.state("demo").1, "the root partition was restarted");
    kill(worker);
}

#[test]
fn a_definition_that_is_broken_is_left_alone() {
    let mut machine = Machine::on();
    machine.vmctl(&["create", &machine.config("demo", "")]).ok();
    machine.vmctl(&["create", &machine.config("good", "")]).ok();
    machine.kill_daemon();
    let config = machine.path("state/demo/config.toml");
    fs::write(&config, "nonsense").unwrap();
    machine.start_daemon(&["--without-driver"]);
    assert!(machine.row("demo").is_null());
    assert_eq!(machine.state("good").0, "defined");
    assert_eq!(fs::read_to_string(config).unwrap(), "nonsense");
    let log = fs::read_to_string(machine.path("daemon.log")).unwrap();
    assert!(log.contains("demo is left out"), "{log}");
}
