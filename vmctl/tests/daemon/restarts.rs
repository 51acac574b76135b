//! The daemon's own death, and what the next one finds.

use std::fs;

use rustix::process::test_kill_process;

use crate::fake_worker::PARTITION;
use crate::machine::{Host, eventually, kill};

#[test]
fn the_next_daemon_finds_living_workers() {
    let mut machine = Host::on();
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
    let mut machine = Host::on();
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
    let mut machine = Host::on();
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
    let mut machine = Host::on();
    machine.running("demo", "");
    let worker = machine.worker("demo");
    machine.kill_daemon();
    for file in [
        "state/demo/state.toml",
        "run/states/demo.toml",
        "run/vms/demo/worker.toml",
    ] {
        let path = machine.path(file);
        let text = fs::read_to_string(&path).unwrap();
        let mut lines = text.lines();
        let line = lines.find(|line| line.starts_with("boot_id")).unwrap();
        fs::write(&path, text.replace(line, "boot_id = \"another\"")).unwrap();
    }
    machine.start_daemon(&["--without-driver"]);
    eventually("the state is given up", || {
        machine.state("demo").0 == "crashed"
    });
    assert_eq!(machine.state("demo").1, "the root partition was restarted");
    kill(worker);
}

/// Appends to a file of a VM's directory.
fn append(machine: &Host, file: &str, text: &str) {
    let path = machine.path(file);
    let old = fs::read_to_string(&path).unwrap();
    fs::write(path, old + text).unwrap();
}

#[test]
fn a_definition_that_can_not_be_read_is_shown_and_can_be_mended() {
    let mut machine = Host::on();
    let toml = machine.config("demo", "");
    machine.vmctl(&["create", &toml]).ok();
    machine.vmctl(&["create", &machine.config("good", "")]).ok();
    fs::create_dir(machine.path("state/bare")).unwrap();
    fs::write(machine.path("state/bare/notes"), "a user's").unwrap();
    machine.kill_daemon();
    let config = machine.path("state/demo/config.toml");
    let good = fs::read_to_string(&config).unwrap();
    fs::write(&config, "nonsense").unwrap();
    machine.start_daemon(&["--without-driver"]);
    assert_eq!(machine.state("good").0, "defined");
    let (state, reason) = machine.state("demo");
    assert_eq!(state, "defined");
    assert!(
        reason.starts_with("never started; its definition can't be read: ")
            && reason.contains("config.toml:1"),
        "{reason}"
    );
    let reason = machine.state("bare").1;
    assert!(
        reason.contains("bare/config.toml: no such file"),
        "{reason}"
    );
    for (name, args) in [
        ("demo", vec!["start", "demo"]),
        ("demo", vec!["attach", "demo", "disk", "/d.raw"]),
        ("bare", vec!["start", "bare"]),
    ] {
        let refused = machine.vmctl(&args).fails(3);
        assert!(
            refused.contains(&format!("{name}/config.toml")),
            "{refused}"
        );
    }
    machine.vmctl(&["create", &toml]).fails(5);
    machine.vmctl(&["create", &toml, "--name", "bare"]).fails(5);
    assert_eq!(fs::read_to_string(&config).unwrap(), "nonsense");
    assert!(machine.exists("state/bare/notes"));
    // Whoever mends the file need not start another daemon.
    fs::write(&config, good).unwrap();
    machine.vmctl(&["start", "demo", "--wait"]).ok();
    machine.info("demo");
    machine.vmctl(&["delete", "bare"]).ok();
    assert!(!machine.exists("state/bare"));
}

#[test]
fn a_running_vm_whose_files_can_not_be_read_is_not_lost() {
    type Spoil = fn(&Host);
    let cases: [(&str, Spoil); 6] = [
        ("another version's key", |machine| {
            append(machine, "state/demo/config.toml", "\n[newer]\nkey = 1\n");
        }),
        ("an empty state", |machine| {
            fs::write(machine.path("state/demo/state.toml"), "").unwrap();
        }),
        ("another version's state", |machine| {
            let text = "version = 9\nstate = 'migrating'\n";
            fs::write(machine.path("state/demo/state.toml"), text).unwrap();
        }),
        ("no state", |machine| {
            fs::remove_file(machine.path("state/demo/state.toml")).unwrap();
        }),
        ("a state that is long over", |machine| {
            let path = machine.path("state/demo/state.toml");
            let text = fs::read_to_string(&path).unwrap();
            fs::write(path, text.replace("\"running\"", "\"stopped\"")).unwrap();
        }),
        ("no directory", |machine| {
            fs::remove_dir_all(machine.path("state/demo")).unwrap();
        }),
    ];
    for (what, spoil) in cases {
        let mut machine = Host::on();
        machine.running("demo", "");
        let worker = machine.worker("demo");
        eventually("the state is saved", || {
            let saved = fs::read_to_string(machine.path("state/demo/state.toml"));
            saved.is_ok_and(|text| text.contains("\"running\""))
        });
        machine.kill_daemon();
        fs::remove_file(machine.path("run/states/demo.toml")).unwrap();
        spoil(&machine);
        machine.start_daemon(&["--without-driver"]);
        eventually(what, || machine.state("demo").0 == "running");
        assert!(test_kill_process(worker).is_ok(), "{what}");
        machine.vmctl(&["start", "demo"]).fails(5);
        machine
            .vmctl(&["create", &machine.config("demo", "")])
            .fails(5);
        machine.vmctl(&["pause", "demo"]).ok();
        machine.vmctl(&["resume", "demo"]).ok();
        machine.vmctl(&["kill", "demo"]).ok();
        eventually(what, || test_kill_process(worker).is_err());
        machine.assert_no_leftovers();
        machine.vmctl(&["delete", "demo"]).ok();
        assert!(!machine.exists("state/demo"), "{what}");
    }
}

#[test]
fn an_end_that_was_told_is_kept_when_the_daemon_dies_before_it_is_over() {
    let mut machine = Host::on();
    let config = machine.config("demo", "cmdline = 'lingers'");
    machine.vmctl(&["create", &config]).ok();
    machine.vmctl(&["start", "demo"]).ok();
    eventually("the end is saved", || {
        let saved = fs::read_to_string(machine.path("state/demo/state.toml"));
        saved.is_ok_and(|text| text.contains("guest powered off"))
    });
    let worker = machine.worker("demo");
    machine.kill_daemon();
    kill(worker);
    machine.start_daemon(&["--without-driver"]);
    let ended = machine.vmctl(&["wait", "demo"]).ok();
    assert_eq!(ended, "demo: stopped (guest powered off)\n");
}
