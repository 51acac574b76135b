//! Errors of addresses.

use std::net::{IpAddr, Ipv4Addr};

use super::{Cidr, Cidr6, Range};

/// Error: a text or a number that is no address, or an address that does not fit its network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// The text has another form.
    #[error("\"{text}\" is not {expected}")]
    Form {
        /// The text.
        text: String,
        /// The expected form, with an example.
        expected: &'static str,
    },
    /// The prefix of an IPv4 network is too short or too long.
    #[error("{0}: a prefix has 8 to 30 bits")]
    Prefix(String),
    /// The prefix of an IPv6 network is another one.
    #[error("{0}: a prefix of IPv6 has {bits} bits", bits = Cidr6::PREFIX)]
    Prefix6(String),
    /// No host can have the address.
    #[error("{0}: not an address that a host can have")]
    Special(String),
    /// The address is the network's first.
    #[error("{0}: that is the network, not a host in it")]
    IsNetwork(String),
    /// The address is the network's last.
    #[error("{0}: that is the broadcast address, not a host")]
    IsBroadcast(String),
    /// The address is not that of another host in the network.
    #[error("address {host}: that is {kind} ({network})")]
    NotAHost {
        /// The address.
        host: IpAddr,
        /// The kind of the address.
        kind: &'static str,
        /// The network.
        network: String,
    },
    /// An address of the range is not the network's.
    #[error("range {range}: {address} is outside of the network ({network})")]
    RangeOutside {
        /// The range.
        range: Range,
        /// The first address that is outside.
        address: Ipv4Addr,
        /// The network.
        network: Cidr,
    },
    /// The range ends before it begins.
    #[error("range {0}: its end is before its beginning")]
    RangeBackwards(String),
    /// The MAC address is that of several stations, or of none.
    #[error("{0}: not one station's MAC address")]
    NotAStation(String),
    /// The MAC address is one that root's ends of cables have.
    #[error("{0}: a guest's MAC address does not begin with fe")]
    RootsMac(String),
    /// There is no such VLAN.
    #[error("VLAN {0}: a VLAN has a number from 1 to 4094")]
    NoVlan(u16),
}
