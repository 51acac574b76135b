//! Network cards of a configuration: their cables, which are plugged in before the worker loses the
//! privileges for it, and their options.

use super::end::End;
use super::virtio::net::Options;
use crate::config::{LinkState, NicConfig, VmConfig};
use crate::nic::{self, Opened};

/// Plugs all cables in.
///
/// # Errors
///
/// One line that names the network, bridge or tap.
pub(super) fn open(config: &VmConfig) -> Result<Vec<Opened>, End> {
    let pairs = config.default_pairs();
    let open = |nic| Opened::new(&config.name, nic, pairs);
    let opened: Result<_, _> = config.nics.iter().map(open).collect();
    opened.map_err(End::start_failed)
}

/// Returns the options of a card.
pub(super) fn options(nic: &NicConfig) -> Options {
    let place = nic.place();
    Options {
        name: nic.name.clone(),
        place: place.map_or_else(String::new, |place| place.name().to_owned()),
        mac: nic::mac(nic),
        is_up: nic.link == LinkState::Up,
    }
}
