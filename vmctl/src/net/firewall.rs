//! Packet filters, made by the program `nft` (`nft(8)`, and `libnftables-json(5)` for what it reads).
//!
//! Each network has a table `microvisor-NETWORK` (inet), which keeps its bridge apart from other interfaces or
//! lets its guests out. Each port has two chains in the table `microvisor` (netdev): what its guest may send,
//! and what the guest is spared. The kernel unhooks them when the interface goes, and the next port of the name
//! replaces them.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Output;

use serde::Serialize;
use serde_json::{Value, json};

use super::address::{Cidr, Mac};
use super::filters::{self, Owner};
use super::overlay::{self, Overlay};
use super::program;

/// The table of all ports.
const PORTS: &str = "microvisor";
/// The chain of a network's table for packets of other machines.
const PEERS: &str = "input";
/// Frames to everybody and to groups that a guest may send in a second.
const BROADCASTS: u32 = 1000;

/// The packets that a guest may send.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// The guest may use any address, and be a DHCP server or a router.
    pub spoof: bool,
    /// The addresses that it may use; any if there is none.
    pub addresses: Vec<IpAddr>,
    /// Bits per second, in each direction.
    pub rate: Option<u64>,
    /// Frames per second.
    pub packets: Option<u32>,
}

/// Keeps a network apart: nothing is forwarded into it or out of it.
pub(super) fn isolate(network: &str, overlay: Option<&Overlay>) -> io::Result<()> {
    let mut batch = Batch::default();
    let table = batch.network(network, overlay);
    batch.rule(
        &table,
        "forward",
        &[input(network), not_output(network), drop()],
    );
    batch.rule(
        &table,
        "forward",
        &[not_input(network), output(network), drop()],
    );
    batch.commit(Owner::Network(network))
}

/// Lets a network's guests out under root's addresses, and only answers in.
pub(super) fn masquerade(
    network: &str,
    addresses: Cidr,
    overlay: Option<&Overlay>,
) -> io::Result<()> {
    let mut batch = Batch::default();
    let table = batch.network(network, overlay);
    let state = json!({"ct": {"key": "state"}});
    let answers = json!({"set": ["established", "related"]});
    let is_no_answer = compare("!=", state, answers);
    let rule = [not_input(network), output(network), is_no_answer, drop()];
    batch.rule(&table, "forward", &rule);
    batch.add(json!({"chain": {
        "family": "inet", "table": table.name, "name": "postrouting",
        "type": "nat", "hook": "postrouting", "prio": 100, "policy": "accept",
    }}));
    let prefix = json!({"prefix": {
        "addr": addresses.network(), "len": addresses.prefix(),
    }});
    let is_from = compare("==", payload("ip", "saddr"), prefix);
    let masquerade = json!({"masquerade": null});
    batch.rule(
        &table,
        "postrouting",
        &[is_from, not_output(network), masquerade],
    );
    batch.commit(Owner::Network(network))
}

/// Has a network take packets from these peers, and no longer from others.
pub(super) fn set_peers(network: &str, overlay: &Overlay) -> io::Result<()> {
    let mut batch = Batch::default();
    let table = Table::of_network(network);
    let chain = json!({"family": table.family, "table": table.name, "name": PEERS});
    batch.0.push(json!({"flush": {"chain": chain}}));
    batch.peers(&table, overlay);
    batch.commit(Owner::Peers(network))
}

/// Removes a network's table, but not its file; none is no error.
pub(super) fn clear(network: &str) -> io::Result<()> {
    let mut batch = Batch::default();
    batch.clear(&Table::of_network(network));
    make(&batch.text())
}

/// Makes what a text says, as [`Batch::text`] has it.
pub(super) fn make(text: &str) -> io::Result<()> {
    nft(&["-f", "-"], text).map(|_| ())
}

/// The filters that there are.
pub(super) struct Made(Value);

/// Returns the filters that there are.
pub(super) fn made() -> io::Result<Made> {
    list(&["chains"]).map(Made)
}

impl Made {
    /// Whether a network has its table.
    pub(super) fn has_network(&self, network: &str) -> bool {
        self.has(&Table::of_network(network), "forward")
    }

