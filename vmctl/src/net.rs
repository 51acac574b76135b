//! Host networks: a Linux bridge each, and the tap devices that join guests to it.
//!
//! [`create`], [`delete`], [`list`], [`stations`], [`plug_in`] and [`keep`] are all. The kernel alone keeps what they
//! make, and the alias of an interface says what it is to us (`mark`). `link` has the interfaces, `netlink` the way
//! to them, `listing` what users see of them, `firewall` the packet filters, which `filters` keeps. `port` plugs
//! guests in by tap devices, which [`tap`] makes. `service` has the networks whose guests are leased addresses
//! (`lease`) and have names (`names`) by `dnsmasq`. An `overlay` is on other machines, too, maybe by a `tunnel`.
//! `program` runs other packages' programs. Nothing here knows a VM that runs.

mod address;
mod dnsmasq;
mod filters;
mod firewall;
mod lease;
mod link;
mod listing;
mod mark;
mod names;
mod netlink;
mod overlay;
mod port;
mod program;
mod service;
pub mod tap;
mod tunnel;

use std::fmt;
use std::fs;
use std::io;
use std::path::Path;

use rustix::io::Errno;
use serde::Serialize;

pub use self::address::{AddressError, Cidr, Cidr6, Mac, Range, Vlan};
pub use self::firewall::{Guard, Rules};
use self::link::{Interface, Links};
pub use self::listing::{Network, Port, Station, list, list_guarded, stations};
use self::mark::{NetworkMark, mode, started_forwarding};
pub use self::overlay::{Overlay, OverlayError, OverlayPort, check_vni};
pub use self::port::{Cable, Place, plug_in};
pub use self::service::keep;
pub use self::tap::Tap;
pub use self::tunnel::{PeerError, key};

/// Whether the machine forwards IPv4 packets at all.
const IP_FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";
/// The VLAN of ports that are told no other.
const DEFAULT_VLAN: u16 = 1;
/// Bytes of the largest packet of a network that is told no other: Ethernet's.
const DEFAULT_MTU: u16 = 1500;
/// The smallest MTU of IPv4 (RFC 791), and thereby of Linux's interfaces.
const MIN_MTU: u16 = 68;

/// One line that names the network, the interface or the address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetError {
    /// The request makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// No network has this name.
    #[error("{0}")]
    NotFound(String),
    /// Something is there already, or in use.
    #[error("{0}")]
    Conflict(String),
    /// The kernel refuses.
    #[error("{0}")]
    Kernel(String),
}

impl NetError {
    /// Makes the error for a request that makes no sense.
    fn invalid(why: impl fmt::Display) -> Self {
        Self::Invalid(why.to_string())
    }
}

impl From<NetError> for io::Error {
    fn from(error: NetError) -> Self {
        let kind = match error {
            NetError::Invalid(_) => io::ErrorKind::InvalidInput,
            NetError::NotFound(_) => io::ErrorKind::NotFound,
            NetError::Conflict(_) => io::ErrorKind::AlreadyExists,
            NetError::Kernel(_) => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}

/// The destinations that a network's guests reach besides each other and root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// No destination.
    Isolated,
    /// All destinations that root reaches, under root's addresses.
    Nat,
}

impl Mode {
    const ALL: [Self; 2] = [Self::Isolated, Self::Nat];

    /// Returns the mode's name for users.
    pub fn name(self) -> &'static str {
        match self {
            Self::Isolated => "isolated",
            Self::Nat => "nat",
        }
    }
}

/// A network that is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Name of the network, which is the bridge's.
    pub name: String,
    /// Root's address in it.
    pub address: Option<Cidr>,
    /// Root's IPv6 address in it, whose network its guests are told of.
    pub address6: Option<Cidr6>,
    /// The destinations that its guests reach.
    pub mode: Mode,
    /// Whether guests are leased IPv4 addresses and have names.
    pub dhcp: bool,
    /// The addresses that they are leased; by default all of the network's.
    pub range: Option<Range>,
    /// Whether ports can be in VLANs.
    pub vlan_filtering: bool,
    /// Bytes of the largest packet.
    pub mtu: Option<u16>,
    /// The part that is on other machines.
    pub overlay: Option<Overlay>,
}

