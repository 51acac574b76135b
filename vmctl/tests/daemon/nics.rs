//! Network cards: their cables in the configuration, without a network that they could be plugged into.

use crate::machine::Host;

const NICS: &str = "[[nic]]\nnetwork = 'lan0'\n[[nic]]\nbridge = 'br0'\nname = 'wan'";

/// The links of a VM's cards in the definition that the next daemon reads.
fn links(machine: &Host, name: &str) -> Vec<String> {
    let text = std::fs::read_to_string(machine.path(&format!("state/{name}/config.toml"))).unwrap();
    let config: toml::Table = toml::from_str(&text).unwrap();
    let nics = config["nic"].as_array().unwrap();
    let link = |nic: &toml::Value| nic["link"].as_str().unwrap().to_owned();
    nics.iter().map(link).collect()
}

#[test]
fn cables_are_pulled_and_plugged_in() {
    let mut machine = Host::on();
    machine
        .vmctl(&["create", &machine.config("off", NICS)])
        .ok();
    let set = machine.vmctl(&["set", "off", "nic.1.link=down"]).ok();
    assert_eq!(set, "off: nic.1.link=down set\n");
    assert_eq!(links(&machine, "off"), ["up", "down"]);
    machine.running("demo", NICS);
    machine.vmctl(&["set", "demo", "nic.wan.link=down"]).ok();
    assert_eq!(links(&machine, "demo"), ["up", "down"]);
    // The worker was told.
    let told = || machine.vmctl(&["logs", "demo"]).ok();
    crate::machine::eventually("the worker hears", || told().contains("wan false"));
    for (code, args, what) in [
        (3, ["demo", "nic.2.link=up"], "demo has no such NIC"),
        (3, ["demo", "nic.0.link=on"], "expected nic.NIC.link=up"),
        (4, ["nobody", "nic.0.link=up"], "no such VM"),
    ] {
        let message = machine.vmctl(&[&["set"][..], &args].concat()).fails(code);
        assert!(message.contains(what), "{message}");
    }
    machine.kill_daemon();
    assert_eq!(links(&machine, "demo"), ["up", "down"]);
}

#[test]
fn a_card_without_a_network_is_not_attached() {
    let machine = Host::on();
    machine.running("demo", NICS);
    let attach = |code, settings: &[&str], what: &str| {
        let args = [&["attach", "demo", "nic"][..], settings].concat();
        let message = machine.vmctl(&args).fails(code);
        assert!(message.contains(what), "{message}");
    };
    attach(4, &["network=nowhere9"], "demo: nowhere9: no such network");
    attach(4, &["bridge=nowhere9"], "VM 0 has no such interface");
    attach(5, &["bridge=lo"], "lo: not a bridge");
    attach(5, &["tap=lo"], "lo: not a tap device");
    attach(3, &["vlan=10"], "one of the keys \"network\"");
    attach(3, &["network=x", "mtu=67"], "MTU 67: expected");
    attach(3, &["network=x", "name=wan"], "the name \"wan\"");
    assert_eq!(links(&machine, "demo"), ["up", "up"]);
    let detached = machine.vmctl(&["detach", "demo", "lan0"]).ok();
    assert_eq!(detached, "demo: lan0 detached\n");
    assert_eq!(links(&machine, "demo").len(), 1);
}
