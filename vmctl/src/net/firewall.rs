//! A network's table of nf_tables, which keeps its bridge apart from other interfaces or lets its
//! guests out: `linux/netfilter/nf_tables.h` in bytes. Numbers of attributes are its NFTA_TABLE_*,
//! NFTA_CHAIN_*, NFTA_RULE_* and, by expression, NFTA_META_* and so on. A table goes with all that is
//! in it.

use std::io;
use std::net::Ipv4Addr;

use rustix::io::Errno;

use super::address::Cidr;
use super::netlink::{HEADER, Socket};

const SUBSYSTEM: u16 = libc::NFNL_SUBSYS_NFTABLES as u16;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;

const REQUEST: u16 = 0x001;
const ACK: u16 = 0x004;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;

// Messages: NFT_MSG_*.
const NEW_TABLE: u16 = 0;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const NEW_RULE: u16 = 6;

/// NFPROTO_INET: IPv4 and IPv6.
const INET: u8 = 1;
const NFPROTO_IPV4: u8 = 2;
/// NF_INET_FORWARD.
const FORWARD: u32 = 2;
/// NF_INET_POST_ROUTING.
const POSTROUTING: u32 = 4;
/// NF_IP_PRI_NAT_SRC.
const SOURCE_NAT: u32 = 100;

/// NFT_REG_1, the only register used.
const REGISTER: u32 = 1;
const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;
/// Keys of `meta`: NFT_META_*.
const INPUT_NAME: u32 = 6;
const OUTPUT_NAME: u32 = 7;
const PROTOCOL: u32 = 15;
/// NFT_CT_STATE: a set of bits, of which these are established and related.
const STATE: u32 = 0;
const REPLIES: u32 = 2 | 4;

/// Keeps a network apart: nothing is forwarded into it or out of it.
pub(super) fn isolate(network: &str) -> io::Result<()> {
    let mut batch = Batch::new(&table(network));
    batch.replace_table();
    batch.chain("forward", "filter", FORWARD, 0);
    batch.rule(
        "forward",
        &[from_network(network), into_others(network), discard()],
    );
    batch.rule(
        "forward",
        &[from_others(network), into_network(network), discard()],
    );
    batch.commit()
}

/// Lets a network's guests out under root's addresses, and only answers in.
pub(super) fn masquerade(network: &str, addresses: Cidr) -> io::Result<()> {
    let mut batch = Batch::new(&table(network));
    batch.replace_table();
    batch.chain("forward", "filter", FORWARD, 0);
    batch.rule(
        "forward",
        &[
            from_others(network),
            into_network(network),
            is_no_reply(),
            discard(),
        ],
    );
    batch.chain("postrouting", "nat", POSTROUTING, SOURCE_NAT);
    batch.rule(
        "postrouting",
        &[
            is_from(addresses),
            into_others(network),
            expression("masq", &[]),
        ],
    );
    batch.commit()
}

/// Removes a network's table; none is no error.
pub(super) fn remove(network: &str) -> io::Result<()> {
    let mut batch = Batch::new(&table(network));
    batch.delete_table();
    match batch.commit() {
        Err(e) if e.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => Ok(()),
        other => other,
    }
}

fn table(network: &str) -> String {
    format!("microvisor-{network}")
}

/// Messages that the kernel obeys all or none of.
struct Batch {
    table: String,
    bytes: Vec<u8>,
    /// Where the last message begins.
    last: usize,
}

impl Batch {
    fn new(table: &str) -> Self {
        let mut batch = Self {
            table: table.to_owned(),
            bytes: Vec::new(),
            last: 0,
        };
        batch.bracket(BATCH_BEGIN);
        batch
    }

    /// Makes the table, without what a table of this name holds.
    fn replace_table(&mut self) {
        // A table that is there is no error; one that is not is one to delete.
        self.table_message(NEW_TABLE, CREATE);
        self.table_message(DELETE_TABLE, 0);
        self.table_message(NEW_TABLE, CREATE);
    }

    fn delete_table(&mut self) {
        self.table_message(DELETE_TABLE, 0);
    }

    fn table_message(&mut self, kind: u16, flags: u16) {
        let name = text(1, &self.table);
        self.message(kind, flags, &[name]);
    }

    fn chain(&mut self, name: &str, kind: &str, hook: u32, priority: u32) {
        let hook = nested(4, &[number(1, hook), number(2, priority)]);
        let parts = [text(1, &self.table), text(3, name), hook, text(7, kind)];
        self.message(NEW_CHAIN, CREATE, &parts);
    }

    fn rule(&mut self, chain: &str, expressions: &[Vec<Vec<u8>>]) {
        let expressions: Vec<_> = expressions.iter().flatten().cloned().collect();
        let expressions = nested(4, &expressions);
        let parts = [text(1, &self.table), text(2, chain), expressions];
        self.message(NEW_RULE, CREATE | APPEND, &parts);
    }

    fn message(&mut self, kind: u16, flags: u16, parts: &[Vec<u8>]) {
        self.put(SUBSYSTEM << 8 | kind, flags, INET, 0, &parts.concat());
    }

    /// The begin or the end of a batch.
    fn bracket(&mut self, kind: u16) {
        self.put(kind, 0, 0, SUBSYSTEM, &[]);
    }