/// Makes a network, or nothing. Returns lines about chains of others that keep its guests in.
///
/// # Errors
///
/// The name is wrong or taken, the address overlaps another interface's, or the kernel lacks what the
/// mode needs.
pub fn create(spec: &Spec) -> Result<Vec<String>, NetError> {
    let name = &spec.name;
    check_name(name).map_err(NetError::invalid)?;
    let needs_address = match spec.mode {
        Mode::Nat => Some("NAT"),
        Mode::Isolated => spec.dhcp.then_some("DHCP"),
    };
    if let (Some(what), None) = (needs_address, spec.address) {
        let line = format!("{name}: {what} needs an address for root, such as 10.77.0.1/24");
        return Err(NetError::Invalid(line));
    }
    if let (Some(range), Some(address)) = (spec.range, spec.address) {
        let checked = range.check(address);
        checked.map_err(|line| NetError::Invalid(format!("{name}: {line}")))?;
    }
    if spec.overlay.is_some() && spec.dhcp && spec.range.is_none() {
        let line = format!(
            "{name}: each machine leases addresses of its own part of the network: give it one, as --dhcp-range \
             10.77.0.100-10.77.0.149"
        );
        return Err(NetError::Invalid(line));
    }
    let failed = kernel(name);
    let mut links = Links::open().map_err(&failed)?;
    let there = links.all().map_err(&failed)?;
    if let Some(other) = there.iter().find(|other| other.name == *name) {
        return Err(taken(other));
    }
    if let Some(address) = spec.address {
        let others = links.addresses().map_err(&failed)?;
        check_overlap(name, &there, address, &others, Cidr::overlaps)?;
    }
    if let Some(address) = spec.address6 {
        let others = links.addresses6().map_err(&failed)?;
        check_overlap(name, &there, address, &others, Cidr6::overlaps)?;
    }
    // Whoever makes the bridge has the name; it is down, and carries nothing, until all is there.
    links
        .add_bridge(name, spec.vlan_filtering)
        .map_err(not_made(name, "bridges"))?;
    filter(spec)
        .and_then(|()| set_up(&mut links, spec))
        .and_then(|()| serve(spec))
        .inspect_err(|_| {
            let _ = filters::remove(name);
            if let Ok(bridge) = find(&mut links, name) {
                let _ = delete_overlay(&mut links, &bridge);
                let _ = links.delete(bridge.index);
            }
            // After the bridge goes what served it.
            if let Ok(lock) = service::lock() {
                service::refresh(&lock);
            }
        })?;
    let strict = match spec.mode {
        // The network is there, with or without an answer.
        Mode::Nat => firewall::strict_chains().unwrap_or_default(),
        Mode::Isolated => Vec::new(),
    };
    let line = |chain: &String| {
        format!(
            "{name}: {chain} drops forwarded packets: add a rule there that accepts those of this interface"
        )
    };
    Ok(strict.iter().map(line).collect())
}

/// Checks that the network of an address is none of an interface that is there.
fn check_overlap<T: Copy + fmt::Display>(
    name: &str,
    there: &[Interface],
    address: T,
    others: &[(u32, T)],
    overlaps: fn(T, T) -> bool,
) -> Result<(), NetError> {
    let Some((index, other)) = others.iter().find(|(_, it)| overlaps(*it, address)) else {
        return Ok(());
    };
    let owner = there.iter().find(|it| it.index == *index);
    let owner = owner.map_or("?", |it| &it.name);
    let line = format!("{name}: {address} overlaps {owner}'s {other}");
    Err(NetError::Conflict(line))
}

