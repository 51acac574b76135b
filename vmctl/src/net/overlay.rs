//! Networks that span several machines: a VXLAN device (RFC 7348) is a port of each machine's bridge, and carries
//! the frames of guests to the other machines in packets of UDP.
//!
//! Frames to everybody, and to stations that are not known yet, go to all peers. Each machine leases addresses to its
//! own guests alone, so that requests for them and their answers do not cross. The packets can go through a `tunnel`.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, ToSocketAddrs};

use rustix::io::Errno;
use serde::Serialize;

use super::link::{EVERYBODY, Interface, Links};
use super::mark;
use super::tunnel::{self, PeerError, Tunnel};
use super::{DEFAULT_MTU, NetError, discard, find, firewall, kernel, not_made};

/// The port of VXLAN.
pub(super) const PORT: u16 = 4789;
/// Largest VXLAN network identifier.
const MAX_VNI: u32 = (1 << 24) - 1;
/// Bytes that a frame needs on its way beside its packet: headers of Ethernet (14), VXLAN (8), UDP (8), and
/// of IPv4 (20) or IPv6 (40).
const OVERHEAD: u16 = 14 + 8 + 8;
/// Words of an alias.
const ENCRYPTED: &str = "wireguard";
const PLAIN: &str = "plain";

/// The part of a network that is on other machines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlay {
    /// The network's identifier, the same on all machines.
    vni: u32,
    /// Addresses of the other machines. Without a tunnel they are of one family.
    hosts: Vec<IpAddr>,
    tunnel: Option<Tunnel>,
}

/// Error: machines that can't have a network together.
#[derive(Debug, thiserror::Error)]
pub enum OverlayError {
    /// There is no such identifier.
    #[error("VXLAN {0}: expected a number from 1 to {MAX_VNI}")]
    Vni(u32),
    /// The network would have one machine.
    #[error("VXLAN {0}: no peer is given")]
    NoPeer(u32),
    /// Two peers are one.
    #[error("peer {host}: {address} is a peer already")]
    Again {
        /// The peer, as the user wrote it.
        host: String,
        /// Address of the peer.
        address: IpAddr,
    },
    /// One peer has an IPv4 address, another one an IPv6 address.
    #[error(
        "peer {host}: {address} and {other} are an IPv4 and an IPv6 address; all peers need one family"
    )]
    Families {
        /// The peer, as the user wrote it.
        host: String,
        /// Address of the peer.
        address: IpAddr,
        /// Address of another peer.
        other: IpAddr,
    },
    /// Two peers have one key.
    #[error("peer {0}: its key is that of another peer")]
    KeyAgain(String),
    /// The host has no address.
    #[error("peer {host}: {error}")]
    Host {
        /// The peer, as the user wrote it.
        host: String,
        /// The reason.
        error: io::Error,
    },
    /// The host is this one, or several.
    #[error("peer {host}: {address} is not another machine")]
    NotAnother {
        /// The peer, as the user wrote it.
        host: String,
        /// Address of the host.
        address: IpAddr,
    },
    /// A peer of an encrypted network is none.
    #[error(transparent)]
    Peer(#[from] PeerError),
}

/// A device that leads to other machines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OverlayPort {
    /// The network's identifier.
    pub vni: u32,
    /// Whether its packets are encrypted.
    pub wireguard: bool,
    /// Addresses of the other machines.
    pub peers: Vec<IpAddr>,
}

impl Overlay {
    /// Makes a part of the addresses or names of the other machines.
    ///
    /// # Errors
    ///
    /// There is no such identifier, or the hosts can't be peers of one network.
    pub fn new(vni: u32, hosts: &[String]) -> Result<Self, OverlayError> {
        check_vni(vni)?;
        let mut peers: Vec<IpAddr> = Vec::new();
        for host in hosts {
            let address = resolve(host)?;
            let host = host.clone();
            if peers.contains(&address) {
                return Err(OverlayError::Again { host, address });
            }
            let mut others = peers.iter();
            if let Some(&other) = others.find(|other| other.is_ipv4() != address.is_ipv4()) {
                return Err(OverlayError::Families {
                    host,
                    address,
                    other,
                });
            }
            peers.push(address);
        }
        Self::of(vni, peers, None)
    }

