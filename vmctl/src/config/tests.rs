//! Configurations that are accepted, and the message for each mistake.

use super::*;
use crate::net::{Mac, Place, Vlan};

const DEMO: &str = r#"# A comment.
name = "demo"
vcpus = 2
memory = "256M"
kernel = "/boot/vmlinuz"
cmdline = "console=ttyS0 quiet"

[console]
log_limit = "64K"
"#;

fn parse(text: &str, overrides: &[&str]) -> Result<VmConfig, String> {
    let overrides: Vec<String> = overrides.iter().map(|s| (*s).to_owned()).collect();
    Loaded::parse("demo.toml", text.to_owned(), &overrides)
        .map(|l| l.config)
        .map_err(|e| e.to_string())
}

/// The error for `DEMO` with `from` replaced by `to`.
fn error(from: &str, to: &str) -> String {
    assert!(DEMO.contains(from));
    parse(&DEMO.replace(from, to), &[]).unwrap_err()
}

#[test]
fn the_demo_parses_and_survives_the_wire() {
    let config = parse(DEMO, &[]).unwrap();
    assert_eq!(config.name, "demo");
    assert_eq!(config.vcpus, 2);
    assert_eq!(config.memory, 256 << 20);
    assert_eq!(config.console.log_limit, 64 << 10);
    assert_eq!(config.on_reboot, OnReboot::Restart);
    let text = config.to_toml().unwrap();
    assert!(text.contains("memory = \"256M\""), "{text}");
    assert_eq!(VmConfig::parse("wire", &text).unwrap(), config);
}

#[test]
fn defaults() {
    let text = "name = 'a'\nmemory = '64M'\nkernel = '/k'";
    let config = parse(text, &[]).unwrap();
    assert_eq!((config.vcpus, config.cmdline()), (1, "console=ttyS0"));
    assert_eq!(config.console.log_limit, 1 << 20);
}

#[test]
fn errors_name_key_and_line() {
    assert_eq!(
        error("vcpus = 2", "vcpu = 2"),
        "demo.toml:3: unknown key \"vcpu\", expected one of \"name\", \"vcpus\", \"memory\", \
         \"kernel\", \"initrd\", \"cmdline\", \"on_reboot\", \"console\", \"disk\", \
         \"nic\", \"vsock\""
    );
    assert_eq!(
        error("log_limit = \"64K\"", "log_limt = \"64K\""),
        "demo.toml:9: console: unknown key \"log_limt\", expected \"device\" or \"log_limit\""
    );
    for count in ["0", "1000", "-1", "4294967297"] {
        assert_eq!(
            error("vcpus = 2", &format!("vcpus = {count}")),
            format!("demo.toml:3: vcpus = {count}: expected a number from 1 to 64")
        );
    }
    assert_eq!(
        error("vcpus = 2", "vcpus = \"2\""),
        "demo.toml:3: vcpus = \"2\": expected a number from 1 to 64"
    );
    assert_eq!(
        error("\"256M\"", "\"256\""),
        "demo.toml:4: memory = \"256\": it has no unit: expected 256M, or K, G or T"
    );
    assert_eq!(
        error("\"256M\"", "\"lots\""),
        "demo.toml:4: memory = \"lots\": expected a size such as 256M or 2G"
    );
    assert_eq!(
        error("\"256M\"", "\"4K\""),
        "demo.toml:4: memory = \"4K\": expected a size from 2M to 512G"
    );
    assert_eq!(
        error("\"256M\"", "\"20971520T\""),
        "demo.toml:4: memory = \"20971520T\": expected a size such as 256M or 2G"
    );
    assert_eq!(
        error("\"256M\"", "256"),
        "demo.toml:4: memory = 256: expected a size such as \"256M\" or \"2G\""
    );
    assert!(
        error("name = \"demo\"", "name = \"De mo\"")
            .starts_with("demo.toml:2: name = \"De mo\": \"De mo\" is not a VM name")
    );
    assert_eq!(
        error("kernel = \"/boot/vmlinuz\"\n", ""),
        "demo.toml: missing key \"kernel\""
    );
    for (from, to, line) in [
        ("vcpus = 2", "vcpus = two", "demo.toml:3: "),
        (
            "\"64K\"",
            "\"0M\"",
            "demo.toml:9: console.log_limit = \"0M\": expected a size of at least 4K",
        ),
        (
            "\"/boot/vmlinuz\"",
            "\"\"",
            "demo.toml:5: kernel = \"\": expected the path of a file",
        ),
        (
            "\"/boot/vmlinuz\"",
            "7",
            "demo.toml:5: kernel = 7: expected text in quotes",
        ),
    ] {
        let error = error(from, to);
        assert!(error.starts_with(line), "{error}");
    }
    assert!(error("vcpus = 2", "vcpus = ").starts_with("demo.toml:3: "));
    assert!(error("vcpus = 2", "vcpus = 2\nvcpus = 3").starts_with("demo.toml:4: duplicate key"));
}

