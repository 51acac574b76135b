//! Each mistake has its line and its exit code, and leaves nothing behind.

use std::fs;
use std::os::unix::fs::FileExt;

use crate::machine::{Host, eventually, kernel};

#[test]
fn configurations() {
    let machine = Host::on();
    fs::write(machine.path("text"), "not a kernel at all").unwrap();
    fs::write(machine.path("half"), &kernel()[..1000]).unwrap();
    fs::write(machine.path("empty"), "").unwrap();
    let cases = [
        ("vcpu = 2", "demo.toml:4: unknown key \"vcpu\""),
        ("vcpus = 0", "demo.toml:4: vcpus = 0: expected"),
        ("vcpus = 1000", "demo.toml:4: vcpus = 1000: expected"),
        ("memory = \"1G\"", "demo.toml:4: duplicate key"),
        ("initrd = \"none\"", "demo.toml:4: initrd: "),
        (
            "[console]\nlog = 1",
            "demo.toml:5: console: unknown key \"log\"",
        ),
    ];
    for (line, expected) in cases {
        let error = machine
            .vmctl(&["create", &machine.config("demo", line)])
            .fails(3);
        assert!(error.contains(expected), "{error}");
    }
    let config = machine.config("demo", "");
    let settings = [
        ("kernel=gone", "gone: no such file"),
        ("kernel=text", "text: not a kernel"),
        ("kernel=half", "half: truncated"),
        ("kernel=empty", "empty: the file is empty"),
        ("kernel=/", "/: not a regular file"),
        ("vcpus=0", "--set vcpus=0: expected a number"),
        ("name=De mo", "is not a VM name"),
        ("name=root", "VM 0's own name"),
        ("memory=64", "expected a size such as \"256M\""),
        ("nonsense", "key=value"),
    ];
    for command in ["create", "run"] {
        for (setting, expected) in settings {
            let error = machine
                .vmctl(&[command, &config, "--set", setting])
                .fails(3);
            assert!(error.contains(expected), "{error}");
        }
    }
    machine.vmctl(&["create", "/no/such.toml"]).fails(3);
    assert_eq!(fs::read_dir(machine.path("state")).unwrap().count(), 0);
}

#[test]
fn disks_whose_images_no_vm_can_use() {
    let machine = Host::on();
    let disk = |arguments: &[&str]| machine.vmctl(&[&["disk"], arguments].concat()).ok();
    let path = |name: &str| machine.path(name).to_str().unwrap().to_owned();
    fs::write(machine.path("odd.raw"), [0; 513]).unwrap();
    fs::write(machine.path("text.qcow2"), "not an image at all").unwrap();
    for name in ["base.qcow2", "broken.qcow2"] {
        disk(&["create", &path(name), "1M"]);
    }
    let broken = fs::OpenOptions::new()
        .write(true)
        .open(path("broken.qcow2"));
    // The offset of the table of reference counts.
    broken.unwrap().write_all_at(&[0; 8], 48).unwrap();
    for name in ["overlay.qcow2", "loop.qcow2"] {
        disk(&["snapshot", &path("base.qcow2"), &path(name)]);
    }
    fs::remove_file(path("base.qcow2")).unwrap();
    let cases = [
        ("odd.raw", "513 bytes are no whole number of 512-byte"),
        ("text.qcow2", "text.qcow2: not a qcow2 image"),
        ("broken.qcow2", "broken.qcow2: "),
        ("overlay.qcow2", "base.qcow2: no such file"),
    ];
    let refused = |name: &str, expected: &str| {
        let table = format!("[[disk]]\npath = '{}'", path(name));
        let config = machine.config("demo", &table);
        for command in ["create", "run"] {
            let error = machine.vmctl(&[command, &config]).fails(3);
            assert!(error.contains("demo.toml:4: disk: "), "{error}");
            assert!(error.contains(expected), "{error}");
        }
    };
    for (name, expected) in cases {
        refused(name, expected);
    }
    fs::copy(path("loop.qcow2"), path("base.qcow2")).unwrap();
    refused("loop.qcow2", "its backing files form a loop");
    assert_eq!(fs::read_dir(machine.path("state")).unwrap().count(), 0);
}

#[test]
fn a_name_is_taken_once() {
    let machine = Host::on();
    let config = machine.config("demo", "");
    machine.vmctl(&["create", &config]).ok();
    let error = machine.vmctl(&["create", &config]).fails(5);
    assert!(error.contains("demo is defined already"), "{error}");
    let other = ["run", &config, "--set", "vcpus=2", "--set", "cmdline=x"];
    let error = machine.vmctl(&other).fails(5);
    let differs = "demo is defined already, with another configuration: cmdline is nothing there, and \"x\" here; \
                   vcpus is 1 there, and 2 here; choose another --name, or \"vmctl edit demo\"";
    assert!(error.contains(differs), "{error}");
    machine.vmctl(&["create", &config, "--name", "other"]).ok();
    assert_eq!(machine.state("other").0, "defined");
}

#[test]
fn more_memory_than_there_is() {
    let machine = Host::on();
    let config = machine.config("demo", "");
    let error = machine
        .vmctl(&["run", &config, "--set", "memory=512G"])
        .fails(6);
    assert!(error.contains("more than root has"), "{error}");
    // Nothing of a VM that never ran is kept.
    assert!(machine.row("demo").is_null());
    assert!(!machine.exists("state/demo"));
}

