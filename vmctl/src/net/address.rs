//! Addresses as users write them: of networks (CIDR), of Ethernet (MAC), and VLANs.

use std::fmt;
use std::hash::Hasher;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use error::AddressError;

mod error;

/// Returns the error for a text of another form than `expected`.
fn form(text: &str, expected: &'static str) -> AddressError {
    let text = text.to_owned();
    AddressError::Form { text, expected }
}

/// An IPv4 address and the length of its network's prefix: `10.77.0.1/24`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    address: Ipv4Addr,
    prefix: u8,
}

impl Cidr {
    pub(super) fn from_kernel(address: Ipv4Addr, prefix: u8) -> Self {
        let prefix = prefix.min(32);
        Self { address, prefix }
    }

    /// The address.
    pub fn address(self) -> Ipv4Addr {
        self.address
    }

    /// Returns the number of bits of the network's prefix.
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// The network's bits.
    pub fn mask(self) -> Ipv4Addr {
        let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix));
        Ipv4Addr::from_bits(mask.unwrap_or(0))
    }

    /// The network's first address.
    pub fn network(self) -> Ipv4Addr {
        self.address & self.mask()
    }

    /// The network's last address.
    pub fn broadcast(self) -> Ipv4Addr {
        self.address | !self.mask()
    }

    pub(super) fn contains(self, host: Ipv4Addr) -> bool {
        host & self.mask() == self.network()
    }

    /// Checks that an address is that of a host in the network other than the one that has this address.
    ///
    /// # Errors
    ///
    /// Fails with `NotAHost`.
    pub(super) fn check_host(self, host: Ipv4Addr) -> Result<(), AddressError> {
        let kind = match host {
            host if !self.contains(host) => "outside of the network",
            host if host == self.network() => "the network, not a host in it",
            host if host == self.broadcast() => "the broadcast address, not a host",
            host if host == self.address => "root's own",
            _ => return Ok(()),
        };
        let (host, network) = (host.into(), self.to_string());
        Err(AddressError::NotAHost {
            host,
            kind,
            network,
        })
    }

    pub(super) fn overlaps(self, other: Self) -> bool {
        let mask = self.mask() & other.mask();
        self.address & mask == other.address & mask
    }
}

impl FromStr for Cidr {
    type Err = AddressError;

    /// An address that a host can have, in a network with room for more.
    fn from_str(text: &str) -> Result<Self, AddressError> {
        let wrong = || form(text, "an IPv4 address with a prefix, as 10.77.0.1/24");
        let (address, prefix) = text.split_once('/').ok_or_else(wrong)?;
        let address: Ipv4Addr = address.parse().map_err(|_| wrong())?;
        let prefix = prefix.parse().map_err(|_| wrong())?;
        if !(8..=30).contains(&prefix) {
            return Err(AddressError::Prefix(text.to_owned()));
        }
        let cidr = Self { address, prefix };
        let special = address.is_multicast() || address.is_loopback() || address.octets()[0] == 0;
        if special || address.octets()[0] >= 240 {
            return Err(AddressError::Special(text.to_owned()));
        }
        if address == cidr.network() {
            return Err(AddressError::IsNetwork(text.to_owned()));
        }
        if address == cidr.broadcast() {
            return Err(AddressError::IsBroadcast(text.to_owned()));
        }
        Ok(cidr)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl Serialize for Cidr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Some IPv4 addresses: `10.77.0.100-10.77.0.149`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    first: Ipv4Addr,
    last: Ipv4Addr,
}

impl Range {
    /// All addresses of a network.
    pub(super) fn of(network: Cidr) -> Self {
        Self {
            first: network.network(),
            last: network.broadcast(),
        }
    }

    /// Checks that a network has all of the addresses.
    ///
    /// # Errors
    ///
    /// Fails with `RangeOutside`.
    pub(super) fn check(self, network: Cidr) -> Result<(), AddressError> {
        let mut ends = [self.first, self.last].into_iter();
        match ends.find(|address| !network.contains(*address)) {
            Some(address) => Err(AddressError::RangeOutside {
                range: self,
                address,
                network,
            }),
            None => Ok(()),
        }
    }