#[test]
fn overrides_reach_into_arrays_of_tables() {
    let text = format!("{DEMO}\n[[nic]]\nnetwork = 'a'\n[[nic]]\nnetwork = 'b'\n");
    let config = parse(&text, &["nic.1.mtu=1400", "nic.1.network=c"]).unwrap();
    let [first, second] = &config.nics[..] else {
        panic!("{:?}", config.nics);
    };
    assert_eq!((first.network.as_deref(), first.mtu), (Some("a"), None));
    assert_eq!(
        (second.network.as_deref(), second.mtu),
        (Some("c"), Some(1400))
    );
    for wrong in ["nic.2.mtu=1400", "nic.x.mtu=1400", "nic.0=1", "nic.0.mtu=1"] {
        let message = parse(&text, &[wrong]).unwrap_err();
        assert!(
            message.starts_with(&format!("--set {wrong}: ")),
            "{message}"
        );
    }
}

#[test]
fn overrides_replace_and_add_and_are_named() {
    let set = [
        "vcpus=4",
        "memory=1G",
        "console.log_limit=128K",
        "initrd=/x y",
        "cmdline=a=b c",
    ];
    let config = parse(DEMO, &set).unwrap();
    assert_eq!((config.vcpus, config.memory), (4, 1 << 30));
    assert_eq!(config.console.log_limit, 128 << 10);
    assert_eq!(config.initrd.as_deref(), Some(Path::new("/x y")));
    assert_eq!(config.cmdline(), "a=b c");
    assert_eq!(
        parse(DEMO, &["memory=1G", "vcpus=0"]).unwrap_err(),
        "--set vcpus=0: expected a number from 1 to 64"
    );
    assert!(
        parse(DEMO, &["vcpu=1"])
            .unwrap_err()
            .starts_with("--set vcpu=1: unknown key")
    );
    assert!(parse(DEMO, &["vcpus"]).unwrap_err().contains("key=value"));
    assert!(parse(DEMO, &["a b=1"]).unwrap_err().contains("dotted key"));
    // A mistake in the file can be mended, and another stays at its line.
    assert!(parse(&DEMO.replace("256M", "x"), &["memory=64M"]).is_ok());
    assert!(
        parse(&DEMO.replace("64K", "x"), &["memory=64M"])
            .unwrap_err()
            .starts_with("demo.toml:9")
    );
}

#[test]
fn names() {
    let longest = "a".repeat(MAX_NAME);
    for good in ["a", "0", "web-1", "a--b", &longest] {
        assert_eq!(check_name(good), Ok(()), "{good}");
    }
    let long = "a".repeat(MAX_NAME + 1);
    for bad in [
        "", "-a", "a-", "A", "a.b", "../x", "a/b", "ä", "root", "a\n", &long,
    ] {
        assert!(check_name(bad).is_err(), "{bad}");
    }
}

#[test]
fn sizes() {
    assert_eq!(parse_size("3KiB"), Ok(3072));
    assert_eq!(parse_size("1GB"), Ok(1 << 30));
    for bad in [
        "",
        "M",
        "1",
        "1.5G",
        "-1M",
        "1X",
        "1 M",
        "99999999999999999999M",
    ] {
        assert!(parse_size(bad).is_err(), "{bad}");
    }
    assert_eq!(format_size(1 << 30), "1G");
    assert_eq!(format_size(1536 << 20), "1536M");
    assert_eq!(format_size(5), "5B");
    assert_eq!(format_size(0), "0B");
}

#[test]
fn files_are_relative_to_the_configuration_and_checked() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vm.toml");
    std::fs::write(&path, DEMO.replace("/boot/vmlinuz", "sub/kernel")).unwrap();
    let loaded = Loaded::read(&path, &[]).unwrap();
    assert_eq!(loaded.config.kernel, dir.path().join("sub/kernel"));
    let kernel = loaded.config.kernel.display().to_string();
    assert_eq!(
        loaded.check_files().unwrap_err().to_string(),
        format!("{}:5: kernel: {kernel}: no such file", path.display())
    );
    std::fs::create_dir(dir.path().join("sub")).unwrap();
    std::fs::write(&loaded.config.kernel, "").unwrap();
    assert!(
        loaded
            .check_files()
            .unwrap_err()
            .to_string()
            .ends_with("the file is empty")
    );
    std::fs::write(&loaded.config.kernel, "x").unwrap();
    assert_eq!(loaded.check_files(), Ok(()));
    let missing = dir.path().join("none.toml");
    assert_eq!(
        Loaded::read(&missing, &[]).unwrap_err().to_string(),
        format!("{}: no such file", missing.display())
    );
}