    /// Makes a part of other machines' keys and addresses (`KEY@HOST`), which reach this machine at UDP port `port`.
    ///
    /// # Errors
    ///
    /// The errors of [`Self::new`], and a peer or its key is none.
    pub fn encrypted(vni: u32, port: u16, hosts: &[String]) -> Result<Self, OverlayError> {
        check_vni(vni)?;
        let peers = hosts.iter().map(|host| host.parse());
        let tunnel = Tunnel::new(port, peers.collect::<Result<_, PeerError>>()?);
        let addresses = tunnel.addresses(vni);
        let is_again = |(index, address)| addresses[..index].contains(address);
        if let Some(index) = addresses.iter().enumerate().position(is_again) {
            return Err(OverlayError::KeyAgain(hosts[index].clone()));
        }
        Self::of(vni, tunnel.endpoints(), Some(tunnel))
    }

    fn of(vni: u32, hosts: Vec<IpAddr>, tunnel: Option<Tunnel>) -> Result<Self, OverlayError> {
        match hosts.is_empty() {
            true => Err(OverlayError::NoPeer(vni)),
            false => Ok(Self { vni, hosts, tunnel }),
        }
    }

    /// Returns the network's identifier.
    pub(super) fn vni(&self) -> u32 {
        self.vni
    }

    /// Returns the addresses that VXLAN's packets of other machines come from, all of one family.
    pub(super) fn peers(&self) -> Vec<IpAddr> {
        match &self.tunnel {
            Some(tunnel) => tunnel.addresses(self.vni),
            None => self.hosts.clone(),
        }
    }

    /// Returns the one interface that such packets come by, if it is known.
    pub(super) fn interface(&self) -> Option<String> {
        self.tunnel.as_ref().map(|_| tunnel::device(self.vni))
    }

    /// Returns what the device is to users.
    fn port(&self) -> OverlayPort {
        OverlayPort {
            vni: self.vni,
            wireguard: self.tunnel.is_some(),
            peers: self.hosts.clone(),
        }
    }

    /// Returns the device's name.
    fn device(&self) -> String {
        format!("vxlan{}", self.vni)
    }

    /// Whether VXLAN's packets have IPv4.
    pub(super) fn is_ipv4(&self) -> bool {
        self.peers().iter().all(IpAddr::is_ipv4)
    }

    /// Returns the bytes of the largest packet of guests if those of the machines have 1500 bytes.
    pub(super) fn mtu(&self) -> u16 {
        let outer = self.tunnel.as_ref().map_or(DEFAULT_MTU, |_| tunnel::MTU);
        let ip = match self.is_ipv4() {
            true => 20,
            false => 40,
        };
        outer - OVERHEAD - ip
    }

    /// Makes the part of other hosts that takes the place of the one that a device leads to.
    ///
    /// # Errors
    ///
    /// The errors of [`Self::new`], and the hosts are not reached as the old ones were.
    pub(super) fn instead(old: &OverlayPort, hosts: &[String]) -> Result<Self, NetError> {
        if old.wireguard {
            let port = tunnel::port(old.vni).map_err(kernel(&tunnel::device(old.vni)))?;
            return Self::encrypted(old.vni, port, hosts).map_err(NetError::invalid);
        }
        let new = Self::new(old.vni, hosts).map_err(NetError::invalid)?;
        let was_ipv4 = old.peers.iter().all(IpAddr::is_ipv4);
        if new.is_ipv4() != was_ipv4 {
            let family = if was_ipv4 { "IPv4" } else { "IPv6" };
            let line = format!(
                "the machines of VXLAN {} reach each other by {family}",
                old.vni
            );
            return Err(NetError::Invalid(line));
        }
        Ok(new)
    }

