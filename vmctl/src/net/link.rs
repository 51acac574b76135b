//! Interfaces, as netlink tells of them and changes them. What is a network of ours is for the module
//! above to know.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{
    AfSpecBridge, BridgeVlanInfo, BridgeVlanInfoFlags, InfoBridge, InfoData, InfoKind, InfoVxlan,
    LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage, State,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::address::{Cidr, Cidr6, Mac, Vlan};
use super::netlink::Socket;

/// The station that stands for everybody, and for those that are not known.
pub(super) const EVERYBODY: [u8; 6] = [0; 6];

/// One interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Interface {
    pub(super) index: u32,
    pub(super) name: String,
    /// None if it is no Ethernet interface.
    pub(super) mac: Option<Mac>,
    /// A text that whoever made it can leave.
    pub(super) alias: String,
    /// The bridge that it is a port of.
    pub(super) controller: Option<u32>,
    /// Whether it is to carry frames.
    pub(super) up: bool,
    /// Whether nothing is known to keep frames from it.
    pub(super) running: bool,
    /// Whether somebody is at the other end of its cable.
    pub(super) has_carrier: bool,
    /// Bytes of the largest packet.
    pub(super) mtu: u32,
    /// If it is a bridge, whether that filters VLANs.
    pub(super) bridge: Option<bool>,
    /// The traffic that it has carried.
    pub(super) traffic: Traffic,
}

/// The traffic that an interface has carried, from root's side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Traffic {
    pub(super) received_bytes: u64,
    pub(super) sent_bytes: u64,
    /// Frames that it could not send.
    pub(super) lost: u64,
}

/// Interfaces, and the way to change them.
#[derive(Debug)]
pub(super) struct Links(Socket);

impl Links {
    pub(super) fn open() -> io::Result<Self> {
        Socket::route().map(Self)
    }

    /// All interfaces.
    pub(super) fn all(&mut self) -> io::Result<Vec<Interface>> {
        let found = self
            .0
            .dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
        Ok(found
            .into_iter()
            .filter_map(|message| match message {
                RouteNetlinkMessage::NewLink(link) => Some(interface(link)),
                _ => None,
            })
            .collect())
    }

    /// IPv4 addresses, each with the index of its interface.
    pub(super) fn addresses(&mut self) -> io::Result<Vec<(u32, Cidr)>> {
        let found = self.addresses_of(AddressFamily::Inet)?.into_iter();
        let networks = found.filter_map(|message| {
            let ip = message.attributes.iter().find_map(local)?;
            let network = Cidr::from_kernel(ip, message.header.prefix_len);
            Some((message.header.index, network))
        });
        Ok(networks.collect())
    }

    /// IPv6 addresses of networks with a prefix of 64 bits, each with the index of its interface.
    pub(super) fn addresses6(&mut self) -> io::Result<Vec<(u32, Cidr6)>> {
        let found = self.addresses_of(AddressFamily::Inet6)?.into_iter();
        let networks = found.filter_map(|message| {
            let ip = message.attributes.iter().find_map(global)?;
            let network = Cidr6::from_kernel(ip, message.header.prefix_len)?;
            Some((message.header.index, network))
        });
        Ok(networks.collect())
    }

    fn addresses_of(&mut self, family: AddressFamily) -> io::Result<Vec<AddressMessage>> {
        let mut wanted = AddressMessage::default();
        wanted.header.family = family;
        let found = self.0.dump(RouteNetlinkMessage::GetAddress(wanted))?;
        let addresses = found.into_iter().filter_map(|message| match message {
            RouteNetlinkMessage::NewAddress(message) => Some(message),
            _ => None,
        });
        Ok(addresses.collect())
    }

