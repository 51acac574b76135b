//! The frames that the driver wants (virtio 1.2 §5.1.6.5.1 to §5.1.6.5.3). Root's kernel sorts them out before
//! they reach the queue, as far as it can: what it lets through the driver drops.

use std::collections::BTreeSet;
use std::io;

use virtio_bindings::virtio_net::{VIRTIO_NET_F_CTRL_RX, VIRTIO_NET_F_CTRL_VLAN};

use crate::net::{Mac, Tap};

/// VLANs that are told to root's kernel. With more of them it sorts none out.
const MAX_VLANS: usize = 64;

/// The filter that the driver has asked for.
#[derive(Clone, Debug, Default)]
pub(super) struct Filter {
    mac: Option<Mac>,
    /// All frames are wanted. So it is until the driver says otherwise.
    pub(super) takes_all: bool,
    pub(super) takes_all_multicast: bool,
    pub(super) takes_all_unicast: bool,
    pub(super) takes_no_multicast: bool,
    pub(super) takes_no_unicast: bool,
    pub(super) takes_no_broadcast: bool,
    /// Addresses of one station, and of several.
    pub(super) unicast: Vec<[u8; 6]>,
    pub(super) multicast: Vec<[u8; 6]>,
    /// VLANs of tagged frames; `None` if all are wanted.
    pub(super) vlans: Option<BTreeSet<u16>>,
}

impl Filter {
    /// Returns the filter for a driver that has accepted `features` and has sent no command yet.
    pub(super) fn new(features: u64, mac: Mac) -> Self {
        let vlans = features & 1 << VIRTIO_NET_F_CTRL_VLAN != 0;
        Self {
            mac: (features & 1 << VIRTIO_NET_F_CTRL_RX != 0).then_some(mac),
            takes_all: true,
            vlans: vlans.then(BTreeSet::new),
            ..Self::default()
        }
    }

    /// Has root's kernel sort frames out.
    ///
    /// # Errors
    ///
    /// The tap is gone.
    pub(super) fn apply(&self, tap: &Tap) -> io::Result<()> {
        tap.set_addresses(self.takes_all_multicast, &self.addresses())?;
        let vlans = self.vlans.as_ref().filter(|_| !self.takes_all);
        let vlans = vlans.filter(|vlans| vlans.len() <= MAX_VLANS);
        let vlans = vlans.map(|vlans| vlans.iter().copied().collect::<Vec<_>>());
        tap.set_vlans(vlans.as_deref())
    }

    /// Returns the destinations of wanted frames; none if all are.
    pub(super) fn addresses(&self) -> Vec<[u8; 6]> {
        let Some(mac) = self.mac else {
            return Vec::new();
        };
        if self.takes_all || self.takes_all_unicast {
            return Vec::new();
        }
        let mut addresses = Vec::new();
        if !self.takes_no_unicast {
            addresses.push(mac.octets());
            addresses.extend(&self.unicast);
        }
        if !self.takes_no_broadcast {
            addresses.push([0xff; 6]);
        }
        if !self.takes_no_multicast {
            addresses.extend(&self.multicast);
        }
        // No address at all would be a filter that lets everything through.
        if addresses.is_empty() {
            addresses.push([0; 6]);
        }
        addresses
    }
}
