//! Ports: tap devices that are the cables of guests.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr};

use super::address::{Cidr, Cidr6, Mac, Range, Vlan};
use super::firewall::{self, Rules};
use super::link::{Interface, Links};
use super::mark::{self, guest};
use super::service::{self, Lock};
use super::tap::{self, Tap};
use super::{DEFAULT_VLAN, NetError, filter_failed, find, kernel, network, ports};

/// Name of a new tap device. The kernel puts the lowest free number for `%d`.
const PATTERN: &str = "mv%d";

/// The place at which a guest's NIC is plugged in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A network of vmctl's.
    Network(String),
    /// Any bridge.
    Bridge(String),
    /// No bridge: the NIC's cable ends in a tap device that is there already.
    Tap(String),
}

impl Place {
    /// Returns the name of the network, bridge or tap.
    pub fn name(&self) -> &str {
        match self {
            Self::Network(name) | Self::Bridge(name) | Self::Tap(name) => name,
        }
    }
}

/// A cable that is to be.
#[derive(Clone, Debug)]
pub struct Cable<'a> {
    /// Name of the guest's VM.
    pub vm: &'a str,
    /// The place at which the cable ends.
    pub place: &'a Place,
    /// The guest's MAC address.
    pub mac: Mac,
    /// VLAN of the guest's frames.
    pub vlan: Option<Vlan>,
    /// More VLANs, tagged.
    pub trunks: &'a [u16],
    /// Bytes of the largest packet; by default those of the place.
    pub mtu: Option<u16>,
    /// The packets that the guest may send.
    pub rules: Rules,
    /// Pairs of queues.
    pub pairs: u16,
    /// A tap device that has fewer pairs of queues is refused.
    pub min_pairs: u16,
}

/// Plugs a guest in. The cable goes with its descriptors, unless it was there before.
///
/// # Errors
///
/// There is no such place, it has no such VLANs, its largest packet is smaller, or another guest of the
/// bridge has the MAC address.
pub fn plug_in(cable: &Cable<'_>) -> Result<Tap, NetError> {
    let place = cable.place.name();
    let failed = kernel(place);
    let mut links = Links::open().map_err(&failed)?;
    let there = links.all().map_err(&failed)?;
    let end = end(&there, cable.place)?;
    let mtu = mtu(cable, end)?;
    if let Place::Tap(_) = cable.place {
        let tap = existing_tap(cable, end, mtu)?;
        firewall::guard(tap.name(), cable.mac, &cable.rules).map_err(filter_failed(place))?;
        return Ok(tap);
    }
    check_vlans(cable, end)?;
    let own = Own::of(&mut links, end)?;
    own.check(&end.name, &cable.rules.addresses)?;
    check_stations(&there, end, cable, None)?;
    // Until the tap is marked with its addresses, nobody else is leased one.
    let lock = own.is_leased(cable).then(service::lock).transpose();
    let lock = lock.map_err(&failed)?;
    let leased = lock.as_ref();
    let leased = leased.map(|lock| lease(lock, &mut links, cable, end, &own));
    let leased = leased.transpose()?;
    let cable = leased.as_ref().unwrap_or(cable);
    // Whatever fails from here on, the tap goes with its descriptors.
    let tap = Tap::new(PATTERN, cable.pairs, mtu).map_err(&failed)?;
    let index = plug(&mut links, cable, &tap, end.index).map_err(kernel(tap.name()))?;
    drop(lock);
    // Two guests that come at the same time see each other at the latest here.
    let there = links.all().map_err(&failed)?;
    check_stations(&there, end, cable, Some(tap.name()))?;
    firewall::guard(tap.name(), cable.mac, &cable.rules).map_err(filter_failed(place))?;
    links.set_up(index, true).map_err(&failed)?;
    Ok(tap)
}

/// Returns the interface that the cable ends at.
fn end<'a>(there: &'a [Interface], place: &Place) -> Result<&'a Interface, NetError> {
    let name = place.name();
    if let Place::Network(_) = place {
        return network(there, name);
    }
    let printable = name.escape_default();
    let missing = || NetError::NotFound(format!("{printable}: VM 0 has no such interface"));
    let end = there.iter().find(|it| it.name == name);
    let end = end.ok_or_else(missing)?;
    if matches!(place, Place::Bridge(_)) && end.bridge.is_none() {
        return Err(NetError::Conflict(format!("{printable}: not a bridge")));
    }
    Ok(end)
}