    /// VLANs of bridges and their ports, each with the index of its interface.
    pub(super) fn vlans(&mut self) -> io::Result<Vec<(u32, Vlan)>> {
        let mut wanted = bridge_message(0);
        let mask = LinkAttribute::ExtMask(vec![LinkExtentMask::Brvlan]);
        wanted.attributes.push(mask);
        let found = self.0.dump(RouteNetlinkMessage::GetLink(wanted))?;
        let mut vlans = Vec::new();
        for message in found {
            let RouteNetlinkMessage::NewLink(link) = message else {
                continue;
            };
            for attribute in &link.attributes {
                let LinkAttribute::AfSpecBridge(list) = attribute else {
                    continue;
                };
                let found = list.iter().filter_map(vlan);
                vlans.extend(found.map(|vlan| (link.header.index, vlan)));
            }
        }
        Ok(vlans)
    }

    /// Makes a bridge; it is down.
    pub(super) fn add_bridge(&mut self, name: &str, vlan_filtering: bool) -> io::Result<()> {
        let data = InfoData::Bridge(vec![InfoBridge::VlanFiltering(vlan_filtering)]);
        self.add_link(name, InfoKind::Bridge, Some(data))
    }

    /// Makes a VXLAN device, whose packets have IPv6 if there is a `local` address; it is down. It has no peers.
    pub(super) fn add_vxlan(
        &mut self,
        name: &str,
        vni: u32,
        port: u16,
        local: Option<Ipv6Addr>,
    ) -> io::Result<()> {
        let mut data = vec![
            InfoVxlan::Id(vni),
            InfoVxlan::Port(port),
            InfoVxlan::Learning(true),
        ];
        data.extend(local.map(InfoVxlan::Local6));
        self.add_link(name, InfoKind::Vxlan, Some(InfoData::Vxlan(data)))
    }

    /// Makes a WireGuard device without a key; it is down.
    pub(super) fn add_wireguard(&mut self, name: &str) -> io::Result<()> {
        self.add_link(name, InfoKind::Wireguard, None)
    }

