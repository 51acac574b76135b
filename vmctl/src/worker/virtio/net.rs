//! A network card (virtio 1.2 §5.1), at the other end of whose cable is a tap device.
//!
//! If root's kernel has vhost-net, the kernel serves the queues (`vhost`). Otherwise a thread for each queue
//! does, which copies nothing: root's kernel reads frames from guest memory and writes them there
//! (`transmit`, `receive`). What the guest's driver wants to change comes by the control queue
//! (`control`), and most of it is a setting of the tap (`filter`).

mod control;
mod filter;
mod receive;
#[cfg(test)]
mod tests;
mod transmit;

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use guest_proto::control::NicStatus;
use log::warn;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_MAC_ADDR,
    VIRTIO_NET_F_CTRL_RX, VIRTIO_NET_F_CTRL_VLAN, VIRTIO_NET_F_CTRL_VQ,
    VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ,
    VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS, VIRTIO_NET_S_ANNOUNCE,
    VIRTIO_NET_S_LINK_UP,
};

use self::control::Control;
use self::filter::Filter;
use self::receive::Receive;
use self::transmit::Transmit;
use super::vhost::{Relay, Vhost};
use super::{Device, Kind, Serve, read_bytes};
use crate::net::tap::{self, offload};
use crate::net::{Mac, Tap};
use crate::worker::journal;
use crate::worker::memory::Memory;

/// Largest size of a queue.
const QUEUE_SIZE: u16 = 256;
/// Bytes of the control queue's commands are few, and so are its commands.
const CONTROL_QUEUE_SIZE: u16 = 64;
/// Frames that wait in a tap at most, unless somebody has changed its `txqueuelen`, and some more.
const OLD_FRAMES: u32 = 1024;
/// Bytes of an Ethernet header with two VLAN tags.
const ETHERNET_HEADER: usize = 22;
/// Bytes of the largest packet that is sent in segments.
const MAX_PACKET: usize = 65535;

/// Features of every card. A card with several pairs of queues has `VIRTIO_NET_F_MQ`, too.
const FEATURES: u64 = 1 << VIRTIO_NET_F_MAC
    | 1 << VIRTIO_NET_F_MTU
    | 1 << VIRTIO_NET_F_STATUS
    | 1 << VIRTIO_NET_F_MRG_RXBUF
    | 1 << VIRTIO_NET_F_CSUM
    | 1 << VIRTIO_NET_F_HOST_TSO4
    | 1 << VIRTIO_NET_F_HOST_TSO6
    | 1 << VIRTIO_NET_F_HOST_ECN
    | GUEST_OFFLOADS
    | 1 << VIRTIO_NET_F_CTRL_VQ
    | 1 << VIRTIO_NET_F_CTRL_RX
    | 1 << VIRTIO_NET_F_CTRL_VLAN
    | 1 << VIRTIO_NET_F_CTRL_MAC_ADDR
    | 1 << VIRTIO_NET_F_CTRL_GUEST_OFFLOADS
    | 1 << VIRTIO_NET_F_GUEST_ANNOUNCE;
/// Offloads that the driver can take: features, and bits of the command that changes them.
const GUEST_OFFLOADS: u64 =
    1 << VIRTIO_NET_F_GUEST_CSUM | GUEST_SEGMENTS | 1 << VIRTIO_NET_F_GUEST_ECN;
/// Packets that are larger than the MTU.
const GUEST_SEGMENTS: u64 = 1 << VIRTIO_NET_F_GUEST_TSO4 | 1 << VIRTIO_NET_F_GUEST_TSO6;

/// A card's settings.
#[derive(Clone, Debug)]
pub struct Options {
    /// Name in the log.
    pub name: String,
    /// Network, bridge or tap that it is plugged into.
    pub place: String,
    /// MAC address.
    pub mac: Mac,
    /// Whether the cable is plugged in.
    pub is_up: bool,
}

/// The state that all threads of a card share.
#[derive(Debug)]
struct Card {
    options: Options,
    tap: Tap,
    /// The kernel's part of each pair of queues; none if the kernel has no vhost-net.
    vhosts: Vec<Arc<Vhost>>,
    state: Mutex<State>,
    counters: Counters,
}