    /// Whether a port has its chains.
    pub(super) fn has_port(&self, port: &str) -> bool {
        self.has(&Table::of_ports(), &format!("{port}-from"))
    }

    fn has(&self, table: &Table, name: &str) -> bool {
        objects(&self.0).any(|object| {
            let chain = &object["chain"];
            let is_in_table = chain["family"] == table.family && chain["table"] == *table.name;
            is_in_table && chain["name"] == name
        })
    }
}

/// Has a port obey rules from now on.
pub(super) fn guard(port: &str, mac: Mac, rules: &Rules) -> io::Result<()> {
    guard_by(port, &sent(mac, rules), &received(mac, rules))
}

/// Has nobody behind a port to other machines be leased an address here, and no guest there. What is in a VLAN passes:
/// root leases nothing there.
pub(super) fn keep_leases_apart(port: &str) -> io::Result<()> {
    let is_tagged = compare(">=", payload("vlan", "id"), json!(1));
    let leases = json!({"set": [67, 68, 546, 547]});
    let adverts = json!({"set": ["nd-router-advert", "nd-router-solicit"]});
    let rules = [
        vec![is_tagged, json!({"accept": null})],
        denied(vec![compare("==", payload("udp", "dport"), leases)]),
        denied(vec![compare("==", payload("icmpv6", "type"), adverts)]),
    ];
    guard_by(port, &rules, &rules)
}

/// Has frames from a port, and frames to it, obey rules from now on.
fn guard_by(port: &str, sent: &[Vec<Value>], received: &[Vec<Value>]) -> io::Result<()> {
    let mut batch = Batch::default();
    let table = Table::of_ports();
    batch.add(table.object());
    for (direction, hook, rules) in [("from", "ingress", sent), ("to", "egress", received)] {
        let chain = format!("{port}-{direction}");
        let name = json!({"chain": {"family": table.family, "table": table.name, "name": chain}});
        // A chain that is there may have lost its interface, and one that is not is none to delete.
        batch.add(name.clone());
        batch.0.push(json!({"delete": name}));
        batch.add(json!({"chain": {
            "family": table.family, "table": table.name, "name": chain,
            "type": "filter", "hook": hook, "dev": port, "prio": 0, "policy": "accept",
        }}));
        for rule in rules {
            batch.rule(&table, &chain, rule);
        }
    }
    batch.commit(Owner::Port(port))
}

/// The rules that drop an overlay's packets if they are not its peers'.
fn strangers(overlay: &Overlay) -> Vec<Vec<Value>> {
    let is_vxlan = compare("==", payload("udp", "dport"), json!(overlay::PORT));
    // The identifier lies behind 8 bytes of UDP, and 4 of VXLAN.
    let vni = json!({"payload": {"base": "th", "offset": 96, "len": 24}});
    let is_ours = compare("==", vni, json!(overlay.vni()));
    let (protocol, other) = match overlay.is_ipv4() {
        true => ("ip", "ipv6"),
        false => ("ip6", "ipv4"),
    };
    let peers = json!({"set": overlay.peers()});
    let is_stranger = [
        compare("!=", payload(protocol, "saddr"), peers),
        compare("==", meta("nfproto"), json!(other)),
    ];
    let is_outside = overlay.interface().map(|name| not_input(&name));
    let is_stranger = is_stranger.into_iter().chain(is_outside);
    let rule = |it| denied(vec![is_vxlan.clone(), is_ours.clone(), it]);
    is_stranger.map(rule).collect()
}

/// The limits of a port, and what its rules have dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Guard {
    /// Bits per second, in each direction.
    pub rate: Option<u64>,
    /// Frames per second, in each direction.
    pub packets: Option<u64>,
    /// Frames of the guest that were dropped.
    pub dropped_sent: u64,
    /// Frames to the guest that were dropped.
    pub dropped_received: u64,
}

