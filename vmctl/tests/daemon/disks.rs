//! Disks that are attached and detached.

use crate::machine::{Host, eventually, kill};

/// Makes an image that the fake worker takes. Returns its path.
fn image(machine: &Host, name: &str) -> String {
    let path = machine.path(name);
    let mut bytes = vec![0; 512];
    bytes[..4].copy_from_slice(b"good");
    std::fs::write(&path, bytes).unwrap();
    path.to_str().unwrap().to_owned()
}

/// What others do with an image.
fn usage(machine: &Host, image: &str) -> String {
    let info = machine
        .vmctl(&["disk", "info", image, "--format", "json"])
        .ok();
    let info: serde_json::Value = serde_json::from_str(&info).unwrap();
    info[0]["in_use"].as_str().unwrap().to_owned()
}

/// Names of the disks in the definition that the next daemon reads.
fn defined(machine: &Host, name: &str) -> Vec<String> {
    let text = std::fs::read_to_string(machine.path(&format!("state/{name}/config.toml"))).unwrap();
    let config: toml::Table = toml::from_str(&text).unwrap();
    let disks = config.get("disk").and_then(|disks| disks.as_array());
    let name = |disk: &toml::Value| disk["name"].as_str().unwrap().to_owned();
    disks.map_or(Vec::new(), |disks| disks.iter().map(name).collect())
}

#[test]
fn a_vm_that_does_not_run_gets_and_loses_disks() {
    let machine = Host::on();
    machine.vmctl(&["create", &machine.config("demo", "")]).ok();
    let first = image(&machine, "data.raw");
    let attached = machine.vmctl(&["attach", "demo", "disk", &first]).ok();
    assert_eq!(attached, "demo: disk data attached\n");
    let second = image(&machine, "data.img");
    let command = ["attach", "demo", "disk", &second, "--readonly"];
    let attached = machine.vmctl(&[&command[..], &["--set", "format=raw"]].concat());
    assert_eq!(attached.ok(), "demo: disk data-2 attached\n");
    assert_eq!(defined(&machine, "demo"), ["data", "data-2"]);
    let config = &machine.info("demo")["config"]["disk"][1];
    assert_eq!(config["readonly"], true);
    let info = machine.vmctl(&["info", "demo"]).ok();
    assert!(
        info.contains(&format!("data-2          {second}\n")),
        "{info}"
    );
    let detached = machine.vmctl(&["detach", "demo", "data"]).ok();
    assert_eq!(detached, "demo: data detached\n");
    assert_eq!(defined(&machine, "demo"), ["data-2"]);
}

#[test]
fn a_running_vm_gets_and_loses_disks() {
    let mut machine = Host::on();
    machine.running("demo", "");
    let data = image(&machine, "data.raw");
    machine.vmctl(&["attach", "demo", "disk", &data]).ok();
    assert_eq!(defined(&machine, "demo"), ["data"]);
    // The worker has the only copy of the file, and it is locked.
    machine.kill_daemon();
    assert_eq!(usage(&machine, &data), "write");
    machine.start_daemon(&["--without-driver"]);
    assert_eq!(defined(&machine, "demo"), ["data"]);
    machine.vmctl(&["detach", "demo", "data"]).ok();
    assert_eq!(defined(&machine, "demo"), [""; 0]);
    assert_eq!(usage(&machine, &data), "no");
    // What a rebooted guest has.
    machine
        .vmctl(&["attach", "demo", "disk", &data, "--name", "1"])
        .ok();
    machine.vmctl(&["kill", "demo"]).ok();
    machine.vmctl(&["start", "demo", "--wait"]).ok();
    assert_eq!(defined(&machine, "demo"), ["1"]);
}

#[test]
fn a_disk_that_is_being_opened_when_the_daemon_dies_is_not_forgotten() {
    let mut machine = Host::on();
    machine.running("demo", "cmdline = 'opens-long'");
    let data = image(&machine, "data.raw");
    let client = machine.spawn(&["attach", "demo", "disk", &data]);
    eventually("the worker opens the image", || {
        defined(&machine, "demo") == ["data"]
    });
    machine.kill_daemon();
    client.end().fails(8);
    machine.start_daemon(&["--without-driver"]);
    machine.vmctl(&["info", "demo"]).ok();
    assert_eq!(defined(&machine, "demo"), ["data"]);
    let mut console = machine.spawn(&["console", "demo"]);
    console.say("give up\n");
    eventually("the disk is refused", || {
        defined(&machine, "demo").is_empty()
    });
    console.kill();
}

#[test]
fn what_is_refused_leaves_nothing() {
    let machine = Host::on();
    machine.running("demo", "");
    let bad = machine.path("bad.raw");
    std::fs::write(&bad, [0; 512]).unwrap();
    let bad = bad.to_str().unwrap();
    let data = image(&machine, "data.raw");
    let refused = machine.vmctl(&["attach", "demo", "disk", bad]).fails(5);
    assert_eq!(refused, "vmctl: demo: bad: the image is not good\n");
    let odd = machine.path("odd.raw");
    std::fs::write(&odd, [0; 513]).unwrap();
    let fails = |code: i32, args: &[&str], what: &str| {
        let message = machine.vmctl(args).fails(code);
        assert!(message.contains(what), "{message}");
    };
    let odd = odd.to_str().unwrap();
    fails(
        3,
        &["attach", "demo", "disk", odd],
        "no whole number of 512",
    );
    let missing = machine.path("missing.raw");
    let missing = missing.to_str().unwrap();
    fails(3, &["attach", "demo", "disk", missing], "no such file");
    fails(
        3,
        &["attach", "demo", "disk", &data, "--set", "cash=none"],
        "--set cash=none: unknown key \"cash\"",
    );
    fails(4, &["attach", "nobody", "disk", &data], "no such VM");
    fails(
        4,
        &["detach", "demo", "data"],
        "no disk or NIC has the name",
    );
    machine.vmctl(&["attach", "demo", "disk", &data]).ok();
    fails(3, &["attach", "demo", "disk", &data], "two disks use");
    machine.vmctl(&["pause", "demo"]).ok();
    fails(5, &["detach", "demo", "data"], "vmctl resume demo");
    assert_eq!(defined(&machine, "demo"), ["data"]);
}

#[test]
fn a_guest_that_keeps_a_disk_has_it_still() {
    let machine = Host::on();
    machine.running("demo", "cmdline = 'keeps'");
    let data = image(&machine, "data.raw");
    machine.vmctl(&["attach", "demo", "disk", &data]).ok();
    let late = machine
        .vmctl(&["detach", "demo", "data", "--timeout", "100ms"])
        .fails(9);
    assert!(late.contains("has not released data"), "{late}");
    let waiter = machine.spawn(&["detach", "demo", "data"]);
    eventually("the worker is asked twice", || {
        let log = machine.vmctl(&["logs", "demo"]).ok();
        log.contains("datadata")
    });
    kill(machine.worker("demo"));
    let ended = waiter.end().fails(10);
    assert!(ended.contains("ended before data was detached"), "{ended}");
    assert_eq!(defined(&machine, "demo"), ["data"]);
}