/// The state that changes while a driver uses the card.
#[derive(Clone, Debug)]
struct State {
    is_up: bool,
    /// The driver is to announce itself to the network.
    announces: bool,
    /// Root's kernel serves the queues.
    is_in_kernel: bool,
    /// Pairs of queues in use.
    pairs: u16,
    filter: Filter,
}

/// Frames that did not get through.
#[derive(Debug, Default)]
struct Counters {
    /// The guest had no buffers that were large enough.
    lost: AtomicU64,
    /// The guest sent what is no frame.
    refused: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Card {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Prepares root's kernel for a driver that accepted `features`. Returns whether it serves the queues.
    fn prepare_kernel(&self, features: u64) -> bool {
        let prepare = |vhost: &Arc<Vhost>| vhost.prepare(features, 1 << VIRTIO_NET_F_MRG_RXBUF);
        let prepared = self.vhosts.iter().try_for_each(prepare);
        if let Err(e) = &prepared {
            let name = &self.options.name;
            warn!("{name}: vhost-net: {e}; the worker serves it");
        }
        prepared.is_ok() && !self.vhosts.is_empty()
    }

    /// Returns the code that has root's kernel serve a queue, if it is the kernel's.
    fn relay(&self, pair: usize, index: usize) -> Option<Relay> {
        let vhost = self
            .vhosts
            .get(pair)
            .filter(|_| self.state().is_in_kernel)?;
        let relay = Relay::to_tap(Arc::clone(vhost), index, self.tap.queue(pair)?);
        if let Err(e) = &relay {
            let name = &self.options.name;
            warn!("{name}: vhost-net: {e}; the worker serves it");
        }
        relay.ok()
    }

    /// Logs that root's kernel does not do something with the tap.
    fn check(&self, what: &str, result: io::Result<()>) -> bool {
        if let Err(e) = &result {
            let name = &self.options.name;
            journal::guest(format_args!("{name}: {}: {what}: {e}", self.tap.name()));
        }
        result.is_ok()
    }
}

/// The device.
#[derive(Debug)]
pub struct Net {
    card: Arc<Card>,
    queues: Vec<u16>,
}

impl Net {
    /// Makes a card whose cable ends in `tap`. `vhosts` are descriptors of `/dev/vhost-net` for each pair of
    /// queues, or are empty.
    pub fn new(tap: Tap, vhosts: Vec<File>, options: Options, memory: Memory) -> Self {
        let mut queues = vec![QUEUE_SIZE; 2 * usize::from(tap.pairs())];
        queues.push(CONTROL_QUEUE_SIZE);
        let state = State {
            is_up: options.is_up,
            announces: false,
            is_in_kernel: false,
            pairs: 1,
            filter: Filter::default(),
        };
        let memory = Arc::new(memory);
        let vhost = |fd| Arc::new(Vhost::new(fd, Arc::clone(&memory)));
        let card = Card {
            options,
            tap,
            vhosts: vhosts.into_iter().map(vhost).collect(),
            state: Mutex::new(state),
            counters: Counters::default(),
        };
        if !card.options.is_up {
            card.check("link", card.tap.set_carrier(false));
        }
        Self {
            card: Arc::new(card),
            queues,
        }
    }

    /// Returns the view of the card that `vmctl info` shows.
    pub fn monitor(&self) -> Monitor {
        Monitor(Arc::clone(&self.card))
    }
}

/// The facts and statistics of a card, which can be read while its queues are served.
#[derive(Clone, Debug)]
pub struct Monitor(Arc<Card>);

impl Monitor {
    /// Returns the card's name.
    pub fn name(&self) -> &str {
        &self.0.options.name
    }

    /// Plugs the cable in or out. The caller tells the driver.
    pub fn set_link(&self, is_up: bool) {
        let card = &*self.0;
        let mut state = card.state();
        // Bridges forget a station whose cable is out.
        state.announces |= is_up && !state.is_up;
        state.is_up = is_up;
        card.check("link", card.tap.set_carrier(is_up));
    }