    fn add_link(&mut self, name: &str, kind: InfoKind, data: Option<InfoData>) -> io::Result<()> {
        let info = [LinkInfo::Kind(kind)].into_iter();
        let info = info.chain(data.map(LinkInfo::Data)).collect();
        let mut link = LinkMessage::default();
        link.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::LinkInfo(info),
        ];
        self.0.request(
            RouteNetlinkMessage::NewLink(link),
            NLM_F_CREATE | NLM_F_EXCL,
        )
    }

    /// Returns which stations a VXLAN device sends to which peers: MAC addresses, zeros for everybody and for
    /// stations that it does not know.
    pub(super) fn routes(&mut self, index: u32) -> io::Result<Vec<(Vec<u8>, IpAddr)>> {
        let mut wanted = NeighbourMessage::default();
        wanted.header.family = AddressFamily::Bridge;
        let found = self.0.dump(RouteNetlinkMessage::GetNeighbour(wanted))?;
        let route = |message| match message {
            RouteNetlinkMessage::NewNeighbour(entry) if entry.header.ifindex == index => {
                Some((station(&entry)?, peer(&entry)?))
            }
            _ => None,
        };
        Ok(found.into_iter().filter_map(route).collect())
    }

    /// Has a VXLAN device send frames to everybody, and to stations that it does not know, to a peer, too.
    pub(super) fn add_flood(&mut self, index: u32, peer: IpAddr) -> io::Result<()> {
        self.0.request(
            RouteNetlinkMessage::NewNeighbour(route(index, EVERYBODY.to_vec(), peer)),
            NLM_F_CREATE | NLM_F_APPEND,
        )
    }

    /// Has a VXLAN device send what is for a station no longer to a peer.
    pub(super) fn remove_route(
        &mut self,
        index: u32,
        station: Vec<u8>,
        peer: IpAddr,
    ) -> io::Result<()> {
        let entry = RouteNetlinkMessage::DelNeighbour(route(index, station, peer));
        match self.0.request(entry, 0) {
            // The device has forgotten the station by itself.
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }

    pub(super) fn delete(&mut self, index: u32) -> io::Result<()> {
        self.0
            .request(RouteNetlinkMessage::DelLink(message(index)), 0)
    }

    pub(super) fn set_alias(&mut self, index: u32, alias: &str) -> io::Result<()> {
        self.set(index, LinkAttribute::IfAlias(alias.to_owned()))
    }

    pub(super) fn set_mac(&mut self, index: u32, mac: Mac) -> io::Result<()> {
        self.set(index, LinkAttribute::Address(mac.octets().to_vec()))
    }

    pub(super) fn set_mtu(&mut self, index: u32, mtu: u16) -> io::Result<()> {
        self.set(index, LinkAttribute::Mtu(u32::from(mtu)))
    }

    /// Makes an interface a port of a bridge.
    pub(super) fn attach(&mut self, index: u32, bridge: u32) -> io::Result<()> {
        self.set(index, LinkAttribute::Controller(bridge))
    }

    pub(super) fn set_up(&mut self, index: u32, up: bool) -> io::Result<()> {
        let mut link = message(index);
        if up {
            link.header.flags = LinkFlags::Up;
        }
        link.header.change_mask = LinkFlags::Up;
        self.0.request(RouteNetlinkMessage::SetLink(link), 0)
    }

    fn set(&mut self, index: u32, attribute: LinkAttribute) -> io::Result<()> {
        let mut link = message(index);
        link.attributes.push(attribute);
        self.0.request(RouteNetlinkMessage::SetLink(link), 0)
    }

    pub(super) fn add_address(&mut self, index: u32, address: Cidr) -> io::Result<()> {
        let ip = IpAddr::V4(address.address());
        let mut wanted = AddressMessage::default();
        wanted.header.family = AddressFamily::Inet;
        wanted.header.prefix_len = address.prefix();
        wanted.attributes = vec![
            AddressAttribute::Local(ip),
            AddressAttribute::Address(ip),
            AddressAttribute::Broadcast(address.broadcast()),
        ];
        self.add(index, wanted)
    }

    /// Gives an interface an IPv6 address, for use at once: without ports a bridge has no carrier, and the kernel
    /// could not ask whether another station has the address.
    pub(super) fn add_address6(&mut self, index: u32, address: Cidr6) -> io::Result<()> {
        let mut wanted = AddressMessage::default();
        wanted.header.family = AddressFamily::Inet6;
        wanted.header.prefix_len = Cidr6::PREFIX;
        wanted.header.flags = AddressHeaderFlags::Nodad;
        wanted.attributes = vec![AddressAttribute::Address(IpAddr::V6(address.address()))];
        self.add(index, wanted)
    }

    fn add(&mut self, index: u32, mut address: AddressMessage) -> io::Result<()> {
        address.header.index = index;
        self.0.request(
            RouteNetlinkMessage::NewAddress(address),
            NLM_F_CREATE | NLM_F_EXCL,
        )
    }

    /// Puts a port into a VLAN.
    pub(super) fn join_vlan(&mut self, port: u32, vlan: Vlan) -> io::Result<()> {
        let flags = if vlan.is_tagged() {
            BridgeVlanInfoFlags::empty()
        } else {
            BridgeVlanInfoFlags::Pvid | BridgeVlanInfoFlags::Untagged
        };
        let link = vlan_message(port, vlan.id(), flags);
        self.0.request(RouteNetlinkMessage::SetLink(link), 0)
    }

    /// Puts a port into all VLANs but the first one, tagged.
    pub(super) fn join_other_vlans(&mut self, port: u32) -> io::Result<()> {
        let mut link = bridge_message(port);
        let ends = [
            (2, BridgeVlanInfoFlags::RangeBegin),
            (4094, BridgeVlanInfoFlags::RangeEnd),
        ];
        let info = |(vid, flags)| AfSpecBridge::VlanInfo(BridgeVlanInfo { flags, vid });
        let range = ends.into_iter().map(info).collect();
        link.attributes = vec![LinkAttribute::AfSpecBridge(range)];
        self.0.request(RouteNetlinkMessage::SetLink(link), 0)
    }

    /// Takes a port out of a VLAN.
    pub(super) fn leave_vlan(&mut self, port: u32, id: u16) -> io::Result<()> {
        let link = vlan_message(port, id, BridgeVlanInfoFlags::empty());
        self.0.request(RouteNetlinkMessage::DelLink(link), 0)
    }
}

