//! The control queue (virtio 1.2 §5.1.6.5): the driver's commands, each with one byte for the answer.

use std::sync::Arc;

use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK, VIRTIO_NET_CTRL_GUEST_OFFLOADS,
    VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET,
    VIRTIO_NET_CTRL_MAC_TABLE_SET, VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET,
    VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_ALLMULTI, VIRTIO_NET_CTRL_RX_ALLUNI,
    VIRTIO_NET_CTRL_RX_NOBCAST, VIRTIO_NET_CTRL_RX_NOMULTI, VIRTIO_NET_CTRL_RX_NOUNI,
    VIRTIO_NET_CTRL_RX_PROMISC, VIRTIO_NET_CTRL_VLAN, VIRTIO_NET_CTRL_VLAN_ADD,
    VIRTIO_NET_CTRL_VLAN_DEL, VIRTIO_NET_ERR, VIRTIO_NET_OK,
};

use super::filter::Filter;
use super::{Card, GUEST_OFFLOADS, tap_offloads};
use crate::worker::event::Event;
use crate::worker::memory::Memory;
use crate::worker::virtio::thread::serve_chains;
use crate::worker::virtio::{Malformed, Serve, Vring};

/// Bytes of the longest command: a table of addresses.
const MAX_COMMAND: usize = 64 << 10;
/// There are 4096 VLAN identifiers, of which 0 stands for none.
const VLANS: u16 = 4096;

pub(super) struct Control {
    card: Arc<Card>,
    features: u64,
}

impl Serve for Control {
    fn run(&mut self, memory: &Memory, vring: &Vring, stop: &Event) -> Result<(), Malformed> {
        serve_chains(memory, vring, stop, |readable, writable| {
            if writable.len() == 0 {
                return Err(Malformed("a command has no room for its answer"));
            }
            let mut command = vec![0; readable.len().min(MAX_COMMAND + 1)];
            readable.read(memory, &mut command);
            let answer = match self.obey(&command) {
                Some(()) => VIRTIO_NET_OK,
                None => VIRTIO_NET_ERR,
            };
            writable.write(memory, &[answer as u8]);
            Ok(1)
        })
    }
}

impl Control {
    pub(super) fn new(card: Arc<Card>, features: u64) -> Self {
        Self { card, features }
    }

    /// Carries out a command. Returns `None` if it is none, or root's kernel refuses.
    fn obey(&self, command: &[u8]) -> Option<()> {
        let ([class, command], data) = command.split_first_chunk()?;
        let (class, command) = (u32::from(*class), u32::from(*command));
        if data.len() > MAX_COMMAND {
            return None;
        }
        let mut state = self.card.state();
        match (class, command) {
            (VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET) => {
                let pairs = u16::from_le_bytes(data.try_into().ok()?);
                if !(1..=self.card.tap.pairs()).contains(&pairs) {
                    return None;
                }
                state.pairs = pairs;
                self.done("queues", self.card.tap.set_pairs(pairs))
            }
            (VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET) => {
                let offloads = u64::from_le_bytes(data.try_into().ok()?);
                if offloads & !(self.features & GUEST_OFFLOADS) != 0 {
                    return None;
                }
                let offloads = tap_offloads(offloads);
                self.done("offloads", self.card.tap.set_offload(offloads))
            }
            (VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK) => {
                state.announces = false;
                data.is_empty().then_some(())
            }
            _ => {
                let mac = self.card.options.mac.octets();
                change_filter(&mut state.filter, class, command, data, mac)?;
                self.done("filter", state.filter.apply(&self.card.tap))
            }
        }
    }

    fn done(&self, what: &str, result: std::io::Result<()>) -> Option<()> {
        self.card.check(what, result).then_some(())
    }
}

/// Changes which frames the driver wants. Returns `None` if that is no such command.
pub(super) fn change_filter(
    filter: &mut Filter,
    class: u32,
    command: u32,
    data: &[u8],
    mac: [u8; 6],
) -> Option<()> {
    match (class, command) {
        (VIRTIO_NET_CTRL_RX, _) => {
            let switch = match command {
                VIRTIO_NET_CTRL_RX_PROMISC => &mut filter.takes_all,
                VIRTIO_NET_CTRL_RX_ALLMULTI => &mut filter.takes_all_multicast,
                VIRTIO_NET_CTRL_RX_ALLUNI => &mut filter.takes_all_unicast,
                VIRTIO_NET_CTRL_RX_NOMULTI => &mut filter.takes_no_multicast,
                VIRTIO_NET_CTRL_RX_NOUNI => &mut filter.takes_no_unicast,
                VIRTIO_NET_CTRL_RX_NOBCAST => &mut filter.takes_no_broadcast,
                _ => return None,
            };
            let [value] = data else { return None };
            *switch = *value != 0;
        }
        (VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET) => {
            let (unicast, rest) = table(data)?;
            let (multicast, rest) = table(rest)?;
            if !rest.is_empty() {
                return None;
            }
            (filter.unicast, filter.multicast) = (unicast, multicast);
        }
        // The address is the network's to give.
        (VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET) if *data == mac => {}
        (VIRTIO_NET_CTRL_VLAN, VIRTIO_NET_CTRL_VLAN_ADD | VIRTIO_NET_CTRL_VLAN_DEL) => {
            let id = u16::from_le_bytes(data.try_into().ok()?);
            let vlans = filter.vlans.as_mut().filter(|_| id < VLANS)?;
            match command {
                VIRTIO_NET_CTRL_VLAN_ADD => vlans.insert(id),
                _ => vlans.remove(&id),
            };
        }
        _ => return None,
    }
    Some(())
}

/// Returns the addresses of a table, and what follows it.
fn table(data: &[u8]) -> Option<(Vec<[u8; 6]>, &[u8])> {
    let (count, rest) = data.split_first_chunk()?;
    let len = usize::try_from(u32::from_le_bytes(*count)).ok()?;
    let (entries, rest) = rest.split_at_checked(len.checked_mul(6)?)?;
    Some((entries.as_chunks().0.to_vec(), rest))
}