fn mtu(cable: &Cable<'_>, end: &Interface) -> Result<u16, NetError> {
    // No frame of Ethernet has more.
    let most = u16::try_from(end.mtu).unwrap_or(u16::MAX);
    match cable.mtu {
        Some(mtu) if mtu > most => Err(NetError::Conflict(format!(
            "{}: its MTU is {most}: a NIC can't have {mtu}",
            end.name
        ))),
        mtu => Ok(mtu.unwrap_or(most)),
    }
}

fn check_vlans(cable: &Cable<'_>, bridge: &Interface) -> Result<(), NetError> {
    let first = cable.vlan.map(Vlan::id);
    match first.or_else(|| cable.trunks.first().copied()) {
        Some(id) if bridge.bridge != Some(true) => Err(NetError::Conflict(format!(
            "{}: VLAN {id}: this bridge does not filter VLANs (\"vmctl net create\" has \
             --vlan-filtering)",
            bridge.name
        ))),
        _ => Ok(()),
    }
}

/// The addresses of root's in a bridge, and with them its networks. There can be several, or none that root knows.
struct Own {
    v4: Vec<Cidr>,
    v6: Vec<Cidr6>,
    /// The guests are leased addresses.
    dhcp: bool,
    /// Addresses that may be leased. `None` is all of the network.
    range: Option<Range>,
}

impl Own {
    fn of(links: &mut Links, bridge: &Interface) -> Result<Self, NetError> {
        let failed = kernel(&bridge.name);
        let v4 = links.addresses().map_err(&failed)?.into_iter();
        let v6 = links.addresses6().map_err(&failed)?.into_iter();
        Ok(Self {
            v4: of_interface(v4, bridge.index),
            v6: of_interface(v6, bridge.index),
            dhcp: mark::network(bridge).is_some_and(|mark| mark.dhcp),
            range: mark::network(bridge).and_then(|mark| mark.range),
        })
    }

    /// Checks that addresses are those of hosts in the bridge's networks.
    fn check(&self, name: &str, addresses: &[IpAddr]) -> Result<(), NetError> {
        for address in addresses {
            let checked = match *address {
                IpAddr::V4(ip) => {
                    let own = self.v4.iter().find(|network| network.contains(ip));
                    let network = own.or(self.v4.first());
                    network.map_or(Ok(()), |network| network.check_host(ip))
                }
                IpAddr::V6(ip) => {
                    let own = self.v6.iter().find(|network| network.contains(ip));
                    let network = own.or(self.v6.first());
                    network.map_or(Ok(()), |network| network.check_host(ip))
                }
            };
            checked.map_err(|line| NetError::Conflict(format!("{name}: {line}")))?;
        }
        Ok(())
    }

    /// Whether the guest is leased an address. It reaches root, who leases them, in VLAN 1 alone.
    fn is_leased(&self, cable: &Cable<'_>) -> bool {
        let vlan = match cable.vlan {
            Some(vlan) => (!vlan.is_tagged()).then_some(vlan.id()),
            None => cable.trunks.is_empty().then_some(DEFAULT_VLAN),
        };
        self.dhcp && vlan == Some(DEFAULT_VLAN)
    }
}

fn of_interface<T>(addresses: impl Iterator<Item = (u32, T)>, index: u32) -> Vec<T> {
    let own = addresses.filter(|(owner, _)| *owner == index);
    own.map(|(_, address)| address).collect()
}