    /// A message: netlink's header, then nfnetlink's (family, version, resource).
    fn put(&mut self, kind: u16, flags: u16, family: u8, resource: u16, parts: &[u8]) {
        self.last = self.bytes.len();
        let length = HEADER + 4 + parts.len();
        self.bytes.extend((length as u32).to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend((REQUEST | flags).to_ne_bytes());
        // Sequence and sender.
        self.bytes.extend([0; 8]);
        self.bytes.extend([family, 0]);
        self.bytes.extend(resource.to_be_bytes());
        self.bytes.extend(parts);
    }

    /// Sends it. The last message is acknowledged, if no error of another one comes first.
    fn commit(mut self) -> io::Result<()> {
        if let Some(flags) = self.bytes.get_mut(self.last + 6..self.last + 8) {
            let with_ack = u16::from_ne_bytes([flags[0], flags[1]]) | ACK;
            flags.copy_from_slice(&with_ack.to_ne_bytes());
        }
        self.bracket(BATCH_END);
        Socket::netfilter()?.exchange(&self.bytes, |_| Ok(()))
    }
}

fn from_network(network: &str) -> Vec<Vec<u8>> {
    name_is(INPUT_NAME, EQUAL, network)
}

fn from_others(network: &str) -> Vec<Vec<u8>> {
    name_is(INPUT_NAME, NOT_EQUAL, network)
}

fn into_network(network: &str) -> Vec<Vec<u8>> {
    name_is(OUTPUT_NAME, EQUAL, network)
}

fn into_others(network: &str) -> Vec<Vec<u8>> {
    name_is(OUTPUT_NAME, NOT_EQUAL, network)
}

/// Compares the name of an interface, which has 16 bytes in a register.
fn name_is(key: u32, operator: u32, name: &str) -> Vec<Vec<u8>> {
    let mut padded = name.as_bytes().to_vec();
    padded.resize(libc::IFNAMSIZ, 0);
    [meta(key), compare(operator, &padded)].concat()
}

/// IPv4 with a source among these addresses.
fn is_from(addresses: Cidr) -> Vec<Vec<u8>> {
    let load = [
        number(1, REGISTER),
        // NFT_PAYLOAD_NETWORK_HEADER, whose bytes 12 to 15 are the source.
        number(2, 1),
        number(3, 12),
        number(4, 4),
    ];
    let ip = |address: Ipv4Addr| address.octets();
    [
        meta(PROTOCOL),
        compare(EQUAL, &[NFPROTO_IPV4]),
        expression("payload", &load),
        mask(&ip(addresses.mask())),
        compare(EQUAL, &ip(addresses.network())),
    ]
    .concat()
}

/// Belongs to no connection that is there.
fn is_no_reply() -> Vec<Vec<u8>> {
    [
        expression("ct", &[number(1, REGISTER), number(2, STATE)]),
        mask(&REPLIES.to_ne_bytes()),
        compare(EQUAL, &[0; 4]),
    ]
    .concat()
}

fn meta(key: u32) -> Vec<Vec<u8>> {
    expression("meta", &[number(1, REGISTER), number(2, key)])
}

fn compare(operator: u32, value: &[u8]) -> Vec<Vec<u8>> {
    let value = nested(3, &[attribute(1, value)]);
    expression("cmp", &[number(1, REGISTER), number(2, operator), value])
}

fn mask(bits: &[u8; 4]) -> Vec<Vec<u8>> {
    let parts = [
        number(1, REGISTER),
        number(2, REGISTER),
        number(3, 4),
        nested(4, &[attribute(1, bits)]),
        nested(5, &[attribute(1, &[0; 4])]),
    ];
    expression("bitwise", &parts)
}

/// Ends the packet: a verdict (register 0) of NF_DROP.
fn discard() -> Vec<Vec<u8>> {
    let verdict = nested(2, &[nested(2, &[number(1, 0)])]);
    expression("immediate", &[number(1, 0), verdict])
}

/// An element of a rule's list of expressions.
fn expression(name: &str, parts: &[Vec<u8>]) -> Vec<Vec<u8>> {
    vec![nested(1, &[text(1, name), nested(2, parts)])]
}

fn number(kind: u16, value: u32) -> Vec<u8> {
    attribute(kind, &value.to_be_bytes())
}

fn text(kind: u16, value: &str) -> Vec<u8> {
    attribute(kind, &[value.as_bytes(), b"\0"].concat())
}

fn nested(kind: u16, parts: &[Vec<u8>]) -> Vec<u8> {
    attribute(kind | libc::NLA_F_NESTED as u16, &parts.concat())
}

/// An attribute: its length, its kind, its value, padded to a multiple of four.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = 4 + value.len();
    let mut bytes = (length as u16).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(length.next_multiple_of(4), 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_nested() {
        assert_eq!(text(1, "ab"), [7, 0, 1, 0, b'a', b'b', 0, 0]);
        let outer = nested(2, &[number(1, 3)]);
        assert_eq!(outer, [12, 0, 2, 0x80, 8, 0, 1, 0, 0, 0, 0, 3]);
    }

    #[test]
    fn a_batch_has_a_begin_and_names_its_table() {
        let mut batch = Batch::new("microvisor-lan0");
        batch.delete_table();
        assert_eq!(batch.bytes[4..6], BATCH_BEGIN.to_ne_bytes());
        assert_eq!(batch.bytes[18..20], [0, 10]);
        let message = &batch.bytes[batch.last..];
        assert_eq!(message[4..6], [2, 10]);
        assert!(message.windows(16).any(|w| w == b"microvisor-lan0\0"));
    }
}