fn with_disks(disks: &str) -> Result<VmConfig, String> {
    parse(&format!("{DEMO}\n{disks}"), &[])
}

#[test]
fn disks_have_defaults_and_survive_the_wire() {
    let disks = "[[disk]]\npath = '/a.qcow2'\n[[disk]]\npath = '/b'\nserial = 'B'\nreadonly = true\n\
                 cache = 'writethrough'\nqueues = 2\non_enospc = 'report'\non_error = 'pause'\n\
                 io_timeout = '1.5s'\non_timeout = 'kill'\nbacking_dirs = ['/srv/bases']";
    let config = with_disks(disks).unwrap();
    let [first, second] = &config.disks[..] else {
        panic!("{config:?}");
    };
    assert_eq!(first.cache, crate::disk::Cache::Writeback);
    assert_eq!(
        (first.on_enospc, first.on_error),
        (OnError::Pause, OnError::Report)
    );
    assert_eq!(
        (second.on_enospc, second.on_error),
        (OnError::Report, OnError::Pause)
    );
    let timeouts = |disk: &DiskConfig| (disk.io_timeout.as_millis(), disk.on_timeout);
    assert_eq!(timeouts(first), (30_000, OnTimeout::Wait));
    assert_eq!(timeouts(second), (1_500, OnTimeout::Kill));
    assert_eq!(second.backing_dirs, [Path::new("/srv/bases")]);
    let text = config.to_toml().unwrap();
    assert_eq!(VmConfig::parse("wire", &text).unwrap(), config);
    let error = VmConfig::parse("wire", &text.replace("/srv", "srv")).unwrap_err();
    let what = "wire: backing_dirs: srv/bases is not an absolute path";
    assert_eq!(error.to_string(), what);
}

#[test]
fn disks_have_names() {
    let names = |disks: &[&str]| {
        let text: String = disks
            .iter()
            .map(|disk| format!("[[disk]]\n{disk}\n"))
            .collect();
        let config = with_disks(&text).unwrap();
        let again = VmConfig::parse("wire", &config.to_toml().unwrap()).unwrap();
        assert_eq!(again, config);
        let names = config.disks.into_iter().map(|disk| disk.name);
        names.collect::<Vec<_>>()
    };
    let long = format!("path = '/{}.raw'", "x".repeat(40));
    assert_eq!(
        names(&[
            "path = '/srv/web.v2.qcow2'",
            "path = '/dev/vdb'",
            "path = '/.-ä b'"
        ]),
        ["web.v2", "vdb", "b"]
    );
    assert_eq!(
        names(&[
            "path = '/a/data'",
            "path = '/b/data.raw'",
            "path = '/c'\nname = 'data'"
        ]),
        ["data-2", "data-3", "data"]
    );
    let second = format!("{long}\nreadonly = true");
    let first = second.clone();
    assert_eq!(
        names(&[&first, &second, "path = '/ä'"]),
        [
            "x".repeat(32),
            format!("{}-2", "x".repeat(30)),
            "disk".to_owned()
        ]
    );
}

#[test]
fn wrong_disks_are_named() {
    let two = |first: &str, second: &str| {
        with_disks(&format!("[[disk]]\n{first}\n[[disk]]\n{second}")).unwrap_err()
    };
    let error = two("path = '/a'", "path = '/a'\nreadonly = true");
    assert!(error.contains("two disks use /a"), "{error}");
    let many = |count: u32| {
        let disks: String = (0..count)
            .map(|n| format!("[[disk]]\npath = '/{n}'\n"))
            .collect();
        with_disks(&disks)
    };
    many(30).unwrap();
    let error = many(31).unwrap_err();
    assert!(error.contains("31: a VM has at most 30 disks"), "{error}");
    let error = two("path = '/a'\nserial = 'S'", "path = '/b'\nserial = 'S'");
    assert!(error.contains("the serial number \"S\""), "{error}");
    let error = two("path = '/a'\nname = 'x'", "path = '/b'\nname = 'x'");
    assert!(error.contains("the name \"x\""), "{error}");
    for (line, what) in [
        ("name = ''", "\"\": expected at most 32"),
        ("name = '-x'", "\"-x\": expected"),
        ("name = 'a b'", "\"a b\": expected"),
        ("serial = 'twenty-one characters'", "at most 20 ASCII"),
        (
            "queues = 17",
            "disk.queues = 17: expected a number from 1 to 16",
        ),
        ("cache = 'fast'", "fast"),
        ("on_error = 'ignore'", "ignore"),
        ("io_timeout = '99ms'", "from 100ms to 24h"),
        (
            "io_timeout = 'never'",
            "disk.io_timeout = 'never': expected a time",
        ),
        ("on_timeout = 'panic'", "panic"),
    ] {
        let error = with_disks(&format!("[[disk]]\npath = '/a'\n{line}")).unwrap_err();
        assert!(error.contains(what), "{error}");
    }
}

