//! Aliases of interfaces, by which vmctl knows its own.

use std::net::IpAddr;

use super::Mode;
use super::address::{Mac, Range};
use super::link::Interface;
use super::overlay::OverlayPort;

/// Start of the alias of a network's bridge; its mode follows, and then one word for each other mark.
const NETWORK: &str = "microvisor network: ";
/// Start of the alias of a guest's tap. The guest's MAC address, the name of its VM and its addresses
/// follow.
const GUEST: &str = "microvisor guest: ";
/// Start of the alias of a network's device to other machines. Its identifier and its peers follow.
const OVERLAY: &str = "microvisor overlay: ";
/// Start of the alias of the device that encrypts packets between machines. The identifier follows.
const TUNNEL: &str = "microvisor tunnel: ";
/// Stands between the words of a network's alias.
const COMMA: &str = ", ";
const FORWARDING: &str = "forwarding";
const DHCP: &str = "dhcp";
const IPV6: &str = "ipv6";
/// The addresses follow.
const RANGE: &str = "range ";

/// The facts that the alias of a network's bridge tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NetworkMark {
    pub(super) mode: Mode,
    /// The machine came to forward for this network, or for one that is still there.
    pub(super) started_forwarding: bool,
    /// Guests are leased IPv4 addresses.
    pub(super) dhcp: bool,
    /// Guests are told their IPv6 addresses.
    pub(super) ipv6: bool,
    /// The addresses that guests are leased; by default all of the network's.
    pub(super) range: Option<Range>,
}

impl NetworkMark {
    /// Whether a program serves the network's guests with addresses and names.
    pub(super) fn is_served(self) -> bool {
        self.dhcp || self.ipv6
    }

    /// Returns the alias.
    pub(super) fn alias(self) -> String {
        let marks = [
            (self.started_forwarding, FORWARDING),
            (self.dhcp, DHCP),
            (self.ipv6, IPV6),
        ];
        let words = marks.iter().filter(|(is_set, _)| *is_set);
        let words: String = words.map(|(_, word)| format!("{COMMA}{word}")).collect();
        let range = self.range.map(|range| format!("{COMMA}{RANGE}{range}"));
        let range = range.unwrap_or_default();
        format!("{NETWORK}{}{words}{range}", self.mode.name())
    }
}

/// Returns the mark of a bridge that is a network.
pub(super) fn network(interface: &Interface) -> Option<NetworkMark> {
    interface.bridge?;
    let mut words = interface.alias.strip_prefix(NETWORK)?.split(COMMA);
    let mode = words.next()?;
    let mut mark = NetworkMark {
        mode: Mode::ALL.into_iter().find(|it| it.name() == mode)?,
        started_forwarding: false,
        dhcp: false,
        ipv6: false,
        range: None,
    };
    for word in words {
        match word {
            FORWARDING => mark.started_forwarding = true,
            DHCP => mark.dhcp = true,
            IPV6 => mark.ipv6 = true,
            // A word that vmctl does not know somebody else wrote.
            word => mark.range = Some(word.strip_prefix(RANGE)?.parse().ok()?),
        }
    }
    Some(mark)
}

/// The mode of a bridge that is a network.
pub(super) fn mode(interface: &Interface) -> Option<Mode> {
    network(interface).map(|mark| mark.mode)
}

/// Whether it was for this network, among others, that the machine came to forward.
pub(super) fn started_forwarding(interface: &Interface) -> bool {
    network(interface).is_some_and(|mark| mark.started_forwarding)
}

/// The alias of a device to other machines.
pub(super) fn of_overlay(port: &OverlayPort) -> String {
    format!("{OVERLAY}{port}")
}

/// The alias of the device that encrypts the packets of a network.
pub(super) fn of_tunnel(vni: u32) -> String {
    format!("{TUNNEL}{vni}")
}

/// The machines that a device leads to, if it is such a device.
pub(super) fn overlay(interface: &Interface) -> Option<OverlayPort> {
    OverlayPort::parse(interface.alias.strip_prefix(OVERLAY)?)
}

/// The alias of a guest's tap.
pub(super) fn of_guest(mac: Mac, vm: &str, addresses: &[IpAddr]) -> String {
    let addresses = addresses.iter().map(|ip| format!(" {ip}"));
    format!("{GUEST}{mac} {vm}{}", addresses.collect::<String>())
}

/// The guest's MAC address, if it is a guest's tap.
pub(super) fn guest(interface: &Interface) -> Option<Mac> {
    words(interface)?.next()?.parse().ok()
}

/// The name of the guest's VM, if it is a guest's tap.
pub(super) fn vm(interface: &Interface) -> Option<&str> {
    words(interface)?.nth(1)
}

/// The addresses that the guest may use, if it is a guest's tap. None if it may use any.
pub(super) fn addresses(interface: &Interface) -> Vec<IpAddr> {
    let addresses = words(interface).into_iter().flatten().skip(2);
    addresses.filter_map(|word| word.parse().ok()).collect()
}

fn words(interface: &Interface) -> Option<impl Iterator<Item = &str>> {
    Some(interface.alias.strip_prefix(GUEST)?.split(' '))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(alias: String, bridge: Option<bool>) -> Interface {
        Interface {
            alias,
            bridge,
            ..Interface::default()
        }
    }

    #[test]
    fn marks_are_read_as_they_are_written() {
        for bits in 0..16 {
            for mode in Mode::ALL {
                let mark = NetworkMark {
                    mode,
                    started_forwarding: bits & 1 != 0,
                    dhcp: bits & 2 != 0,
                    ipv6: bits & 4 != 0,
                    range: (bits & 8 != 0).then(|| "10.77.0.9-10.77.0.99".parse().unwrap()),
                };
                let it = interface(mark.alias(), Some(false));
                assert_eq!(network(&it), Some(mark));
            }
        }
        let other = interface("microvisor network: nat, more".to_owned(), Some(false));
        assert_eq!(network(&other), None);
        let mac: Mac = "52:54:00:00:00:01".parse().unwrap();
        let tap = interface(of_guest(mac, "web", &[]), None);
        assert_eq!((guest(&tap), vm(&tap)), (Some(mac), Some("web")));
        assert_eq!(addresses(&tap), [] as [IpAddr; 0]);
        let both = ["10.77.0.10".parse().unwrap(), "fd00::10".parse().unwrap()];
        let tap = interface(of_guest(mac, "web", &both), None);
        assert_eq!((guest(&tap), vm(&tap)), (Some(mac), Some("web")));
        assert_eq!(addresses(&tap), both);
        let other = interface("a cable".to_owned(), None);
        assert_eq!((guest(&other), vm(&other)), (None, None));
    }
}