    /// Returns the card's status.
    pub fn status(&self) -> NicStatus {
        let card = &*self.0;
        let state = card.state();
        NicStatus {
            name: card.options.name.clone(),
            place: card.options.place.clone(),
            tap: card.tap.name().to_owned(),
            mac: card.options.mac.to_string(),
            mtu: card.tap.mtu(),
            is_up: state.is_up,
            data_plane: match state.is_in_kernel {
                true => "vhost-net".to_owned(),
                false => "worker".to_owned(),
            },
            pairs: state.pairs,
            max_pairs: card.tap.pairs(),
            lost: card.counters.lost.load(Ordering::Relaxed),
            refused: card.counters.refused.load(Ordering::Relaxed),
        }
    }
}

/// Returns what a tap is told of the driver's offloads.
fn tap_offloads(offloads: u64) -> usize {
    // The kernel takes the others with this one only.
    if offloads & 1 << VIRTIO_NET_F_GUEST_CSUM == 0 {
        return 0;
    }
    let bits = [
        (VIRTIO_NET_F_GUEST_TSO4, offload::TSO4),
        (VIRTIO_NET_F_GUEST_TSO6, offload::TSO6),
        (VIRTIO_NET_F_GUEST_ECN, offload::TSO_ECN),
    ];
    let accepted = bits.iter().filter(|(bit, _)| offloads & 1 << bit != 0);
    accepted.fold(offload::CHECKSUM, |all, (_, bit)| all | bit)
}

impl Device for Net {
    fn kind(&self) -> Kind {
        Kind::Net
    }

    fn name(&self) -> &str {
        &self.card.options.name
    }

    fn features(&self) -> u64 {
        match self.card.tap.pairs() {
            1 => FEATURES,
            _ => FEATURES | 1 << VIRTIO_NET_F_MQ,
        }
    }

    fn queues(&self) -> &[u16] {
        &self.queues
    }

    /// `struct virtio_net_config` (§5.1.4).
    fn read_config(&self, at: usize, bytes: &mut [u8]) {
        let card = &self.card;
        let state = card.state();
        let mut status = 0;
        if state.is_up {
            status |= VIRTIO_NET_S_LINK_UP as u16;
        }
        if state.announces {
            status |= VIRTIO_NET_S_ANNOUNCE as u16;
        }
        let mut config = [0; 12];
        config[..6].copy_from_slice(&card.options.mac.octets());
        config[6..8].copy_from_slice(&status.to_le_bytes());
        config[8..10].copy_from_slice(&card.tap.pairs().to_le_bytes());
        config[10..].copy_from_slice(&card.tap.mtu().to_le_bytes());
        read_bytes(&config, at, bytes);
    }

    fn activate(&mut self, features: u64) {
        let card = &self.card;
        let filter = Filter::new(features, card.options.mac);
        let mut state = card.state();
        state.announces = false;
        state.pairs = 1;
        state.is_in_kernel = card.prepare_kernel(features);
        card.check("queues", card.tap.set_pairs(1));
        let offloads = tap_offloads(features);
        card.check("offloads", card.tap.set_offload(offloads));
        card.check("filter", filter.apply(&card.tap));
        state.filter = filter;
        // Frames of the time before are not for this driver, which may take other ones.
        let drop_frame = |_: &u32| {
            let queue = card.tap.queue(0);
            queue.is_some_and(|queue| tap::read_frame(queue, &[]).is_ok())
        };
        (0..OLD_FRAMES).take_while(drop_frame).for_each(drop);
    }

    fn server(&mut self, index: u16, features: u64) -> Box<dyn Serve> {
        let card = Arc::clone(&self.card);
        // Without the feature there is one pair, and the control queue follows it (§5.1.2).
        let pairs = match features & 1 << VIRTIO_NET_F_MQ {
            0 => 1,
            _ => card.tap.pairs(),
        };
        let pair = usize::from(index / 2);
        let control = 2 * pairs;
        if index < control
            && let Some(relay) = card.relay(pair, usize::from(index % 2))
        {
            return Box::new(relay);
        }
        match index {
            index if index >= control => Box::new(Control::new(card, features)),
            index if index % 2 == 0 => Box::new(Receive::new(card, pair, features)),
            _ => Box::new(Transmit::new(card, pair)),
        }
    }
}

/// Returns the bytes of the largest frame, with its header.
fn largest_frame(mtu: u16, is_segmented: bool) -> usize {
    let packet = match is_segmented {
        true => MAX_PACKET,
        false => usize::from(mtu),
    };
    tap::HEADER + ETHERNET_HEADER + packet
}
