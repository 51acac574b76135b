//! What users do every day.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::machine::{Host, eventually};

#[test]
fn several_vms_at_once() {
    let machine = Host::on();
    for name in ["a", "b", "c"] {
        machine.vmctl(&["create", &machine.config(name, "")]).ok();
    }
    let started = machine.vmctl(&["start", "a", "b", "--wait"]).ok();
    assert_eq!(
        started,
        "a: running (guest runs)\nb: running (guest runs)\n"
    );
    // One that fails does not keep the others from it.
    let ran = machine.vmctl(&["stop", "nobody", "a", "--wait"]);
    assert_eq!(ran.code, 4, "{}", ran.stderr);
    assert!(
        ran.stderr.starts_with("vmctl: nobody: no such VM"),
        "{}",
        ran.stderr
    );
    assert_eq!(ran.stdout, "a: stopped (guest powered off)\n");
    // All that live, or all that do not.
    let killed = machine.vmctl(&["kill", "--all"]).ok();
    assert_eq!(killed, "b: stopped (killed)\n");
    let started = machine.vmctl(&["start", "--all", "--wait"]).ok();
    assert_eq!(started.lines().count(), 3, "{started}");
    assert_eq!(machine.vmctl(&["delete", "--all"]).ok(), "");
    machine.vmctl(&["destroy", "a", "b"]).ok();
    let deleted = machine.vmctl(&["rm", "--all"]).ok();
    assert_eq!(deleted, "a: deleted\nb: deleted\n");
    assert_eq!(machine.state("c").0, "running");
}

#[test]
fn the_same_run_again_attaches() {
    let machine = Host::on();
    let config = machine.config("demo", "");
    let first = machine.spawn(&["run", &config]);
    eventually("it runs", || machine.row("demo")["state"] == "running");
    let worker = machine.worker("demo");
    let mut second = machine.spawn(&["run", &config]);
    second.say("off\n");
    let ran = second.end();
    assert!(ran.stderr.contains("guest powered off"), "{}", ran.stderr);
    first.end().ok();
    // It is started again, and kept.
    let mut third = machine.spawn(&["run", &config]);
    eventually("it runs again", || {
        machine.row("demo")["state"] == "running"
    });
    assert_ne!(machine.worker("demo"), worker);
    third.say("off\n");
    third.end().ok();
    assert_eq!(machine.state("demo").0, "stopped");
}

#[test]
fn a_vm_gets_another_name() {
    let mut machine = Host::on();
    let more = "[[nic]]\nnetwork = 'lan0'";
    machine
        .vmctl(&["create", &machine.config("demo", more)])
        .ok();
    let mac = machine.info("demo")["config"]["nic"][0]["mac"].clone();
    assert!(mac.is_string());
    machine
        .vmctl(&["create", &machine.config("other", "")])
        .ok();
    machine.vmctl(&["rename", "demo", "other"]).fails(5);
    let renamed = machine.vmctl(&["rename", "demo", "web"]).ok();
    assert_eq!(renamed, "demo: renamed to web\n");
    assert!(machine.row("demo").is_null() && machine.exists("state/web/config.toml"));
    // What its guest knows it by stays.
    assert_eq!(machine.info("web")["config"]["nic"][0]["mac"], mac);
    machine.kill_daemon();
    machine.start_daemon(&["--without-driver"]);
    assert_eq!(machine.state("web").0, "defined");
    machine.vmctl(&["start", "other", "--wait"]).ok();
    let refused = machine.vmctl(&["rename", "other", "new"]).fails(5);
    assert!(refused.contains("vmctl stop other"), "{refused}");
}

/// Makes an editor that runs `script` with the file as its last argument.
fn editor(machine: &Host, script: &str) -> String {
    let path = machine.path("editor");
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_configuration_is_edited() {
    let mut machine = Host::on();
    machine.vmctl(&["create", &machine.config("demo", "")]).ok();
    let edit = |machine: &Host, script: &str| {
        let editor = editor(machine, script);
        machine.vmctl_with(&["edit", "demo"], &[("EDITOR", &editor), ("VISUAL", "")])
    };
    let changed = edit(&machine, "sed -i s/vcpus.*/vcpus=3/ \"$1\"").ok();
    assert_eq!(changed, "demo: changed\n");
    assert_eq!(machine.row("demo")["vcpus"], 3);
    assert_eq!(edit(&machine, "true").ok(), "demo: not changed\n");
    let failed = edit(&machine, "exit 5").fails(1);
    assert!(failed.contains("nothing was changed"), "{failed}");
    let wrong = edit(&machine, "sed -i s/vcpus.*/vcpus=many/ \"$1\"").fails(3);
    assert!(wrong.contains("demo:2: "), "{wrong}");
    let wrong = edit(&machine, "sed -i s/demo/other/ \"$1\"").fails(3);
    assert!(wrong.contains("vmctl rename demo other"), "{wrong}");
    assert_eq!(machine.row("demo")["vcpus"], 3);
    // What can't be read is mended so.
    machine.kill_daemon();
    let config = machine.path("state/demo/config.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("{text}\nnewer = 1\n")).unwrap();
    machine.start_daemon(&["--without-driver"]);
    edit(&machine, "sed -i /newer/d \"$1\"").ok();
    assert_eq!(machine.state("demo").1, "never started");
    machine.vmctl(&["start", "demo", "--wait"]).ok();
    let refused = edit(&machine, "true").fails(5);
    assert!(refused.contains("vmctl stop demo"), "{refused}");
}

#[test]
fn help_and_versions() {
    let machine = Host::on();
    let help = machine.vmctl(&["help"]).ok();
    assert_eq!(machine.vmctl(&["-h"]).ok(), help);
    let nothing = machine.vmctl(&[]);
    assert_eq!((nothing.code, nothing.stderr), (2, help));
    let version = machine.vmctl(&["version"]).ok();
    let own = env!("CARGO_PKG_VERSION");
    assert!(
        version.contains(&format!("daemon      {own}\n")),
        "{version}"
    );
    for alias in ["ls", "ps"] {
        let list = machine.vmctl(&[alias]).ok();
        assert!(list.contains("root  running"), "{list}");
    }
}

#[test]
fn values_that_look_like_numbers_are_text_where_text_is_wanted() {
    let machine = Host::on();
    let config = machine.config("demo", "");
    let set = ["create", &config, "--set", "cmdline=123", "--set", "name=7"];
    machine.vmctl(&set).ok();
    assert_eq!(machine.info("7")["config"]["cmdline"], "123");
    let set = [
        "create",
        &config,
        "--set",
        "cmdline=true",
        "--set",
        "vcpus=2",
    ];
    machine.vmctl(&set).ok();
    assert_eq!(machine.info("demo")["config"]["cmdline"], "true");
    assert_eq!(machine.row("demo")["vcpus"], 2);
}