    /// Has the device `port` of a network lead to these machines, and to no others.
    pub(super) fn update(
        &self,
        links: &mut Links,
        network: &str,
        port: u32,
    ) -> Result<(), NetError> {
        let config = self.tunnel.as_ref().map(|it| it.prepare_update(self.vni));
        let config = config.transpose()?;
        firewall::set_peers(network, self)
            .and_then(|()| config.map_or(Ok(()), |config| tunnel::update(self.vni, &config)))
            .and_then(|()| self.update_routes(links, port))
            .map_err(kernel(network))
    }

    fn update_routes(&self, links: &mut Links, port: u32) -> io::Result<()> {
        let (routes, new) = (links.routes(port)?, self.peers());
        for &peer in &new {
            if !routes.contains(&(EVERYBODY.to_vec(), peer)) {
                links.add_flood(port, peer)?;
            }
        }
        // Also stations that the device has heard from a peer that is none any more.
        for (station, peer) in routes {
            if !new.contains(&peer) {
                links.remove_route(port, station, peer)?;
            }
        }
        links.set_alias(port, &mark::of_overlay(&self.port()))
    }

    /// Makes the device and plugs it into a bridge. Guests are leased addresses if the bridge `is_served`.
    pub(super) fn plug(
        &self,
        links: &mut Links,
        bridge: &Interface,
        mtu: u16,
        is_served: bool,
    ) -> Result<(), NetError> {
        let Some(tunnel) = &self.tunnel else {
            let local = (!self.is_ipv4()).then_some(Ipv6Addr::UNSPECIFIED);
            return self.make(links, local, bridge, mtu, is_served);
        };
        let local = tunnel.open(links, self.vni)?;
        self.make(links, Some(local), bridge, mtu, is_served)
            .inspect_err(|_| {
                if let Ok(there) = links.all() {
                    let _ = tunnel::close(links, &there, self.vni);
                }
            })
    }

    /// Makes the device, whose packets come from the address `local`.
    fn make(
        &self,
        links: &mut Links,
        local: Option<Ipv6Addr>,
        bridge: &Interface,
        mtu: u16,
        is_served: bool,
    ) -> Result<(), NetError> {
        let name = self.device();
        let made = links.add_vxlan(&name, self.vni, PORT, local);
        made.map_err(|e| match Errno::from_io_error(&e) {
            Some(Errno::EXIST) => NetError::Conflict(format!(
                "{}: an interface of this machine has VXLAN {} already",
                bridge.name, self.vni
            )),
            _ => not_made(&name, "VXLAN")(e),
        })?;
        self.join(links, &name, bridge, mtu, is_served)
            .map_err(kernel(&name))
            .inspect_err(|_| discard(links, &name))
    }

    fn join(
        &self,
        links: &mut Links,
        name: &str,
        bridge: &Interface,
        mtu: u16,
        is_served: bool,
    ) -> io::Result<()> {
        let index = find(links, name)?.index;
        links.set_alias(index, &mark::of_overlay(&self.port()))?;
        links.set_mtu(index, mtu)?;
        for peer in self.peers() {
            links.add_flood(index, peer)?;
        }
        links.attach(index, bridge.index)?;
        if bridge.bridge == Some(true) {
            links.join_other_vlans(index)?;
        }
        if is_served {
            firewall::keep_leases_apart(name)?;
        }
        links.set_up(index, true)
    }
}

impl OverlayPort {
    /// Reads what [`fmt::Display`] wrote.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let vni = words.next()?.parse().ok()?;
        let wireguard = match words.next()? {
            ENCRYPTED => true,
            PLAIN => false,
            _ => return None,
        };
        let peers = words.map(str::parse).collect::<Result<_, _>>().ok()?;
        Some(Self {
            vni,
            wireguard,
            peers,
        })
    }
}

