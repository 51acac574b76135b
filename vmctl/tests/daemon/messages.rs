//! Every command's mistakes: each has one line that names the thing, the value as it was typed, and what to do.

use std::fs;

use crate::machine::Host;

/// What is typed, the exit status, and what the line has.
type Case = (&'static str, i32, &'static [&'static str]);

/// `DIR` stands for the machine's directory.
const CASES: &[Case] = &[
    ("exec demo ls", 2, &["'exec'", "vmctl ssh VM COMMAND"]),
    ("edit nobody", 4, &["nobody: no such VM"]),
    ("edit root", 5, &["root is VM 0"]),
    ("rename nobody web", 4, &["nobody: no such VM"]),
    ("rename demo De-mo", 3, &["\"De-mo\" is not a VM name"]),
    ("rename demo demo", 5, &["demo is defined already"]),
    ("version --nope", 2, &["'--nope'"]),
    ("start demo --all", 2, &["--all"]),
    ("top -n 0", 2, &["'0'", "--count"]),
    ("strat demo", 2, &["'strat'", "'start'"]),
    ("--nope", 2, &["'--nope'", "usage: vmctl"]),
    ("run", 2, &["<CONFIG>", "usage: vmctl run"]),
    ("run DIR/none.toml", 3, &["none.toml: no such file"]),
    (
        "run DIR/demo.toml --set vcpus=two",
        3,
        &["--set vcpus=two: expected a number from 1 to 64"],
    ),
    ("create DIR/none.toml", 3, &["none.toml: no such file"]),
    (
        "create DIR/demo.toml",
        5,
        &["demo is defined already", "vmctl delete demo"],
    ),
    (
        "create DIR/demo.toml --name De-mo",
        3,
        &["De-mo", "lower-case letters"],
    ),
    (
        "create DIR/demo.toml --set initrd=",
        3,
        &["--set initrd=: expected the path of a file"],
    ),
    (
        "create DIR/demo.toml --set kernel=",
        3,
        &["--set kernel=: expected the path of a file"],
    ),
    (
        "create DIR/demo.toml --set vcpus=0",
        3,
        &["--set vcpus=0: expected a number from 1 to 64"],
    ),
    (
        "create DIR/demo.toml --set memory=lots",
        3,
        &["--set memory=lots: expected a size such as 256M"],
    ),
    (
        "create DIR/demo.toml --set memory=64",
        3,
        &["--set memory=64: expected a size such as"],
    ),
    (
        "create DIR/demo.toml --set memory=1K",
        3,
        &["--set memory=1K: expected a size from 2M to 512G"],
    ),
    (
        "create DIR/demo.toml --set on_reboot=no",
        3,
        &["--set on_reboot=no: ", "\"restart\" or \"stop\""],
    ),
    (
        "create DIR/demo.toml --set console.log_limit=0M",
        3,
        &["log_limit=0M: expected a size of at least 4K"],
    ),
    (
        "create DIR/demo.toml --set console.device=tty",
        3,
        &["console.device=tty: ", "\"serial\" or \"virtio\""],
    ),
    (
        "create DIR/demo.toml --set vsock.cid=1",
        3,
        &["vsock.cid=1: expected a number from 3"],
    ),
    (
        "create DIR/demo.toml --set vsock.vhost=maybe",
        3,
        &["vsock.vhost=maybe: expected true or false"],
    ),
    (
        "create DIR/demo.toml --set nonsense",
        3,
        &["--set nonsense: write it as key=value"],
    ),
    (
        "create DIR/demo.toml --set vcpu=1",
        3,
        &["--set vcpu=1: unknown key \"vcpu\", expected one of"],
    ),
    (
        "create DIR/demo.toml --set a,b=1",
        3,
        &["--set a,b=1: the key is not a dotted key"],
    ),
    (
        "create DIR/log.toml",
        3,
        &["log.toml:5: console.log_limit = \"0M\": expected a size of at least 4K"],
    ),
    (
        "create DIR/vcpus.toml",
        3,
        &["vcpus.toml:4: vcpus = \"two\": expected a number from 1 to 64"],
    ),
    ("create DIR/text.toml", 3, &["text.toml:1: "]),
    ("start", 2, &["<NAME>", "usage: vmctl start"]),
    ("start nobody", 4, &["nobody: no such VM", "vmctl list"]),
    (
        "start demo --timeout soon",
        2,
        &["'soon'", "--timeout", "expected a time such as 30s"],
    ),
    ("start root", 5, &["root is VM 0", "vmctl list"]),
    ("stop nobody", 4, &["nobody: no such VM"]),
    ("stop root", 5, &["root is VM 0"]),
    ("stop demo --cancel --force", 2, &["--cancel", "--force"]),
    ("reboot nobody", 4, &["nobody: no such VM"]),
    (
        "reboot demo",
        5,
        &["demo is defined (never started)", "vmctl start demo"],
    ),
    ("restart nobody", 4, &["nobody: no such VM"]),
    ("kill nobody", 4, &["nobody: no such VM"]),
    ("kill root", 5, &["root is VM 0"]),
    ("pause nobody", 4, &["nobody: no such VM"]),
    (
        "pause demo",
        5,
        &["demo is defined (never started)", "only a running VM"],
    ),
    (
        "resume demo",
        5,
        &["demo is defined (never started)", "only a paused"],
    ),
    ("delete nobody", 4, &["nobody: no such VM"]),
    ("delete root", 5, &["root is VM 0"]),
    (
        "list --format csv",
        2,
        &["'csv'", "--format", "table, json"],
    ),
    ("info nobody", 4, &["nobody: no such VM"]),
    ("info root", 5, &["root is VM 0", "vmctl list"]),
    ("console nobody", 4, &["nobody: no such VM"]),
    (
        "console demo",
        5,
        &["demo: defined (never started)", "vmctl start demo"],
    ),
    ("ssh nobody", 4, &["nobody"]),
    ("vsock nobody 80", 4, &["nobody: no such VM"]),
    ("vsock demo 80", 5, &["demo: it has no socket device"]),
    ("vsock demo eighty", 2, &["'eighty'", "<PORT>"]),
    ("vsock cid:x 80", 2, &["cid:x: expected a number"]),
    ("logs nobody", 4, &["nobody: no such VM"]),
    ("logs demo -n few", 2, &["'few'", "--lines"]),
    ("attach nobody disk DIR/d.raw", 4, &["nobody: no such VM"]),
    (
        "attach demo disk DIR/none.raw",
        3,
        &["none.raw: no such file"],
    ),
    (
        "attach demo disk DIR/d.raw --set cache=fast",
        3,
        &["--set cache=fast: ", "\"writeback\""],
    ),
    (
        "attach demo nic",
        2,
        &["<KEY=VALUE>", "usage: vmctl attach"],
    ),
    (
        "attach demo nic net=lan0",
        3,
        &["--set net=lan0: unknown key \"net\", expected one of"],
    ),
    (
        "attach demo nic network=lan0 mtu=big",
        3,
        &["--set mtu=big: expected "],
    ),
    (
        "attach demo nic network=lan0 rate=1X",
        3,
        &["--set rate=1X: "],
    ),
    (
        "detach demo nothing",
        4,
        &["no disk or NIC has the name \"nothing\"", "vmctl info demo"],
    ),
    ("set demo vcpus=3", 3, &["vcpus"]),
    (
        "set demo nic.lan0.link=up",
        3,
        &["nic.lan0.link=up", "lan0"],
    ),
    ("wait nobody", 4, &["nobody: no such VM"]),
    (
        "wait demo",
        5,
        &["demo was never started", "vmctl start demo"],
    ),
    (
        "wait demo --for gone",
        2,
        &["'gone'", "--for", "defined, starting, running"],
    ),
    ("disk", 2, &["usage: vmctl disk"]),
    ("disk create DIR/x.qcow2", 2, &["<SIZE>"]),
    (
        "disk create DIR/x.qcow2 big",
        2,
        &["'big'", "<SIZE>", "expected a size such as"],
    ),
    ("disk create DIR/d.raw 1M", 5, &["d.raw"]),
    ("disk info DIR/none.raw", 3, &["none.raw: no such file"]),
    ("disk resize DIR/d.raw 0M", 3, &["d.raw: "]),
    (
        "disk snapshot DIR/none.raw DIR/y.qcow2",
        3,
        &["none.raw: no such file"],
    ),
    (
        "disk clone DIR/none.raw DIR/y.qcow2",
        3,
        &["none.raw: no such file"],
    ),
    ("image build", 2, &["usage: vmctl image build"]),
    ("image build gentoo DIR/x.qcow2", 2, &["'gentoo'"]),
    (
        "image build debian DIR/x.qcow2 --size tiny",
        2,
        &["'tiny'", "--size", "expected a size"],
    ),
    (
        "top --interval 1ms",
        2,
        &["'1ms'", "--interval", "at least 100ms"],
    ),
    ("top --device DIR/none", 7, &["icrovisor"]),
    ("hv-log --device DIR/none", 7, &["icrovisor"]),
    ("verify --device DIR/none", 7, &["icrovisor"]),
    (
        "net create all",
        2,
        &["\"all\"", "the kernel uses this name", "choose another"],
    ),
    ("net create Lan", 2, &["\"Lan\"", "lower-case letters"]),
    (
        "net create lan0 --address 10.77.0.0/24",
        2,
        &["10.77.0.0/24"],
    ),
    (
        "net create lan0 --address ten",
        2,
        &["\"ten\" is not an IPv4 address", "10.77.0.1/24"],
    ),
    ("net create lan0 --mtu 9", 2, &["'9'", "--mtu"]),
    (
        "net delete nothing",
        4,
        &["nothing: no such network", "vmctl net list"],
    ),
    (
        "net set nothing --peer 10.0.0.1",
        4,
        &["nothing: no such network"],
    ),
    ("net set lan0", 2, &["--peer"]),
    ("events --nope", 2, &["'--nope'"]),
    ("daemon --first-uid many", 2, &["'many'", "--first-uid"]),
    ("daemon --log loud", 2, &["'loud'", "--log", "error, warn"]),
    (
        "daemon --log disk=info",
        2,
        &["'disk=info'", "--log", "\"disk\" is not a module"],
    ),
    (
        "daemon --state-dir DIR/kernel",
        1,
        &["another daemon runs there"],
    ),
    ("doctor --nope", 2, &["'--nope'"]),
];

#[test]
fn every_mistake_has_one_line_that_names_it() {
    let machine = Host::on();
    let dir = machine.path("");
    let dir = dir.to_str().unwrap().trim_end_matches('/');
    fs::write(machine.path("d.raw"), [0; 512]).unwrap();
    let base = "name = 'x'\nmemory = '16M'\nkernel = 'kernel'\n";
    for (name, text) in [
        ("log.toml", format!("{base}[console]\nlog_limit = \"0M\"\n")),
        ("vcpus.toml", format!("{base}vcpus = \"two\"\n")),
        ("text.toml", "not a configuration\n".to_owned()),
    ] {
        fs::write(machine.path(name), text).unwrap();
    }
    machine.vmctl(&["create", &machine.config("demo", "")]).ok();
    let mut wrong = Vec::new();
    for (line, code, words) in CASES {
        let args: Vec<_> = line.split(' ').map(|arg| arg.replace("DIR", dir)).collect();
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        let ran = machine.vmctl(&args);
        let named = |word: &&str| ran.stderr.contains(&word.replace("DIR", dir));
        let is_good = ran.code == *code
            && ran.stderr.lines().count() == 1
            && ran.stderr.starts_with("vmctl: ")
            && ran.stdout.is_empty()
            && words.iter().all(named);
        if !is_good {
            wrong.push(format!("vmctl {line}\n  {}: {}", ran.code, ran.stderr));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // Nothing was made by any of them.
    assert_eq!(machine.vmctl(&["list"]).ok().lines().count(), 3);
}

#[test]
fn every_command_has_its_mistakes_here() {
    let machine = Host::off();
    let help = machine.vmctl(&["--help"]).ok();
    let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let commands = lines
        .take_while(|line| line.starts_with("  "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|command| *command != "help");
    let mut count = 0;
    for command in commands {
        count += 1;
        let is_own = |case: &&Case| case.0.split(' ').next() == Some(command);
        assert!(CASES.iter().any(|case| is_own(&case)), "{command}");
    }
    assert!(count > 20, "{help}");
}

#[test]
fn what_is_done_is_not_hidden_by_output_that_can_not_be_written() {
    let machine = Host::on();
    let config = machine.config("demo", "");
    let full = || fs::File::options().write(true).open("/dev/full").unwrap();
    let ran = machine.vmctl_to(&["create", &config], full());
    let line = "vmctl: demo: defined (never started); but standard output can't be written: ";
    assert!(
        ran.code == 1 && ran.stderr.starts_with(line),
        "{}",
        ran.stderr
    );
    let ran = machine.vmctl_to(&["list"], full());
    let line = "vmctl: standard output can't be written: ";
    assert!(
        ran.code == 1 && ran.stderr.starts_with(line),
        "{}",
        ran.stderr
    );
    // A reader that does not want to know is no failure of the deed.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let ran = machine.vmctl_to(&["delete", "demo"], writer);
    assert_eq!((ran.code, &*ran.stderr), (0, ""));
}