fn with_nics(nics: &[&str]) -> Result<VmConfig, String> {
    let table = |nic: &&str| format!("[[nic]]\n{nic}\n");
    let nics: String = nics.iter().map(table).collect();
    parse(&format!("{DEMO}\n{nics}"), &[])
}

#[test]
fn nics_have_defaults_and_survive_the_wire() {
    let config = with_nics(&[
        "network = 'lan0'",
        "bridge = 'br0'\nname = 'wan'\nmac = '52:54:00:00:00:09'\nvlan = 10\ntrunks = [30, 20, 30]\n\
         mtu = 9000\nqueues = 2\nlink = 'down'\naddress = '10.0.0.9'\naddress6 = 'fd00::9'\n\
         rate = '1500k'\npackets = 50",
        "tap = 'tap7'",
        "network = 'lan0'\nvlan = '20t'",
    ])
    .unwrap();
    let names: Vec<_> = config.nics.iter().map(|nic| &*nic.name).collect();
    assert_eq!(names, ["lan0", "wan", "tap7", "lan0-2"]);
    let [first, second, third, last] = &config.nics[..] else {
        panic!("{config:?}");
    };
    assert_eq!(first.place(), Some(Place::Network("lan0".to_owned())));
    assert_eq!(first.mac, Some(Mac::of_text("demo/lan0")));
    assert_eq!(last.mac, Some(Mac::of_text("demo/lan0-2")));
    assert_eq!(
        (first.mtu, first.queues, first.link),
        (None, None, LinkState::Up)
    );
    assert_eq!(second.place(), Some(Place::Bridge("br0".to_owned())));
    assert_eq!(second.vlan, Vlan::new(10, false).ok());
    assert_eq!(second.trunks, [20, 30]);
    assert_eq!((second.mtu, second.queues), (Some(9000), Some(2)));
    assert_eq!(second.link, LinkState::Down);
    let rules = second.rules();
    let addresses: [std::net::IpAddr; 2] =
        ["10.0.0.9".parse().unwrap(), "fd00::9".parse().unwrap()];
    assert_eq!(rules.addresses, addresses);
    assert_eq!((rules.rate, rules.packets), (Some(1_500_000), Some(50)));
    assert!(!rules.spoof);
    assert_eq!(third.place(), Some(Place::Tap("tap7".to_owned())));
    assert_eq!(last.vlan, Vlan::new(20, true).ok());
    let text = config.to_toml().unwrap();
    assert_eq!(VmConfig::parse("wire", &text).unwrap(), config);
    // The name of a disk is taken, too.
    let disk = "[[disk]]\npath = '/lan0'\n[[nic]]\nnetwork = 'lan0'";
    let config = with_disks(disk).unwrap();
    assert_eq!(config.nics[0].name, "lan0-2");
}