#[test]
fn without_a_daemon() {
    let machine = Host::off();
    let config = machine.config("demo", "");
    let socket = machine.path("run/control.sock").display().to_string();
    for command in [
        &["list"][..],
        &["run", &config],
        &["kill", "demo"],
        &["events"],
    ] {
        let error = machine.vmctl(command).fails(8);
        assert!(
            error.contains(&socket) && error.contains("vmctl daemon"),
            "{error}"
        );
    }
}

#[test]
fn without_a_driver() {
    let mut machine = Host::off();
    machine.start_daemon(&["--device", "/dev/no-such-device"]);
    machine.vmctl(&["create", &machine.config("demo", "")]).ok();
    // Which of the two is missing depends on where this test runs.
    let named =
        |error: &str| error.contains("not loaded") || error.contains("not under Microvisor");
    let error = machine.vmctl(&["start", "demo"]).fails(7);
    assert!(named(&error), "{error}");
    assert_eq!(machine.state("demo").0, "defined");
    for command in ["top", "hv-log"] {
        let error = machine
            .vmctl(&[command, "--device", "/dev/no-such-device"])
            .fails(7);
        assert!(named(&error), "{error}");
    }
    let doctor = machine.vmctl(&[
        "doctor",
        "--device",
        "/dev/no-such-device",
        "--format",
        "json",
    ]);
    assert_eq!(doctor.code, 7);
    let checks: Vec<serde_json::Value> = serde_json::from_str(&doctor.stdout).unwrap();
    let outcome = |name: &str| {
        let check = checks.iter().find(|check| check["check"] == name).unwrap();
        assert_ne!(check["detail"], "");
        check["outcome"].as_str().unwrap().to_owned()
    };
    assert_eq!(
        (outcome("driver"), outcome("daemon")),
        ("missing".to_owned(), "ok".to_owned())
    );
}

#[test]
fn one_daemon_at_a_time() {
    let machine = Host::on();
    let state = machine.path("state").display().to_string();
    let other = machine.path("other").display().to_string();
    for (runtime, state) in [(None, &other), (Some(&other), &state)] {
        let mut daemon = vec!["daemon", "--state-dir", state];
        daemon.extend(runtime.into_iter().flat_map(|dir| ["--runtime-dir", dir]));
        let second = machine.vmctl(&daemon);
        assert_eq!(second.code, 1);
        assert!(
            second.stderr.contains("another daemon runs there"),
            "{}",
            second.stderr
        );
    }
    machine.vmctl(&["list"]).ok();
}

#[test]
fn a_file_that_has_become_a_fifo_holds_up_nobody() {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    let machine = Host::on();
    let fifo = machine.path("fifo");
    mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let image = machine.path("disk.raw");
    fs::write(&image, [0; 512]).unwrap();
    fs::copy(machine.path("kernel"), machine.path("initrd")).unwrap();
    let more = "initrd = 'initrd'\n[[disk]]\npath = 'disk.raw'";
    let config = machine.config("demo", more);
    machine.vmctl(&["create", &config]).ok();
    for key in ["kernel", "initrd", "disk.raw"] {
        let path = machine.path(key);
        let content = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::hard_link(&fifo, &path).unwrap();
        let error = machine.vmctl(&["start", "demo"]).fails(3);
        assert!(error.contains("not a regular file"), "{error}");
        let name = format!("{key}-name").replace('.', "-");
        let create = ["create", &config, "--name", &name];
        let error = machine.vmctl(&create).fails(3);
        assert!(error.contains("not a regular file"), "{error}");
        fs::remove_file(&path).unwrap();
        fs::write(&path, content).unwrap();
    }
    let attached = ["attach", "demo", "disk", fifo.to_str().unwrap()];
    let error = machine.vmctl(&attached).fails(3);
    assert!(error.contains("not a regular file"), "{error}");
    machine.vmctl(&["start", "demo", "--wait"]).ok();
}

#[test]
fn a_configuration_that_is_written_slowly_holds_up_nobody() {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    let machine = Host::on();
    for name in ["demo", "other"] {
        machine.vmctl(&["create", &machine.config(name, "")]).ok();
    }
    for name in ["first.raw", "second.raw"] {
        fs::write(machine.path(name), [0; 512]).unwrap();
    }
    let path = |name: &str| machine.path(name).to_str().unwrap().to_owned();
    let (first, second) = (path("first.raw"), path("second.raw"));
    machine.vmctl(&["attach", "demo", "disk", &first]).ok();
    // The file under which the next version is written: it is open once somebody reads it, and can't be synchronized.
    let config = machine.path("state/demo/config.toml");
    let before = fs::read_to_string(&config).unwrap();
    let fifo = machine.path("state/demo/config.toml.new");
    let disks = || {
        machine.info("demo")["config"]["disk"]
            .as_array()
            .map_or(0, Vec::len)
    };
    for command in [
        &["attach", "demo", "disk", &second][..],
        &["detach", "demo", "first"],
    ] {
        mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let begun = machine.spawn(command);
        // Refused in any case: the name is taken.
        eventually("the change is being written", || {
            machine
                .vmctl(&["rename", "demo", "other"])
                .stderr
                .contains("is being written")
        });
        assert_eq!(machine.state("other").0, "defined");
        fs::read_to_string(&fifo).unwrap();
        let refused = begun.end().fails(1);
        assert!(refused.contains("state/demo: "), "{refused}");
        assert_eq!(disks(), 1, "{command:?}");
        assert_eq!(fs::read_to_string(&config).unwrap(), before);
        fs::remove_file(&fifo).unwrap();
    }
    machine.vmctl(&["detach", "demo", "first"]).ok();
    machine.vmctl(&["attach", "demo", "disk", &second]).ok();
    assert_eq!(disks(), 1);
    assert!(fs::read_to_string(&config).unwrap().contains("second.raw"));
}