    pub(super) fn contains(self, ip: Ipv4Addr) -> bool {
        (self.first..=self.last).contains(&ip)
    }

    /// Returns the number of addresses.
    pub(super) fn size(self) -> u64 {
        u64::from(self.last.to_bits() - self.first.to_bits()) + 1
    }

    /// Returns the address that so many others are before, counted around.
    pub(super) fn at(self, offset: u64) -> Ipv4Addr {
        let offset = offset % self.size();
        Ipv4Addr::from_bits(self.first.to_bits() + offset as u32)
    }
}

impl FromStr for Range {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let wrong = || form(text, "a range, as 10.77.0.100-10.77.0.149");
        let (first, last) = text.split_once('-').ok_or_else(wrong)?;
        let [first, last] = [first, last].map(str::parse::<Ipv4Addr>);
        let (first, last) = (first.map_err(|_| wrong())?, last.map_err(|_| wrong())?);
        match first <= last {
            true => Ok(Self { first, last }),
            false => Err(AddressError::RangeBackwards(text.to_owned())),
        }
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// An IPv6 address in a network with a prefix of 64 bits: `fd00:77::1/64`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr6(Ipv6Addr);

impl Cidr6 {
    /// Bits of the prefix: hosts make addresses by themselves in such networks (RFC 4862 section 5.5.3).
    pub const PREFIX: u8 = 64;

    /// Returns `None` for a network that has another prefix, or that no host is told of.
    pub(super) fn from_kernel(address: Ipv6Addr, prefix: u8) -> Option<Self> {
        let is_usable = prefix == Self::PREFIX && !address.is_unicast_link_local();
        is_usable.then_some(Self(address))
    }

    /// The address.
    pub fn address(self) -> Ipv6Addr {
        self.0
    }

    /// The network's first address.
    pub fn network(self) -> Ipv6Addr {
        Ipv6Addr::from_bits(self.0.to_bits() >> Self::PREFIX << Self::PREFIX)
    }

    /// Returns an address of the machine's own, with its network.
    pub(super) fn of_root(address: Ipv6Addr) -> Self {
        Self(address)
    }

    /// The address that a host of the network makes of its MAC address (RFC 4291 appendix A).
    pub(super) fn of_host(self, mac: Mac) -> Ipv6Addr {
        Ipv6Addr::from_bits(self.network().to_bits() | u128::from(mac.interface_id()))
    }

    pub(super) fn contains(self, host: Ipv6Addr) -> bool {
        self.overlaps(Self(host))
    }

    pub(super) fn overlaps(self, other: Self) -> bool {
        self.network() == other.network()
    }

    /// Checks that an address is that of a host in the network other than the one that has this address.
    ///
    /// # Errors
    ///
    /// Fails with `NotAHost`.
    pub(super) fn check_host(self, host: Ipv6Addr) -> Result<(), AddressError> {
        let kind = match host {
            host if !self.contains(host) => "outside of the network",
            host if host == self.network() => "that of all routers, not of a host",
            host if host == self.0 => "root's own",
            _ => return Ok(()),
        };
        let (host, network) = (host.into(), self.to_string());
        Err(AddressError::NotAHost {
            host,
            kind,
            network,
        })
    }
}

impl FromStr for Cidr6 {
    type Err = AddressError;

    /// An address that a host can have.
    fn from_str(text: &str) -> Result<Self, AddressError> {
        let wrong = || form(text, "an IPv6 address with a prefix, as fd00:77::1/64");
        let (address, prefix) = text.split_once('/').ok_or_else(wrong)?;
        let address: Ipv6Addr = address.parse().map_err(|_| wrong())?;
        let prefix: u32 = prefix.parse().map_err(|_| wrong())?;
        if prefix != u32::from(Self::PREFIX) {
            return Err(AddressError::Prefix6(text.to_owned()));
        }
        let cidr = Self(address);
        let special = address.is_multicast() || address.is_unicast_link_local();
        // ::1, ::, and IPv4 addresses in IPv6.
        if special || address.segments()[..4] == [0; 4] || address == cidr.network() {
            return Err(AddressError::Special(text.to_owned()));
        }
        Ok(cidr)
    }
}

impl fmt::Display for Cidr6 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.0, Self::PREFIX)
    }
}