impl fmt::Display for OverlayPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let way = if self.wireguard { ENCRYPTED } else { PLAIN };
        write!(f, "{} {way}", self.vni)?;
        self.peers.iter().try_for_each(|peer| write!(f, " {peer}"))
    }
}

/// Checks a VXLAN network identifier.
///
/// # Errors
///
/// Fails with `Vni`.
pub fn check_vni(vni: u32) -> Result<u32, OverlayError> {
    match vni {
        1..=MAX_VNI => Ok(vni),
        _ => Err(OverlayError::Vni(vni)),
    }
}

/// Returns the first address of a host and port.
pub(super) fn lookup(host: impl ToSocketAddrs) -> io::Result<SocketAddr> {
    let mut found = host.to_socket_addrs()?;
    found
        .next()
        .ok_or_else(|| io::Error::other("it has no address"))
}

/// Returns the address of a host.
fn resolve(host: &str) -> Result<IpAddr, OverlayError> {
    let printable = || host.escape_default().to_string();
    let found = lookup((host, PORT)).map_err(|error| OverlayError::Host {
        host: printable(),
        error,
    })?;
    let address = found.ip();
    if address.is_unspecified() || address.is_multicast() || address.is_loopback() {
        return Err(OverlayError::NotAnother {
            host: printable(),
            address,
        });
    }
    Ok(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyA=";

    fn overlay(vni: u32, hosts: &[&str]) -> Result<Overlay, OverlayError> {
        let hosts: Vec<_> = hosts.iter().map(|&host| host.to_owned()).collect();
        Overlay::new(vni, &hosts)
    }

    #[test]
    fn an_overlay_is_read_as_it_is_written() {
        for hosts in [&["10.0.0.2", "10.0.0.3"][..], &["fd00::2"][..]] {
            let mut made = overlay(77, hosts).unwrap().port();
            made.wireguard = hosts.len() == 1;
            assert_eq!(OverlayPort::parse(&made.to_string()), Some(made));
        }
        for wrong in ["77 plain x", "77 x", "77", ""] {
            assert_eq!(OverlayPort::parse(wrong), None);
        }
    }

    #[test]
    fn packets_have_room_for_their_headers() {
        assert_eq!(overlay(77, &["10.0.0.2"]).unwrap().mtu(), 1450);
        assert_eq!(overlay(77, &["fd00::2"]).unwrap().mtu(), 1430);
        let encrypted = Overlay::encrypted(77, 9, &[format!("{KEY}@10.0.0.2")]);
        assert_eq!(encrypted.unwrap().mtu(), 1350);
    }

    #[test]
    fn a_key_is_one_peers() {
        let peer = |host| format!("{KEY}@{host}");
        let error = Overlay::encrypted(77, 9, &[peer("10.0.0.2"), peer("10.0.0.3")]);
        let error = error.unwrap_err();
        assert!(
            error
                .to_string()
                .ends_with("10.0.0.3: its key is that of another peer"),
            "{error}"
        );
    }

    #[test]
    fn wrong_peers_are_named() {
        for (vni, hosts, what) in [
            (
                0,
                &["10.0.0.2"][..],
                "VXLAN 0: expected a number from 1 to 16777215",
            ),
            (1 << 24, &["10.0.0.2"], "VXLAN 16777216: expected"),
            (1, &[], "VXLAN 1: no peer is given"),
            (1, &["10.0.0.2", "10.0.0.2"], "10.0.0.2 is a peer already"),
            (1, &["10.0.0.2", "fd00::2"], "all peers need one family"),
            (1, &["127.0.0.1"], "127.0.0.1 is not another machine"),
            (1, &["0.0.0.0"], "is not another machine"),
            (1, &["239.1.1.1"], "is not another machine"),
            (1, &["no such host"], "peer no such host: "),
        ] {
            let error = overlay(vni, hosts).unwrap_err();
            assert!(error.to_string().contains(what), "{error}");
        }
    }
}