/// Returns a cable with the addresses that its guest is leased.
fn lease<'a>(
    lock: &Lock,
    links: &mut Links,
    cable: &Cable<'a>,
    bridge: &Interface,
    own: &Own,
) -> Result<Cable<'a>, NetError> {
    let failed = kernel(&bridge.name);
    let mut cable = cable.clone();
    let addresses = &mut cable.rules.addresses;
    // A fixed address may be any of the host's; then the network's lease of it is no more than that.
    let wanted = addresses.iter().find_map(|address| match address {
        IpAddr::V4(ip) => Some(*ip),
        IpAddr::V6(_) => None,
    });
    if let Some(&network) = own.v4.first() {
        let there = links.all().map_err(&failed)?;
        let taken: Vec<_> = ports(&there, bridge).flat_map(mark::addresses).collect();
        let in_use = |ip: Ipv4Addr| taken.contains(&IpAddr::V4(ip));
        let range = own.range.unwrap_or(Range::of(network));
        let ip = service::lease(
            lock,
            &bridge.name,
            network,
            range,
            cable.mac,
            wanted,
            &in_use,
        );
        let ip = ip.map_err(&failed)?.ok_or_else(|| {
            let line = match own.range {
                Some(range) => format!("{}: all addresses of {range} are in use", bridge.name),
                None => format!("{}: all addresses of {network} are in use", bridge.name),
            };
            NetError::Conflict(line)
        })?;
        if wanted.is_none() {
            addresses.push(IpAddr::V4(ip));
        }
    }
    // The guest makes this one by itself, whichever other it is given.
    if let Some(network) = own.v6.first() {
        let ip = IpAddr::V6(network.of_host(cable.mac));
        if !addresses.contains(&ip) {
            addresses.push(ip);
        }
    }
    Ok(cable)
}

/// Checks that no station of a bridge but the port `own` has one of the guest's addresses. Root's own MAC
/// address, too, is a station's.
fn check_stations(
    there: &[Interface],
    bridge: &Interface,
    cable: &Cable<'_>,
    own: Option<&str>,
) -> Result<(), NetError> {
    let stations = ports(there, bridge).chain([bridge]);
    for other in stations.filter(|other| own != Some(&*other.name)) {
        let taken = |address: &dyn fmt::Display| {
            let owner = mark::vm(other);
            let owner = owner.map_or(other.name.clone(), |vm| format!("VM {vm}"));
            let line = format!("{}: {owner} has the {address}", bridge.name);
            Err(NetError::Conflict(line))
        };
        if guest(other).or(other.mac) == Some(cable.mac) {
            return taken(&format_args!("MAC address {}", cable.mac));
        }
        let others = mark::addresses(other);
        let is_taken = |address: &&IpAddr| others.contains(address);
        if let Some(address) = cable.rules.addresses.iter().find(is_taken) {
            return taken(&format_args!("address {address}"));
        }
    }
    Ok(())
}

/// Plugs a new tap into a bridge, in its VLANs. It is down. Returns its index.
fn plug(links: &mut Links, cable: &Cable<'_>, tap: &Tap, bridge: u32) -> io::Result<u32> {
    let index = find(links, tap.name())?.index;
    links.set_alias(
        index,
        &mark::of_guest(cable.mac, cable.vm, &cable.rules.addresses),
    )?;
    links.set_mac(index, cable.mac.of_root_end())?;
    links.set_mtu(index, tap.mtu())?;
    links.attach(index, bridge)?;
    let trunks = cable
        .trunks
        .iter()
        .filter_map(|&id| Vlan::new(id, true).ok());
    // A port of a trunk alone has no VLAN for frames without a tag.
    if cable.vlan.is_some() || !cable.trunks.is_empty() {
        links.leave_vlan(index, DEFAULT_VLAN)?;
    }
    for vlan in cable.vlan.into_iter().chain(trunks) {
        links.join_vlan(index, vlan)?;
    }
    Ok(index)
}

/// Opens a tap device that somebody has made.
fn existing_tap(cable: &Cable<'_>, tap: &Interface, mtu: u16) -> Result<Tap, NetError> {
    let name = &*tap.name;
    let conflict = |what: &str| NetError::Conflict(format!("{name}: {what}"));
    let flags = tap::flags(name).map_err(kernel(name))?;
    let flags = flags.ok_or_else(|| conflict("not a tap device"))?;
    let in_use = "another program uses this tap";
    // Several programs can share the queues of a tap.
    if tap.has_carrier {
        return Err(conflict(in_use));
    }
    let pairs = match flags.is_multi_queue {
        true => cable.pairs,
        false if cable.min_pairs > 1 => {
            return Err(conflict(
                "this tap has one queue (\"ip tuntap add\" has multi_queue)",
            ));
        }
        false => 1,
    };
    Tap::existing(name, flags, pairs, mtu).map_err(|e| match e.kind() {
        io::ErrorKind::ResourceBusy => conflict(in_use),
        _ => kernel(name)(e),
    })
}
