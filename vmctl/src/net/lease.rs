//! The IPv4 addresses that guests of a network are given: which one, and that it stays theirs.

use std::hash::Hasher;
use std::net::Ipv4Addr;

use super::address::{Cidr, Mac, Range};

/// Addresses that are remembered in a network. A guest that is not plugged in loses its own when there are more.
const MAX_LEASES: usize = 4096;

/// The leases of a network, the newest last. They are kept as lines `MAC ADDRESS`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Leases(Vec<(Mac, Ipv4Addr)>);

impl Leases {
    /// Reads what [`Self::text`] wrote. A line that it did not write is none.
    pub(super) fn parse(text: &str) -> Self {
        let lease = |line: &str| {
            let (mac, address) = line.split_once(' ')?;
            Some((mac.parse().ok()?, address.parse().ok()?))
        };
        Self(text.lines().filter_map(lease).collect())
    }

    /// Returns the leases as text.
    pub(super) fn text(&self) -> String {
        let lines = self.0.iter().map(|(mac, ip)| format!("{mac} {ip}\n"));
        lines.collect()
    }

    /// Returns the address of the guest `mac`: its old one, or a free one of `range`. `wanted` is its own by its
    /// configuration, and nobody else keeps it. `in_use` tells which addresses stations have. `None` if there
    /// is no free one.
    pub(super) fn of(
        &mut self,
        network: Cidr,
        range: Range,
        mac: Mac,
        wanted: Option<Ipv4Addr>,
        in_use: &dyn Fn(Ipv4Addr) -> bool,
    ) -> Option<Ipv4Addr> {
        let is_free =
            |ip: Ipv4Addr| range.contains(ip) && network.check_host(ip).is_ok() && !in_use(ip);
        let old = self.0.iter().find(|(owner, _)| *owner == mac);
        let old = old.map(|(_, ip)| *ip).filter(|&ip| is_free(ip));
        let address = match wanted.or(old) {
            Some(address) => address,
            None => self.free(range, mac, is_free)?,
        };
        // A lease of a guest that is not plugged in can have this address.
        self.0.retain(|(owner, ip)| *owner != mac && *ip != address);
        while self.0.len() >= MAX_LEASES {
            let idle = self.0.iter().position(|(_, ip)| !in_use(*ip));
            self.0.remove(idle.unwrap_or(0));
        }
        self.0.push((mac, address));
        Some(address)
    }

    /// Returns the first address behind a place of the guest's own that nobody has; else one that is leased to a
    /// guest that is not plugged in, the oldest one.
    fn free(&self, range: Range, mac: Mac, is_free: impl Fn(Ipv4Addr) -> bool) -> Option<Ipv4Addr> {
        let mut hasher = fnv::FnvHasher::default();
        hasher.write(&mac.octets());
        let start = hasher.finish() % range.size();
        // Among more addresses than leases and stations one is free, or there are as many stations.
        let candidates = (0..range.size().min(1 << 17)).map(|n| range.at(start + n));
        let is_leased = |ip: &Ipv4Addr| self.0.iter().any(|(_, leased)| leased == ip);
        let mut new = candidates.filter(|&ip| is_free(ip) && !is_leased(&ip));
        let mut idle = self.0.iter().map(|(_, ip)| *ip).filter(|&ip| is_free(ip));
        new.next().or_else(|| idle.next())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mac(n: u8) -> Mac {
        format!("52:54:00:00:00:{n:02x}").parse().unwrap()
    }

    #[test]
    fn a_guest_keeps_its_address() {
        let network: Cidr = "10.77.0.1/24".parse().unwrap();
        let mut leases = Leases::default();
        let free = |_| false;
        let first = leases
            .of(network, Range::of(network), mac(1), None, &free)
            .unwrap();
        let second = leases
            .of(network, Range::of(network), mac(2), None, &free)
            .unwrap();
        assert_ne!(first, second);
        assert!(network.check_host(first).is_ok());
        let mut leases = Leases::parse(&leases.text());
        assert_eq!(
            leases.of(network, Range::of(network), mac(1), None, &free),
            Some(first)
        );
        // A configuration goes first, and the guest that loses its address gets another.
        assert_eq!(
            leases.of(network, Range::of(network), mac(3), Some(first), &free),
            Some(first)
        );
        let other = leases.of(network, Range::of(network), mac(1), None, &|ip| ip == first);
        assert!(other.is_some_and(|ip| ip != first && ip != second));
        // A network of another size has no room for the old one.
        let small: Cidr = "10.78.0.1/30".parse().unwrap();
        let only = leases.of(small, Range::of(small), mac(1), None, &free);
        assert_eq!(only, Some("10.78.0.2".parse().unwrap()));
    }

    #[test]
    fn addresses_of_guests_that_left_are_used_again() {
        let network: Cidr = "10.77.0.1/29".parse().unwrap();
        let mut leases = Leases::default();
        let given: Vec<_> = (1..=5)
            .map(|n| {
                leases
                    .of(network, Range::of(network), mac(n), None, &|_| false)
                    .unwrap()
            })
            .collect();
        // Five hosts and root's address are all that there are; the fourth guest has left.
        let in_use = |ip| given.contains(&ip) && ip != given[3];
        let reused = leases.of(network, Range::of(network), mac(9), None, &in_use);
        assert_eq!(reused, Some(given[3]));
        assert_eq!(
            leases.of(network, Range::of(network), mac(10), None, &|ip| given
                .contains(&ip)),
            None
        );
        assert_eq!(leases.text().lines().count(), 5);
    }

    #[test]
    fn addresses_are_of_the_range() {
        let network: Cidr = "10.77.0.1/24".parse().unwrap();
        let range: Range = "10.77.0.100-10.77.0.101".parse().unwrap();
        let mut leases = Leases::default();
        let outside = Some("10.77.0.9".parse().unwrap());
        let of = |leases: &mut Leases, n, wanted| {
            leases.of(network, range, mac(n), wanted, &|ip| ip.octets()[3] == 100)
        };
        assert_eq!(of(&mut leases, 1, outside), outside);
        // The address is not this guest's any more.
        let given = of(&mut leases, 1, None);
        assert_eq!(given, Some("10.77.0.101".parse().unwrap()));
        assert!(range.check("10.77.0.1/26".parse().unwrap()).is_err());
        assert!("10.77.0.9-10.77.0.8".parse::<Range>().is_err());
    }

    #[test]
    fn a_large_network_takes_no_longer() {
        let network: Cidr = "10.0.0.1/8".parse().unwrap();
        let mut leases = Leases::default();
        for n in 0..MAX_LEASES as u32 + 10 {
            let mac = Mac::of_text(&n.to_string());
            assert!(
                leases
                    .of(network, Range::of(network), mac, None, &|_| false)
                    .is_some()
            );
        }
        assert_eq!(leases.0.len(), MAX_LEASES);
    }

    #[test]
    fn foreign_lines_are_no_leases() {
        assert_eq!(
            Leases::parse("\nx\n52:54:00:00:00:01 y\n"),
            Leases::default()
        );
    }
}
