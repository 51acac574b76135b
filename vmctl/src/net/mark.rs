//! Aliases of interfaces, by which vmctl knows its own.

use std::net::IpAddr;

use super::Mode;
use super::address::Mac;
use super::link::Interface;

/// What the alias of a network's bridge begins with; its mode follows.
const NETWORK: &str = "microvisor network: ";
/// What the alias of a guest's tap begins with. The guest's MAC address, the name of its VM and its addresses
/// follow.
const GUEST: &str = "microvisor guest: ";
/// Follows the mode where NAT found the machine not forwarding.
const FORWARDING: &str = ", forwarding";

/// A network's alias; `started` if the machine came to forward for it, or for one that is still there.
pub(super) fn of_network(mode: Mode, started: bool) -> String {
    let forwarding = if started { FORWARDING } else { "" };
    format!("{NETWORK}{}{forwarding}", mode.name())
}

/// The alias of a guest's tap.
pub(super) fn of_guest(mac: Mac, vm: &str, addresses: &[IpAddr]) -> String {
    let addresses = addresses.iter().map(|ip| format!(" {ip}"));
    format!("{GUEST}{mac} {vm}{}", addresses.collect::<String>())
}

/// The mode of a bridge that is a network.
pub(super) fn mode(interface: &Interface) -> Option<Mode> {
    interface.bridge?;
    let mode = interface.alias.strip_prefix(NETWORK)?;
    let mode = mode.strip_suffix(FORWARDING).unwrap_or(mode);
    Mode::ALL.into_iter().find(|it| it.name() == mode)
}

/// Whether it was for this network, among others, that the machine came to forward.
pub(super) fn started_forwarding(interface: &Interface) -> bool {
    mode(interface) == Some(Mode::Nat) && interface.alias.ends_with(FORWARDING)
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
        for mode in Mode::ALL {
            for started in [false, true] {
                let it = interface(of_network(mode, started), Some(false));
                assert_eq!(super::mode(&it), Some(mode));
                assert_eq!(started_forwarding(&it), started && mode == Mode::Nat);
            }
        }
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