/// The chains of others that drop whatever is forwarded and that they do not know, as "table ip filter, chain FORWARD".
/// In nf_tables a packet passes only if all chains let it.
pub(super) fn strict_chains() -> io::Result<Vec<String>> {
    let listed = list(&["chains"])?;
    let strict = objects(&listed).filter_map(|object| {
        let chain = &object["chain"];
        let table = chain["table"].as_str()?;
        let is_strict = chain["hook"] == "forward" && chain["policy"] == "drop";
        // Of firewalld's chain the last rule refuses the rest.
        let is_firewalld = table == "firewalld" && chain["hook"] == "forward";
        if !(is_strict || is_firewalld) || chain["family"] == "ip6" {
            return None;
        }
        let (family, name) = (chain["family"].as_str()?, chain["name"].as_str()?);
        Some(format!("table {family} {table}, chain {name}"))
    });
    Ok(strict.collect())
}

/// Rules of all ports, and their counts of dropped packets, by port.
pub(super) fn guards() -> io::Result<HashMap<String, Guard>> {
    // Not by the table's name: without a port that has rules there is none.
    list(&["ruleset", "netdev"]).map(|listed| guards_of(&listed))
}

fn guards_of(listed: &Value) -> HashMap<String, Guard> {
    let mut guards: HashMap<String, Guard> = HashMap::new();
    for object in objects(listed) {
        let rule = &object["rule"];
        if rule["table"] != PORTS {
            continue;
        }
        let chain = rule["chain"].as_str().unwrap_or_default();
        let Some((port, direction)) = chain.rsplit_once('-') else {
            continue;
        };
        let guard = guards.entry(port.to_owned()).or_default();
        let expressions = rule["expr"].as_array().into_iter().flatten();
        // A rule for everything begins with its limit.
        let is_limit = rule["expr"][0].get("limit").is_some();
        for expression in expressions {
            let dropped = expression["counter"]["packets"].as_u64().unwrap_or(0);
            match direction {
                "from" => guard.dropped_sent += dropped,
                _ => guard.dropped_received += dropped,
            }
            let limit = &expression["limit"];
            if let Some(rate) = limit["rate"].as_u64().filter(|_| is_limit) {
                match limit["rate_unit"].as_str() {
                    Some(unit) => guard.rate = Some(rate * bits(unit)),
                    None => guard.packets = Some(rate),
                }
            }
        }
    }
    guards
}

/// The bits of a unit of `nft`'s.
fn bits(unit: &str) -> u64 {
    match unit {
        "mbytes" => 8 << 20,
        "kbytes" => 8 << 10,
        _ => 8,
    }
}

/// The rules for frames of a guest.
fn sent(mac: Mac, rules: &Rules) -> Vec<Vec<Value>> {
    let mut all = floods(rules);
    let groups = json!({"set": ["broadcast", "multicast"]});
    let is_to_many = compare("==", meta("pkttype"), groups);
    all.push(denied(vec![is_to_many, over(json!(BROADCASTS), None)]));
    if rules.spoof {
        return all;
    }
    let text = mac.to_string();
    let mut deny = |conditions| all.push(denied(conditions));
    deny(vec![compare("!=", payload("ether", "saddr"), json!(text))]);
    deny(vec![compare(
        "!=",
        payload("arp", "saddr ether"),
        json!(text),
    )]);
    // A DHCP server, for IPv6 too, and a router.
    let servers = json!({"set": [67, 547]});
    deny(vec![compare("==", payload("udp", "sport"), servers)]);
    let advert = json!("nd-router-advert");
    deny(vec![compare("==", payload("icmpv6", "type"), advert)]);
    if rules.addresses.is_empty() {
        return all;
    }
    let mut ours4 = vec![Ipv4Addr::UNSPECIFIED];
    let mut ours6 = vec![Ipv6Addr::UNSPECIFIED, mac.link_local()];
    for address in &rules.addresses {
        match address {
            IpAddr::V4(ip) => ours4.push(*ip),
            IpAddr::V6(ip) => ours6.push(*ip),
        }
    }
    // Bytes of a packet are compared with numbers.
    let numbers = ours6.iter().map(|ip| format!("{:#x}", ip.to_bits()));
    let numbers = json!({"set": numbers.collect::<Vec<_>>()});
    let (ours4, ours6) = (json!({"set": ours4}), json!({"set": ours6}));
    deny(vec![compare(
        "!=",
        payload("arp", "saddr ip"),
        ours4.clone(),
    )]);
    deny(vec![compare("!=", payload("ip", "saddr"), ours4)]);
    deny(vec![compare("!=", payload("ip6", "saddr"), ours6)]);
    // The target of a neighbour advertisement lies behind 8 bytes of its header.
    let advert = json!("nd-neighbor-advert");
    let target = json!({"payload": {"base": "th", "offset": 64, "len": 128}});
    let is_advert = compare("==", payload("icmpv6", "type"), advert);
    deny(vec![is_advert, compare("!=", target, numbers)]);
    // Other protocols, among them a second tag, could carry any address.
    let known = json!({"set": ["arp", "ip", "ip6"]});
    deny(vec![compare("!=", meta("protocol"), known)]);
    all
}