impl Serialize for Cidr6 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// An Ethernet address of one station: `52:54:00:12:34:56`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mac([u8; 6]);

impl Mac {
    /// Returns the bytes.
    pub fn octets(self) -> [u8; 6] {
        self.0
    }

    /// The half of an IPv6 address that a host makes of its MAC address (RFC 4291 appendix A).
    fn interface_id(self) -> u64 {
        let [a, b, c, d, e, f] = self.0;
        u64::from_be_bytes([a ^ 2, b, c, 0xff, 0xfe, d, e, f])
    }

    /// The link-local IPv6 address that a host makes of its MAC address.
    pub(super) fn link_local(self) -> Ipv6Addr {
        Ipv6Addr::from_bits(0xfe80 << 112 | u128::from(self.interface_id()))
    }

    pub(super) fn from_kernel(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// Returns an address that is always the same for the same text, and hardly that of another text:
    /// locally administered, with 32 bits of a hash.
    pub fn of_text(text: &str) -> Self {
        let mut hasher = fnv::FnvHasher::default();
        hasher.write(text.as_bytes());
        // The low bits of this hash hardly depend on the first bytes.
        let hash = hasher.finish();
        let [a, b, c, d] = ((hash >> 32) as u32 ^ hash as u32).to_be_bytes();
        Self([0x52, 0x54, a, b, c, d])
    }

    /// Returns the address of root's end of a guest's cable. A bridge takes frames for its ports' own addresses to be
    /// root's, so the address must be another one, and has another highest byte.
    pub(super) fn of_root_end(self) -> Self {
        let Self([_, rest @ ..]) = self;
        let [a, b, c, d, e] = rest;
        Self([0xfe, a, b, c, d, e])
    }
}

impl FromStr for Mac {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let wrong = || form(text, "a MAC address as 52:54:00:12:34:56");
        let byte = |part: &str| {
            let digits = part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit());
            u8::from_str_radix(part, 16).ok().filter(|_| digits)
        };
        let bytes: Option<Vec<u8>> = text.split(':').map(byte).collect();
        let bytes: [u8; 6] = bytes.and_then(|b| b.try_into().ok()).ok_or_else(wrong)?;
        if bytes[0] & 1 != 0 || bytes == [0; 6] {
            return Err(AddressError::NotAStation(text.to_owned()));
        }
        // Root's ends of cables have these.
        if bytes[0] == 0xfe {
            return Err(AddressError::RootsMac(text.to_owned()));
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl Serialize for Mac {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Mac {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)
    }
}

/// A VLAN as a port has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vlan {
    id: u16,
    tagged: bool,
}

impl Vlan {
    /// VLAN `id`, 1 to 4094: `tagged` if the guest's frames carry its tag, else the bridge adds and
    /// removes it.
    ///
    /// # Errors
    ///
    /// Fails with `NoVlan`.
    pub fn new(id: u16, tagged: bool) -> Result<Self, AddressError> {
        if !(1..=4094).contains(&id) {
            return Err(AddressError::NoVlan(id));
        }
        Ok(Self { id, tagged })
    }

    /// Returns the number.
    pub fn id(self) -> u16 {
        self.id
    }

    /// Whether the guest sees tags.
    pub fn is_tagged(self) -> bool {
        self.tagged
    }
}

/// `10`, or `10t` where it is tagged.
impl fmt::Display for Vlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.id, if self.tagged { "t" } else { "" })
    }
}

impl FromStr for Vlan {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let number = text.strip_suffix('t');
        let id = number.unwrap_or(text).parse();
        let id = id.map_err(|_| form(text, "a VLAN as 10, or tagged 10t"))?;
        Self::new(id, number.is_some())
    }
}