/// Starts what serves a new network's guests.
fn serve(spec: &Spec) -> Result<(), NetError> {
    let name = &spec.name;
    if !spec.dhcp && spec.address6.is_none() {
        return Ok(());
    }
    let lock = service::lock().map_err(kernel(name))?;
    let errors = service::refresh(&lock).into_iter();
    let own = errors.filter(|(network, _)| network == name);
    own.map(|(_, e)| kernel(name)(e)).next().map_or(Ok(()), Err)
}

fn filter(spec: &Spec) -> Result<(), NetError> {
    let name = &spec.name;
    match (spec.mode, spec.address) {
        (Mode::Nat, Some(address)) => firewall::masquerade(name, address, spec.overlay.as_ref()),
        _ => firewall::isolate(name, spec.overlay.as_ref()),
    }
    .map_err(filter_failed(name))
}

/// A packet filter that was not made.
fn filter_failed(name: &str) -> impl Fn(io::Error) -> NetError {
    move |e| {
        if e.kind() != io::ErrorKind::Unsupported {
            return kernel(name)(e);
        }
        NetError::Kernel(format!(
            "{name}: this kernel's packet filter lacks one of nf_tables, nft_ct, nft_limit, \
             nft_chain_nat or nft_masq"
        ))
    }
}

/// Makes a new bridge a network.
fn set_up(links: &mut Links, spec: &Spec) -> Result<(), NetError> {
    let name = &spec.name;
    let failed = kernel(name);
    let bridge = find(links, name).map_err(&failed)?;
    let mut started = false;
    // Whoever comes to forward for the first network of ours stops with the last.
    let forwards = spec.mode == Mode::Nat && {
        let forwards = forwards().map_err(&failed)?;
        let ours = links.all().map_err(&failed)?;
        started = !forwards || ours.iter().any(started_forwarding);
        forwards
    };
    let mark = NetworkMark {
        mode: spec.mode,
        started_forwarding: started,
        dhcp: spec.dhcp,
        ipv6: spec.address6.is_some(),
        range: spec.range,
    };
    links
        .set_alias(bridge.index, &mark.alias())
        .map_err(&failed)?;
    // A bridge whose address was set keeps it, else it takes its ports'.
    if let Some(mac) = bridge.mac {
        links.set_mac(bridge.index, mac).map_err(&failed)?;
    }
    // The same goes for its MTU.
    let overlay = spec.overlay.as_ref();
    let default = overlay.map_or(DEFAULT_MTU, Overlay::mtu);
    let mtu = spec.mtu.unwrap_or(default);
    links.set_mtu(bridge.index, mtu).map_err(&failed)?;
    if let Some(address) = spec.address {
        links.add_address(bridge.index, address).map_err(&failed)?;
    }
    // Root takes nobody's word for its own addresses and routes in a network of guests.
    let accepts = format!("/proc/sys/net/ipv6/conf/{name}/accept_ra");
    if Path::new(&accepts).exists() {
        fs::write(&accepts, "0").map_err(|e| NetError::Kernel(format!("{accepts}: {e}")))?;
    }
    if let Some(address) = spec.address6 {
        links.add_address6(bridge.index, address).map_err(&failed)?;
    }
    if let Some(overlay) = overlay {
        overlay.plug(links, &bridge, mtu, mark.is_served())?;
    }
    links.set_up(bridge.index, true).map_err(&failed)?;
    if spec.mode == Mode::Nat && !forwards {
        fs::write(IP_FORWARD, "1")
            .map_err(|e| NetError::Kernel(format!("{name}: {IP_FORWARD}: {e}")))?;
    }
    Ok(())
}

