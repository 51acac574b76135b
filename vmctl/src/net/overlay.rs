//! Networks that span several machines: a VXLAN device (RFC 7348) is a port of each machine's bridge, and carries
//! the frames of guests to the other machines in packets of UDP.
//!
//! Frames to everybody, and to stations that are not known yet, go to all peers. Each machine leases addresses to its
//! own guests alone, so that requests for them and their answers do not cross.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv6Addr, ToSocketAddrs};

use rustix::io::Errno;
use serde::Serialize;

use super::link::{Interface, Links};
use super::mark;
use super::{NetError, find, firewall, kernel};

/// The port of VXLAN.
pub(super) const PORT: u16 = 4789;
/// Largest VXLAN network identifier.
const MAX_VNI: u32 = (1 << 24) - 1;
/// Bytes that a frame needs on its way beside its packet: headers of Ethernet (14), VXLAN (8), UDP (8), and
/// of IPv4 (20) or IPv6 (40).
const OVERHEAD: u16 = 14 + 8 + 8;

/// The part of a network that is on other machines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Overlay {
    /// The network's identifier, the same on all machines.
    pub vni: u32,
    /// Addresses of the other machines, all of one family.
    pub peers: Vec<IpAddr>,
}

impl Overlay {
    /// Makes a part of the addresses or names of the other machines.
    ///
    /// # Errors
    ///
    /// One line: there is no such identifier, or the hosts can't be peers of one network.
    pub fn new(vni: u32, hosts: &[String]) -> Result<Self, String> {
        check_vni(vni)?;
        let mut peers: Vec<IpAddr> = Vec::new();
        for host in hosts {
            let peer = resolve(host)?;
            if peers.contains(&peer) {
                return Err(format!("peer {host}: {peer} is a peer already"));
            }
            if let Some(other) = peers.iter().find(|other| other.is_ipv4() != peer.is_ipv4()) {
                return Err(format!(
                    "peer {host}: {peer} and {other} are of two families"
                ));
            }
            peers.push(peer);
        }
        match peers.is_empty() {
            true => Err(format!("VXLAN {vni}: no peer is given")),
            false => Ok(Self { vni, peers }),
        }
    }

    /// Reads what [`fmt::Display`] wrote.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let vni = words.next()?.parse().ok()?;
        let peers = words.map(str::parse).collect::<Result<_, _>>().ok()?;
        Some(Self { vni, peers })
    }

    /// Returns the device's name.
    fn device(&self) -> String {
        format!("vxlan{}", self.vni)
    }

    /// Whether the machines reach each other by IPv4.
    fn is_ipv4(&self) -> bool {
        self.peers.iter().all(IpAddr::is_ipv4)
    }

    /// Returns the bytes of the largest packet of guests if those of the machines have `outer` bytes.
    pub(super) fn mtu(&self, outer: u16) -> u16 {
        let ip = match self.is_ipv4() {
            true => 20,
            false => 40,
        };
        outer - OVERHEAD - ip
    }

    /// Makes the device and plugs it into a bridge. Guests are leased addresses if the bridge `is_served`.
    pub(super) fn plug(
        &self,
        links: &mut Links,
        bridge: &Interface,
        mtu: u16,
        is_served: bool,
    ) -> Result<(), NetError> {
        let name = self.device();
        let failed = kernel(&name);
        let local = (!self.is_ipv4()).then_some(Ipv6Addr::UNSPECIFIED);
        let made = links.add_vxlan(&name, self.vni, PORT, local);
        made.map_err(|e| match Errno::from_io_error(&e) {
            Some(Errno::OPNOTSUPP) => {
                NetError::Kernel(format!("{name}: this kernel has no VXLAN: {e}"))
            }
            Some(Errno::EXIST) => NetError::Conflict(format!(
                "{}: an interface of this machine has VXLAN {} already",
                bridge.name, self.vni
            )),
            _ => failed(e),
        })?;
        self.join(links, &name, bridge, mtu, is_served)
            .map_err(&failed)
            .inspect_err(|_| {
                if let Ok(device) = find(links, &name) {
                    let _ = links.delete(device.index);
                }
            })
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
        links.set_alias(index, &mark::of_overlay(self))?;
        links.set_mtu(index, mtu)?;
        for &peer in &self.peers {
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

impl fmt::Display for Overlay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.vni)?;
        self.peers.iter().try_for_each(|peer| write!(f, " {peer}"))
    }
}

/// Checks a VXLAN network identifier.
///
/// # Errors
///
/// One line.
pub fn check_vni(vni: u32) -> Result<u32, String> {
    match vni {
        1..=MAX_VNI => Ok(vni),
        _ => Err(format!(
            "VXLAN {vni}: expected a number from 1 to {MAX_VNI}"
        )),
    }
}

/// Returns the address of a host.
fn resolve(host: &str) -> Result<IpAddr, String> {
    let printable = host.escape_default();
    let found = match host.parse() {
        Ok(address) => Some(address),
        Err(_) => (host, PORT)
            .to_socket_addrs()
            .map_err(|e| format!("peer {printable}: {e}"))?
            .next()
            .map(|found| found.ip()),
    };
    let address = found.ok_or_else(|| format!("peer {printable}: it has no address"))?;
    if address.is_unspecified() || address.is_multicast() || address.is_loopback() {
        return Err(format!(
            "peer {printable}: {address} is not another machine"
        ));
    }
    Ok(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overlay(vni: u32, hosts: &[&str]) -> Result<Overlay, String> {
        let hosts: Vec<_> = hosts.iter().map(|&host| host.to_owned()).collect();
        Overlay::new(vni, &hosts)
    }

    #[test]
    fn an_overlay_is_read_as_it_is_written() {
        for hosts in [&["10.0.0.2", "10.0.0.3"][..], &["fd00::2"][..]] {
            let made = overlay(77, hosts).unwrap();
            assert_eq!(Overlay::parse(&made.to_string()), Some(made));
        }
        assert_eq!(Overlay::parse("77 x"), None);
        assert_eq!(Overlay::parse(""), None);
    }

    #[test]
    fn packets_have_room_for_their_headers() {
        assert_eq!(overlay(77, &["10.0.0.2"]).unwrap().mtu(1500), 1450);
        assert_eq!(overlay(77, &["fd00::2"]).unwrap().mtu(1500), 1430);
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
            (1, &["10.0.0.2", "fd00::2"], "are of two families"),
            (1, &["127.0.0.1"], "127.0.0.1 is not another machine"),
            (1, &["0.0.0.0"], "is not another machine"),
            (1, &["239.1.1.1"], "is not another machine"),
            (1, &["no such host"], "peer no such host: "),
        ] {
            let error = overlay(vni, hosts).unwrap_err();
            assert!(error.contains(what), "{error}");
        }
    }
}
