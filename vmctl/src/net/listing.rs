//! The list of networks, with the interfaces that are plugged in, and their traffic.

use std::net::IpAddr;

use serde::Serialize;

use super::address::{Cidr, Cidr6, Mac, Vlan};
use super::firewall::{self, Guard};
use super::link::{Interface, Links};
use super::overlay::OverlayPort;
use super::{Mode, NetError, kernel, mark, ports};

/// A network that is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Network {
    /// Name of the network, which is the bridge's.
    pub name: String,
    /// `up`, `no-carrier` while it has no port that is up, or `down`.
    pub state: &'static str,
    /// The destinations that its guests reach.
    pub mode: Mode,
    /// Root's address in it.
    pub address: Option<Cidr>,
    /// Root's IPv6 address in it, whose network its guests are told of.
    pub address6: Option<Cidr6>,
    /// Whether guests are leased IPv4 addresses and have names.
    pub dhcp: bool,
    /// Root's MAC address in it.
    pub mac: Option<Mac>,
    /// Whether ports can be in VLANs.
    pub vlan_filtering: bool,
    /// Bytes of the largest packet.
    pub mtu: u32,
    /// The interfaces that are plugged in.
    pub ports: Vec<Port>,
}

impl Network {
    /// Whether a program serves its guests with addresses and names.
    pub(super) fn is_served(&self) -> bool {
        self.dhcp || self.address6.is_some()
    }
}

/// A cable of a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Station {
    /// The guest's VM.
    pub vm: String,
    /// The addresses that the guest may use; none if it may use any.
    pub addresses: Vec<IpAddr>,
}

/// An interface that is plugged into a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Port {
    /// The interface.
    pub name: String,
    /// The VM whose guest it is.
    pub vm: Option<String>,
    /// The machines that it leads to.
    pub overlay: Option<OverlayPort>,
    /// The guest's MAC address; the interface's own, if it is no guest's.
    pub mac: Option<Mac>,
    /// The addresses that the guest may use; none if it may use any.
    pub addresses: Vec<IpAddr>,
    /// VLANs of the port. It has none if the network does not filter VLANs.
    pub vlans: Vec<Vlan>,
    /// Bytes that it has sent into the network.
    pub sent_bytes: u64,
    /// Bytes that it was sent.
    pub received_bytes: u64,
    /// Frames to it that its receiver left no room for.
    pub lost: u64,
    /// Limits of the port, and counts of dropped packets. `None` if it has no rules, and from [`list`].
    pub guard: Option<Guard>,
}

/// The cables of all guests that have a tap device of vmctl's own.
///
/// # Errors
///
/// The kernel refuses.
pub fn stations() -> Result<Vec<Station>, NetError> {
    let there = Links::open().and_then(|mut links| links.all());
    let there = there.map_err(kernel("networks"))?;
    let station = |it: &Interface| {
        let vm = mark::vm(it)?.to_owned();
        let addresses = mark::addresses(it);
        Some(Station { vm, addresses })
    };
    Ok(there.iter().filter_map(station).collect())
}

/// All networks, by name.
///
/// # Errors
///
/// The kernel refuses.
pub fn list() -> Result<Vec<Network>, NetError> {
    let failed = kernel("networks");
    let mut links = Links::open().map_err(&failed)?;
    let there = links.all().map_err(&failed)?;
    let addresses = links.addresses().map_err(&failed)?;
    let addresses6 = links.addresses6().map_err(&failed)?;
    let vlans = links.vlans().map_err(&failed)?;
    let mut networks: Vec<Network> = there
        .iter()
        .filter_map(|bridge| {
            let vlan_filtering = bridge.bridge?;
            let port = |port: &Interface| Port {
                name: port.name.clone(),
                vm: mark::vm(port).map(str::to_owned),
                overlay: mark::overlay(port),
                mac: mark::guest(port).or(port.mac),
                addresses: mark::addresses(port),
                vlans: vlans
                    .iter()
                    .filter(|(index, _)| vlan_filtering && *index == port.index)
                    .map(|(_, vlan)| *vlan)
                    .collect(),
                // Root receives what the port sends.
                sent_bytes: port.traffic.received_bytes,
                received_bytes: port.traffic.sent_bytes,
                lost: port.traffic.lost,
                guard: None,
            };
            let mark = mark::network(bridge)?;
            let address = addresses.iter().find(|(index, _)| *index == bridge.index);
            let mut own6 = addresses6
                .iter()
                .filter(|(index, _)| *index == bridge.index);
            Some(Network {
                name: bridge.name.clone(),
                state: state(&there, bridge),
                mode: mark.mode,
                address: address.map(|(_, address)| *address),
                address6: own6
                    .next()
                    .map(|(_, address)| *address)
                    .filter(|_| mark.ipv6),
                dhcp: mark.dhcp,
                mac: bridge.mac,
                vlan_filtering,
                mtu: bridge.mtu,
                ports: ports(&there, bridge).map(port).collect(),
            })
        })
        .collect();
    networks.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(networks)
}

/// Lists as [`list`] does, with the guards of the ports.
///
/// # Errors
///
/// The kernel refuses.
pub fn list_guarded() -> Result<Vec<Network>, NetError> {
    let mut networks = list()?;
    let is_guarded = |port: &Port| port.vm.is_some() || port.overlay.is_some();
    let has_guards = |network: &Network| network.ports.iter().any(is_guarded);
    if networks.iter().any(has_guards) {
        let guards = firewall::guards().map_err(kernel("networks"))?;
        for port in networks.iter_mut().flat_map(|network| &mut network.ports) {
            port.guard = guards.get(&port.name).copied();
        }
    }
    Ok(networks)
}

/// A bridge's own state lags behind, and says nothing while it has had no port; its ports tell.
fn state(there: &[Interface], bridge: &Interface) -> &'static str {
    let carries = ports(there, bridge).any(|port| port.up && port.running);
    match (bridge.up, carries) {
        (false, _) => "down",
        (true, false) => "no-carrier",
        (true, true) => "up",
    }
}