/// The rules for frames to a guest: requests to DHCP servers, and their answers to others.
fn received(mac: Mac, rules: &Rules) -> Vec<Vec<Value>> {
    let mut all = floods(rules);
    if rules.spoof {
        return all;
    }
    let servers = json!({"set": [67, 547]});
    all.push(denied(vec![compare(
        "==",
        payload("udp", "dport"),
        servers,
    )]));
    // The client's address lies behind 8 bytes of UDP and 28 of DHCP.
    let client = json!({"payload": {"base": "th", "offset": 288, "len": 48}});
    let number = mac
        .octets()
        .into_iter()
        .fold(0, |n, byte| n << 8 | u64::from(byte));
    let is_answer = compare("==", payload("udp", "dport"), json!(68));
    all.push(denied(vec![
        is_answer,
        compare("!=", client, json!(number)),
    ]));
    all
}

fn floods(rules: &Rules) -> Vec<Vec<Value>> {
    let rate = rules
        .rate
        .map(|bits| over(json!(bits.div_ceil(8)), Some("bytes")));
    let packets = rules.packets.map(|count| over(json!(count), None));
    let limits = rate.into_iter().chain(packets);
    limits.map(|limit| denied(vec![limit])).collect()
}

struct Table {
    family: &'static str,
    name: String,
}

impl Table {
    fn of_network(network: &str) -> Self {
        Self {
            family: "inet",
            name: format!("microvisor-{network}"),
        }
    }

    fn of_ports() -> Self {
        Self {
            family: "netdev",
            name: PORTS.to_owned(),
        }
    }

    fn object(&self) -> Value {
        json!({"table": {"family": self.family, "name": self.name}})
    }
}

/// Commands that the kernel obeys all or none of.
#[derive(Default)]
struct Batch(Vec<Value>);

impl Batch {
    fn add(&mut self, object: Value) {
        self.0.push(json!({"add": object}));
    }

    /// Removes a table with all that is in it, if it is there.
    fn clear(&mut self, table: &Table) {
        let table = table.object();
        // A table that is there is no error to add, and one that is not is one to delete.
        self.add(table.clone());
        self.0.push(json!({"delete": table}));
    }

    /// Makes a network's table with an empty chain `forward`. Only the peers of an overlay send into it.
    fn network(&mut self, network: &str, overlay: Option<&Overlay>) -> Table {
        let table = Table::of_network(network);
        self.clear(&table);
        self.add(table.object());
        self.add(json!({"chain": {
            "family": table.family, "table": table.name, "name": "forward",
            "type": "filter", "hook": "forward", "prio": 0, "policy": "accept",
        }}));
        if let Some(overlay) = overlay {
            self.add(json!({"chain": {
                "family": table.family, "table": table.name, "name": PEERS,
                "type": "filter", "hook": "input", "prio": 0, "policy": "accept",
            }}));
            self.peers(&table, overlay);
        }
        table
    }

    /// Has only the peers of an overlay send into the network of a table.
    fn peers(&mut self, table: &Table, overlay: &Overlay) {
        for rule in strangers(overlay) {
            self.rule(table, PEERS, &rule);
        }
    }

    fn rule(&mut self, table: &Table, chain: &str, expressions: &[Value]) {
        self.add(json!({"rule": {
            "family": table.family, "table": table.name, "chain": chain, "expr": expressions,
        }}));
    }

    fn text(&self) -> String {
        json!({"nftables": self.0}).to_string()
    }

    /// Makes the filter of an owner.
    fn commit(self, owner: Owner<'_>) -> io::Result<()> {
        filters::make(owner, &self.text())
    }
}