fn message(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message
}

/// To the bridge's part of an interface.
fn bridge_message(index: u32) -> LinkMessage {
    let mut message = message(index);
    message.header.interface_family = AddressFamily::Bridge;
    message
}

/// The entry of a VXLAN device for frames to a station.
fn route(index: u32, station: Vec<u8>, peer: IpAddr) -> NeighbourMessage {
    let mut entry = NeighbourMessage::default();
    entry.header.family = AddressFamily::Bridge;
    entry.header.ifindex = index;
    entry.header.state = NeighbourState::Permanent;
    entry.header.flags = NeighbourFlags::Own;
    entry.attributes = vec![
        NeighbourAttribute::LinkLayerAddress(station),
        NeighbourAttribute::Destination(NeighbourAddress::from(peer)),
    ];
    entry
}

/// The station of such an entry.
fn station(entry: &NeighbourMessage) -> Option<Vec<u8>> {
    entry.attributes.iter().find_map(|it| match it {
        NeighbourAttribute::LinkLayerAddress(station) => Some(station.clone()),
        _ => None,
    })
}

/// The peer of such an entry.
fn peer(entry: &NeighbourMessage) -> Option<IpAddr> {
    entry.attributes.iter().find_map(|it| match it {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
        _ => None,
    })
}

fn vlan_message(port: u32, vid: u16, flags: BridgeVlanInfoFlags) -> LinkMessage {
    let mut message = bridge_message(port);
    let vlan = AfSpecBridge::VlanInfo(BridgeVlanInfo { flags, vid });
    message.attributes = vec![LinkAttribute::AfSpecBridge(vec![vlan])];
    message
}

fn interface(link: LinkMessage) -> Interface {
    let mut found = Interface {
        index: link.header.index,
        up: link.header.flags.contains(LinkFlags::Up),
        ..Interface::default()
    };
    for attribute in link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => found.name = name,
            LinkAttribute::Address(bytes) => found.mac = Mac::from_kernel(&bytes),
            LinkAttribute::IfAlias(alias) => found.alias = alias,
            LinkAttribute::Mtu(mtu) => found.mtu = mtu,
            LinkAttribute::Carrier(carrier) => found.has_carrier = carrier != 0,
            LinkAttribute::Controller(index) => found.controller = Some(index),
            LinkAttribute::OperState(state) => {
                found.running = matches!(state, State::Up | State::Unknown);
            }
            LinkAttribute::Stats64(stats) => {
                found.traffic = Traffic {
                    received_bytes: stats.rx_bytes,
                    sent_bytes: stats.tx_bytes,
                    lost: stats.tx_dropped,
                };
            }
            LinkAttribute::LinkInfo(infos) => found.bridge = bridge(&infos),
            _ => {}
        }
    }
    found
}

fn bridge(infos: &[LinkInfo]) -> Option<bool> {
    if !infos.contains(&LinkInfo::Kind(InfoKind::Bridge)) {
        return None;
    }
    let data = infos.iter().find_map(|info| match info {
        LinkInfo::Data(InfoData::Bridge(data)) => Some(data),
        _ => None,
    });
    Some(data.is_some_and(|data| data.contains(&InfoBridge::VlanFiltering(true))))
}

fn local(attribute: &AddressAttribute) -> Option<Ipv4Addr> {
    match attribute {
        AddressAttribute::Local(IpAddr::V4(ip)) => Some(*ip),
        _ => None,
    }
}

fn global(attribute: &AddressAttribute) -> Option<Ipv6Addr> {
    match attribute {
        AddressAttribute::Address(IpAddr::V6(ip)) => Some(*ip),
        _ => None,
    }
}

fn vlan(attribute: &AfSpecBridge) -> Option<Vlan> {
    match attribute {
        AfSpecBridge::VlanInfo(info) => {
            let tagged = !info.flags.contains(BridgeVlanInfoFlags::Untagged);
            Vlan::new(info.vid, tagged).ok()
        }
        _ => None,
    }
}