/// Has a network lead to other machines than before: `hosts` are all, as for [`Overlay`].
///
/// # Errors
///
/// There is no such network, it is one of this machine alone, or the hosts can't be its peers.
pub fn set_peers(name: &str, hosts: &[String]) -> Result<(), NetError> {
    let failed = kernel(name);
    let mut links = Links::open().map_err(&failed)?;
    let there = links.all().map_err(&failed)?;
    let bridge = network(&there, name)?;
    let overlay = |port| mark::overlay(port).map(|overlay| (port, overlay));
    let Some((port, old)) = ports(&there, bridge).find_map(overlay) else {
        let line = format!(
            "{name}: this network is on this machine alone: only \"vmctl net create --vxlan\" makes one of several machines"
        );
        return Err(NetError::Conflict(line));
    };
    let new = Overlay::instead(&old, hosts)?;
    new.update(&mut links, name, port.index)
}

/// Removes a network that nothing is plugged into.
///
/// # Errors
///
/// There is no such network, what has the name is none of ours, or it has ports.
pub fn delete(name: &str) -> Result<(), NetError> {
    let failed = kernel(name);
    let mut links = Links::open().map_err(&failed)?;
    let there = links.all().map_err(&failed)?;
    let bridge = network(&there, name)?;
    let ports = ports(&there, bridge).filter(|port| mark::overlay(port).is_none());
    let ports: Vec<_> = ports.map(|port| &*port.name).collect();
    if !ports.is_empty() {
        let line = format!("{name}: in use by {}", ports.join(", "));
        return Err(NetError::Conflict(line));
    }
    // The bridge goes last: with it goes the claim to the name.
    links.set_up(bridge.index, false).map_err(&failed)?;
    filters::remove(name).map_err(&failed)?;
    delete_overlay(&mut links, bridge).map_err(&failed)?;
    links.delete(bridge.index).map_err(&failed)?;
    let nat = |other: &&Interface| mode(other) == Some(Mode::Nat) && other.index != bridge.index;
    if started_forwarding(bridge) && there.iter().find(nat).is_none() {
        fs::write(IP_FORWARD, "0")
            .map_err(|e| NetError::Kernel(format!("{name}: {IP_FORWARD}: {e}")))?;
    }
    if mark::network(bridge).is_some_and(NetworkMark::is_served) {
        let lock = service::lock().map_err(&failed)?;
        service::refresh(&lock);
    }
    Ok(())
}

/// Removes the devices that lead a bridge to other machines, if there are any.
fn delete_overlay(links: &mut Links, bridge: &Interface) -> io::Result<()> {
    let there = links.all()?;
    for port in ports(&there, bridge) {
        if let Some(overlay) = mark::overlay(port) {
            links.delete(port.index)?;
            tunnel::close(links, &there, overlay.vni)?;
        }
    }
    Ok(())
}

/// Error: no network can be named or sized so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadNetwork {
    /// The kernel uses the name otherwise.
    #[error(
        "\"{0}\": the kernel uses this name for the settings of all interfaces: choose another one"
    )]
    KernelsName(String),
    /// The name is no interface's.
    #[error(
        "\"{0}\" is not an interface's name: 1 to {most} lower-case letters, digits and inner hyphens, a letter first",
        most = libc::IFNAMSIZ - 1
    )]
    Name(String),
    /// No interface has such packets.
    #[error("MTU {0}: expected a number from {MIN_MTU} to 65535")]
    Mtu(i64),
}

/// Checks the name of a network, which is an interface's.
///
/// # Errors
///
/// Fails with `KernelsName` or `Name`.
pub fn check_name(name: &str) -> Result<(), BadNetwork> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = name.as_bytes();
    // An interface's name ends in a NUL.
    let ok = bytes.len() < libc::IFNAMSIZ
        && bytes.first().is_some_and(u8::is_ascii_lowercase)
        && bytes.last().is_some_and(|&b| plain(b))
        && bytes.iter().all(|&b| plain(b) || b == b'-');
    // The kernel has files of these names beside those of the interfaces.
    if ["all", "default"].contains(&name) {
        return Err(BadNetwork::KernelsName(name.to_owned()));
    }
    if ok {
        return Ok(());
    }
    Err(BadNetwork::Name(name.escape_default().to_string()))
}