impl Serialize for Vlan {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A number, or a text.
impl<'de> Deserialize<'de> for Vlan {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "expected a VLAN as 10, or tagged \"10t\"")]
        enum Form {
            Number(i64),
            Text(String),
        }
        let text = match Form::deserialize(deserializer)? {
            Form::Number(number) => number.to_string(),
            Form::Text(text) => text,
        };
        text.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_a_hosts() {
        let cidr: Cidr = "10.77.3.1/16".parse().unwrap();
        assert_eq!(cidr.to_string(), "10.77.3.1/16");
        assert_eq!(cidr.network(), Ipv4Addr::new(10, 77, 0, 0));
        assert_eq!(cidr.broadcast(), Ipv4Addr::new(10, 77, 255, 255));
        for wrong in [
            "10.77.0.1",
            "10.77.0/24",
            "10.77.0.1/33",
            "10.77.0.1/-1",
            "10.77.0.1/31",
            "10.77.0.0/24",
            "10.77.0.255/24",
            "127.0.0.1/8",
            "224.0.0.1/24",
            "fd00::1/64",
            "",
        ] {
            assert!(wrong.parse::<Cidr>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn overlap_is_symmetric() {
        let cidr = |text: &str| text.parse::<Cidr>().unwrap();
        let (wide, narrow) = (cidr("10.0.0.1/8"), cidr("10.77.0.1/24"));
        assert!(wide.overlaps(narrow) && narrow.overlaps(wide));
        assert!(!narrow.overlaps(cidr("10.77.1.1/24")));
    }

    #[test]
    fn ipv6_networks_have_64_bits() {
        let cidr: Cidr6 = "fd00:77::1/64".parse().unwrap();
        assert_eq!(cidr.to_string(), "fd00:77::1/64");
        assert_eq!(cidr.network().to_string(), "fd00:77::");
        let mac: Mac = "52:54:00:12:34:56".parse().unwrap();
        assert_eq!(cidr.of_host(mac).to_string(), "fd00:77::5054:ff:fe12:3456");
        assert_eq!(mac.link_local().to_string(), "fe80::5054:ff:fe12:3456");
        for wrong in [
            "fd00::1",
            "fd00::1/48",
            "fd00::/64",
            "::1/64",
            "fe80::1/64",
            "ff02::1/64",
            "10.77.0.1/24",
            "",
        ] {
            assert!(wrong.parse::<Cidr6>().is_err(), "{wrong}");
        }
        let check = |text: &str| cidr.check_host(text.parse().unwrap());
        assert_eq!(check("fd00:77::2"), Ok(()));
        for wrong in ["fd00:77::1", "fd00:77::", "fd00:78::2"] {
            assert!(check(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn macs_are_one_stations() {
        let mac: Mac = "52:54:00:AB:cd:01".parse().unwrap();
        assert_eq!(mac.to_string(), "52:54:00:ab:cd:01");
        assert_eq!(mac.of_root_end().to_string(), "fe:54:00:ab:cd:01");
        for wrong in [
            "52:54:00:ab:cd",
            "52:54:00:ab:cd:01:02",
            "52:54:00:ab:cd:+1",
            "53:54:00:ab:cd:01",
            "00:00:00:00:00:00",
            "fe:54:00:ab:cd:01",
        ] {
            assert!(wrong.parse::<Mac>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn vlans_are_numbered_from_1() {
        assert!(Vlan::new(0, true).is_err() && Vlan::new(4095, false).is_err());
        assert_eq!(Vlan::new(10, true).unwrap().to_string(), "10t");
        assert_eq!("10t".parse(), Vlan::new(10, true));
        assert_eq!("10".parse(), Vlan::new(10, false));
        for wrong in ["", "t", "10u", "-1", "0", "4095t", "99999"] {
            assert!(wrong.parse::<Vlan>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_text_always_makes_the_same_station() {
        let mac = Mac::of_text("web/lan0");
        assert_eq!(mac.to_string(), "52:54:58:b5:a1:d9");
        assert_eq!(mac.to_string().parse(), Ok(mac));
        let names = (0..1000).map(|n| Mac::of_text(&format!("web{n}/lan0")));
        assert_eq!(names.collect::<std::collections::HashSet<_>>().len(), 1000);
    }
}