/// Runs `nft`, and returns what it prints.
fn nft(arguments: &[&str], input: &str) -> io::Result<Vec<u8>> {
    let arguments: Vec<_> = [&["-j"], arguments].concat();
    let output = program::run("nft", "nftables", &arguments, input)?;
    match output.status.success() {
        true => Ok(output.stdout),
        false => Err(refusal(&output)),
    }
}

/// Has `nft` list objects.
fn list(arguments: &[&str]) -> io::Result<Value> {
    let output = nft(&[&["list"], arguments].concat(), "")?;
    serde_json::from_slice(&output).map_err(io::Error::other)
}

/// The objects of a list.
fn objects(listed: &Value) -> impl Iterator<Item = &Value> {
    listed["nftables"].as_array().into_iter().flatten()
}

/// Returns the message of `nft` as an error.
fn refusal(output: &Output) -> io::Error {
    let missing = [
        "Operation not supported",
        "No such file",
        "Protocol not supported",
    ];
    let line = program::first_line(output).unwrap_or_else(|| "no reason".to_owned());
    let is_kernels = line.contains("Could not process rule");
    match is_kernels && missing.iter().any(|what| line.contains(what)) {
        true => io::ErrorKind::Unsupported.into(),
        false => io::Error::other(format!("nft: {line}")),
    }
}

fn compare(op: &str, left: Value, right: Value) -> Value {
    json!({"match": {"op": op, "left": left, "right": right}})
}

fn meta(key: &str) -> Value {
    json!({"meta": {"key": key}})
}

fn payload(protocol: &str, field: &str) -> Value {
    json!({"payload": {"protocol": protocol, "field": field}})
}

fn input(network: &str) -> Value {
    compare("==", meta("iifname"), json!(network))
}

fn not_input(network: &str) -> Value {
    compare("!=", meta("iifname"), json!(network))
}

fn output(network: &str) -> Value {
    compare("==", meta("oifname"), json!(network))
}

fn not_output(network: &str) -> Value {
    compare("!=", meta("oifname"), json!(network))
}

/// Holds for what is more than a rate per second.
fn over(rate: Value, unit: Option<&str>) -> Value {
    let mut limit = json!({"rate": rate, "per": "second", "inv": true, "burst": rate});
    if let Some(unit) = unit {
        limit["rate_unit"] = json!(unit);
        limit["burst_unit"] = json!(unit);
    }
    json!({"limit": limit})
}

/// Completes the rule of a port: a frame that meets the conditions is counted and dropped.
fn denied(conditions: Vec<Value>) -> Vec<Value> {
    let actions = [json!({"counter": null}), drop()];
    conditions.into_iter().chain(actions).collect()
}

fn drop() -> Value {
    json!({"drop": null})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_and_limits_are_found() {
        let rules = Rules {
            rate: Some(100_000_000),
            packets: Some(50_000),
            ..Rules::default()
        };
        let mac = "52:54:00:00:00:01".parse().unwrap();
        let rule = |chain: &str, expr: Vec<Value>| json!({"rule": {"table": PORTS, "chain": chain, "expr": expr}});
        let counted = |expr: Vec<Value>| {
            let count = |it: Value| match it.get("counter") {
                Some(_) => json!({"counter": {"packets": 3, "bytes": 180}}),
                None => it,
            };
            expr.into_iter().map(count).collect()
        };
        let sent = sent(mac, &rules);
        let count = sent.len() as u64;
        let sent = sent.into_iter().map(|expr| rule("mv0-from", counted(expr)));
        let received = received(mac, &rules);
        let received = received.into_iter().map(|expr| rule("mv0-to", expr));
        let other = rule("tap-7-to", vec![drop()]);
        let all: Vec<_> = sent.chain(received).chain([other]).collect();
        let guards = guards_of(&json!({"nftables": all}));
        let expected = Guard {
            rate: Some(100_000_000),
            packets: Some(50_000),
            dropped_sent: 3 * count,
            dropped_received: 0,
        };
        assert_eq!(guards["mv0"], expected);
        assert_eq!(guards["tap-7"], Guard::default());
    }
}