/// Checks the bytes of the largest packet.
///
/// # Errors
///
/// Fails with `Mtu`.
pub fn check_mtu(bytes: i64) -> Result<u16, BadNetwork> {
    match u16::try_from(bytes) {
        Ok(mtu @ MIN_MTU..) => Ok(mtu),
        _ => Err(BadNetwork::Mtu(bytes)),
    }
}

/// The network of this name.
fn network<'a>(there: &'a [Interface], name: &str) -> Result<&'a Interface, NetError> {
    match there.iter().find(|it| it.name == name) {
        Some(it) if mode(it).is_some() => Ok(it),
        Some(it) => Err(taken(it)),
        None => Err(NetError::NotFound(format!(
            "{}: no such network; \"vmctl net list\" shows all",
            name.escape_default()
        ))),
    }
}

/// A name that is taken, and by what.
fn taken(interface: &Interface) -> NetError {
    let name = &interface.name;
    NetError::Conflict(match mode(interface) {
        Some(_) => format!("{name}: there is a network of this name"),
        None => format!("{name}: an interface of this name is no network of vmctl's"),
    })
}

fn ports<'a>(there: &'a [Interface], bridge: &'a Interface) -> impl Iterator<Item = &'a Interface> {
    there
        .iter()
        .filter(|it| it.controller == Some(bridge.index))
}

fn find(links: &mut Links, name: &str) -> io::Result<Interface> {
    let all = links.all()?;
    let found = all.into_iter().find(|it| it.name == name);
    found.ok_or_else(|| Errno::NODEV.into())
}

/// Whether there is an interface of this name.
fn exists(name: &str) -> bool {
    Path::new("/sys/class/net").join(name).exists()
}

/// Removes an interface that could not be completed.
fn discard(links: &mut Links, name: &str) {
    if let Ok(interface) = find(links, name) {
        let _ = links.delete(interface.index);
    }
}

/// An interface that was not made, whose kind has the name `kind`.
fn not_made(name: &str, kind: &str) -> impl Fn(io::Error) -> NetError {
    move |e| match Errno::from_io_error(&e) {
        Some(Errno::OPNOTSUPP) => {
            NetError::Kernel(format!("{name}: this kernel has no {kind}: {e}"))
        }
        _ => kernel(name)(e),
    }
}

fn forwards() -> io::Result<bool> {
    Ok(fs::read_to_string(IP_FORWARD)?.trim() != "0")
}

fn kernel(name: &str) -> impl Fn(io::Error) -> NetError {
    move |e| NetError::Kernel(format!("{name}: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(name: &str, alias: &str, bridge: Option<bool>) -> Interface {
        Interface {
            name: name.to_owned(),
            alias: alias.to_owned(),
            bridge,
            ..Interface::default()
        }
    }

    #[test]
    fn names_fit_an_interface() {
        for good in ["a", "lan0", "tenant-a", "abcdefghijklmno"] {
            assert_eq!(check_name(good), Ok(()));
        }
        for wrong in [
            "",
            "0a",
            "-a",
            "a-",
            "Lan",
            "a/b",
            "a b",
            "abcdefghijklmnop",
            "..",
            "all",
            "default",
        ] {
            assert!(check_name(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_what_we_marked_is_ours() {
        let ours = interface("lan0", "microvisor network: nat, forwarding", Some(true));
        assert_eq!(mode(&ours), Some(Mode::Nat));
        assert!(started_forwarding(&ours));
        let there = [
            ours,
            interface("other", "", Some(false)),
            interface("eth0", "microvisor network: nat", None),
        ];
        assert!(network(&there, "lan0").is_ok());
        let line = |name| network(&there, name).unwrap_err().to_string();
        let foreign = "an interface of this name is no network of vmctl's";
        assert_eq!(line("other"), format!("other: {foreign}"));
        assert_eq!(line("eth0"), format!("eth0: {foreign}"));
        assert!(line("wan").starts_with("wan: no such network"));
    }
}