#[test]
fn wrong_nics_are_named() {
    for (nic, what) in [
        ("", "one of the keys \"network\", \"bridge\" and \"tap\""),
        ("network = 'a'\nbridge = 'b'", "one of the keys"),
        (
            "tap = 'a'\nvlan = 10",
            "tap \"a\": a tap of another program",
        ),
        (
            "tap = 'a'\ntrunks = [10]",
            "tap \"a\": a tap of another program",
        ),
        ("network = 'a'\nvlan = 10\ntrunks = [10]", "VLAN 10 is both"),
        (
            "network = 'a'\nvlan = 0",
            "VLAN 0: a VLAN has a number from 1 to 4094",
        ),
        ("network = 'a'\nvlan = 'x'", "\"x\" is not a VLAN"),
        ("network = 'a'\nvlan = true", "expected a VLAN as 10"),
        ("network = 'a'\ntrunks = [4095]", "a VLAN has a number"),
        (
            "network = 'a'\nmac = '01:00:5e:00:00:01'",
            "not one station's MAC address",
        ),
        ("network = 'a'\nmac = 'x'", "\"x\" is not a MAC address"),
        (
            "network = 'a'\nmtu = 67",
            "MTU 67: expected a number from 68 to 65535",
        ),
        ("network = 'a'\nmtu = 65536", "MTU 65536: expected"),
        (
            "network = 'a'\nqueues = 0",
            "nic.queues = 0: expected a number from 1 to 16",
        ),
        (
            "network = 'a'\nqueues = 17",
            "nic.queues = 17: expected a number from 1 to 16",
        ),
        ("network = 'a'\nlink = 'on'", "\"on\""),
        (
            "network = 'a'\naddress = '10.0.0'",
            "nic.address = '10.0.0': expected an IPv4 address",
        ),
        (
            "network = 'a'\naddress = '10.0.0.9'\nspoof = true",
            "a NIC with \"spoof\" may use any address",
        ),
        (
            "network = 'a'\nrate = '99k'",
            "\"99k\": expected bits per second",
        ),
        (
            "network = 'a'\nrate = '1T'",
            "\"1T\": expected bits per second",
        ),
        ("network = 'a'\nrate = true", "expected bits per second, as"),
        (
            "network = 'a'\npackets = 0",
            "0: expected a number from 1 to",
        ),
        ("network = 'a'\nname = '-'", "\"-\": expected at most 32"),
        ("network = 'a'\nfoo = 1", "unknown key \"foo\""),
    ] {
        let error = with_nics(&[nic]).unwrap_err();
        assert!(error.contains(what), "{error}");
        assert!(
            !error.contains('\n') && error.starts_with("demo.toml:"),
            "{error}"
        );
    }
    let named = "network = 'a'\nname = 'x'";
    let error = with_nics(&[named, named]).unwrap_err();
    assert!(error.contains("two devices have the name \"x\""), "{error}");
    let error = with_disks("[[disk]]\npath = '/a'\nname = 'x'\n[[nic]]\nnetwork = 'a'\nname = 'x'");
    let error = error.unwrap_err();
    assert!(error.contains("two devices have the name \"x\""), "{error}");
    let same = "network = 'a'\nmac = '52:54:00:00:00:09'";
    let error = with_nics(&[same, same]).unwrap_err();
    assert!(error.contains("two NICs have the MAC address"), "{error}");
    let many = |count| with_nics(&vec!["network = 'a'"; count]);
    many(30).unwrap();
    let error = many(31).unwrap_err();
    assert!(error.contains("31: a VM has at most 30 NICs"), "{error}");
    let both = "[[nic]]\nnetwork = 'a'\n".repeat(30);
    let error = with_disks(&format!("[[disk]]\npath = '/a'\n{both}")).unwrap_err();
    assert!(
        error.contains("1 disks and 30 NICs: a VM has at most 30 of both"),
        "{error}"
    );
}

#[test]
fn nics_leave_doorbells_to_disks() {
    for (vcpus, nics, pairs) in [(1, 1, 1), (8, 1, 4), (8, 3, 4), (8, 6, 2), (8, 30, 1)] {
        let count = nic::default_pairs(vcpus, nics);
        assert_eq!(count, pairs, "{vcpus} CPUs, {nics} NICs");
    }
}

#[test]
fn links_are_set() {
    let config = with_nics(&["network = 'lan0'", "network = 'lan1'"]).unwrap();
    let (changed, nic) = config.with_setting("nic.1.link=down").unwrap();
    assert_eq!((&*nic.name, nic.link), ("lan1", LinkState::Down));
    assert_eq!(changed.nics[1], nic);
    assert_eq!(changed.with_setting("nic.lan1.link=up").unwrap().0, config);
    for (setting, what) in [
        ("nic.2.link=up", "demo has no such NIC"),
        ("nic.lan9.link=up", "demo has no such NIC"),
        ("nic.0.link", "expected nic.NIC.link=up"),
        ("nic.0.link=on", "expected nic.NIC.link=up"),
        ("nic.0.mac=x", "expected nic.NIC.link=up"),
        ("memory=1G", "expected nic.NIC.link=up"),
    ] {
        let error = config.with_setting(setting).unwrap_err().to_string();
        assert_eq!(error.split_once(": ").unwrap().0, setting);
        assert!(error.contains(what), "{error}");
    }
}
