//! Network cards of a configuration: their cables, which are plugged in before the worker loses the
//! privileges for it, and their options.

use std::fs::File;
use std::io::ErrorKind;

use super::disks::DOORBELLS;
use super::end::End;
use super::journal;
use super::virtio::net::{Options, vhost};
use crate::config::{LinkState, NicConfig, VmConfig};
use crate::net::{self, Cable, Mac, NetError, Tap};

/// Largest default number of pairs of queues.
const DEFAULT_PAIRS: u32 = 4;

/// What a card works with.
#[derive(Debug)]
pub(super) struct Opened {
    /// The other end of its cable.
    pub(super) tap: Tap,
    /// The kernel's part of each pair of queues; none if the kernel has no vhost-net.
    pub(super) vhosts: Vec<File>,
}

/// Plugs all cables in.
///
/// # Errors
///
/// One line that names the network, bridge or tap.
pub(super) fn open(config: &VmConfig) -> Result<Vec<Opened>, End> {
    let pairs = default_pairs(config.vcpus, config.nics.len());
    let open = |nic: &NicConfig| open_one(&config.name, nic, pairs);
    let opened: Result<_, _> = config.nics.iter().map(open).collect();
    opened.map_err(End::start_failed)
}

fn open_one(vm: &str, nic: &NicConfig, default_pairs: u16) -> Result<Opened, NetError> {
    let incomplete = || NetError::Invalid(format!("{}: the NIC has no place", nic.name));
    let place = nic.place().ok_or_else(incomplete)?;
    let tap = net::plug_in(&Cable {
        vm,
        place: &place,
        mac: mac(vm, nic),
        vlan: nic.vlan,
        trunks: &nic.trunks,
        mtu: nic.mtu,
        pairs: nic.queues.unwrap_or(default_pairs),
        min_pairs: nic.queues.unwrap_or(1),
    })?;
    let vhosts: Result<_, _> = (0..tap.pairs()).map(|_| vhost::open()).collect();
    let vhosts = vhosts.unwrap_or_else(|e| {
        if e.kind() != ErrorKind::NotFound {
            journal::say(format_args!("{}: vhost-net: {e}", nic.name));
        }
        Vec::new()
    });
    Ok(Opened { tap, vhosts })
}

/// Returns the MAC address of a NIC, which each NIC of a VM's configuration has.
fn mac(vm: &str, nic: &NicConfig) -> Mac {
    nic.mac
        .unwrap_or_else(|| Mac::of_text(&format!("{vm}/{}", nic.name)))
}

/// Returns how many pairs of queues each of `nics` cards has unless its configuration says. A pair has two
/// doorbells, and the control queue has one; the cards share half of the doorbells.
fn default_pairs(vcpus: u32, nics: usize) -> u16 {
    let share = DOORBELLS / 2 / nics.max(1) as u32;
    let pairs = share.saturating_sub(1) / 2;
    vcpus.min(DEFAULT_PAIRS).min(pairs).max(1) as u16
}

/// Returns the options of a card of the VM `vm`.
pub(super) fn options(vm: &str, nic: &NicConfig) -> Options {
    let place = nic.place();
    Options {
        name: nic.name.clone(),
        place: place.map_or_else(String::new, |place| place.name().to_owned()),
        mac: mac(vm, nic),
        is_up: nic.link == LinkState::Up,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_leave_doorbells_to_disks() {
        for (vcpus, nics, pairs) in [(1, 1, 1), (8, 1, 4), (8, 3, 4), (8, 6, 2), (8, 30, 1)] {
            assert_eq!(
                default_pairs(vcpus, nics),
                pairs,
                "{vcpus} CPUs, {nics} NICs"
            );
        }
    }
}
