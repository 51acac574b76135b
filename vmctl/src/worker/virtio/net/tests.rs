//! Frames and commands, good and bad, with a socket in the tap's place.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use vm_memory::{Bytes, GuestAddress};

use virtio_bindings::virtio_net::{VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_VLAN};

use super::super::tests::Driver;
use super::control::change_filter;
use super::*;
use crate::worker::memory::Ram;

const DATA: u64 = 0x4_0000;
const CONTROL: u16 = 2;
const MERGE: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF;
const ERR: u8 = 1;

struct Guest {
    driver: Driver,
    monitor: Monitor,
    /// The network's end of the cable.
    network: OwnedFd,
}

fn mac() -> Mac {
    Mac::of_text("a guest")
}

fn guest(queue: u16, features: u64) -> Guest {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let kind = SocketType::SEQPACKET;
    let (tap, network) = socketpair(AddressFamily::UNIX, kind, flags, None).unwrap();
    let options = Options {
        name: "lan0".to_owned(),
        place: "lan0".to_owned(),
        mac: mac(),
        is_up: true,
    };
    let memory = Ram::new(4 << 20).unwrap().mapping().clone();
    let net = Net::new(Tap::of_sockets(vec![tap]), Vec::new(), options, memory);
    let monitor = net.monitor();
    let mut driver = Driver::new(Box::new(net));
    driver.queue = queue;
    driver.start(features);
    Guest {
        driver,
        monitor,
        network,
    }
}

impl Guest {
    /// Sends a frame to the guest, of its header and `len` bytes that count up.
    fn frame(&self, len: usize) -> Vec<u8> {
        let body = (0..len).map(|n| n as u8);
        let frame: Vec<u8> = [0; tap::HEADER].into_iter().chain(body).collect();
        rustix::io::write(&self.network, &frame).unwrap();
        frame
    }

    /// Returns the next frame of the guest.
    fn sent(&self) -> Vec<u8> {
        let mut fds = [PollFd::new(&self.network, PollFlags::IN)];
        let timeout = Timespec::try_from(Duration::from_secs(20)).unwrap();
        assert_eq!(poll(&mut fds, Some(&timeout)).unwrap(), 1);
        let mut frame = vec![0; 1 << 17];
        let len = rustix::io::read(&self.network, &mut frame).unwrap();
        frame.truncate(len);
        frame
    }

    fn read(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let memory = self.driver.memory();
        memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        let memory = self.driver.memory();
        memory.write_slice(bytes, GuestAddress(at)).unwrap();
    }
}

#[test]
fn a_frame_lies_in_as_many_chains_as_it_needs() {
    let mut guest = guest(0, MERGE);
    // The first chain's header lies in two buffers.
    guest.driver.send_all(&[
        &[(DATA, 11, true), (DATA + 0x100, 53, true)],
        &[(DATA + 0x200, 64, true)],
        &[(DATA + 0x300, 2048, true)],
        &[(DATA + 0x1000, 64, true)],
    ]);
    let frame = guest.frame(100);
    guest.driver.wait("two chains", |driver| driver.used() == 2);
    assert_eq!(
        (guest.driver.used_len(0), guest.driver.used_len(1)),
        (64, 48)
    );
    let mut expected = frame.clone();
    expected[10] = 2;
    let got = [
        guest.read(DATA, 11),
        guest.read(DATA + 0x100, 53),
        guest.read(DATA + 0x200, 48),
    ];
    assert_eq!(got.concat(), expected);
    let frame = guest.frame(10);
    guest.driver.wait("a chain", |driver| driver.used() == 3);
    assert_eq!(guest.driver.used_len(2), 22);
    assert_eq!(
        guest.read(DATA + 0x300, 22)[tap::HEADER..],
        frame[tap::HEADER..]
    );
    assert_eq!(guest.read(DATA + 0x300 + 10, 2), [1, 0]);
    // More than all that lies there.
    guest.frame(53);
    guest
        .driver
        .wait("a lost frame", |_| guest.monitor.status().lost == 1);
    guest.frame(52);
    guest.driver.wait("a chain", |driver| driver.used() == 4);
    // And now the frame waits for a buffer.
    guest.frame(20);
    guest.driver.send(&[(DATA, 2048, true)]);
    assert_eq!(guest.driver.answer(), 32);
}

#[test]
fn a_driver_that_does_not_merge_gets_whole_frames() {
    let mut guest = guest(0, 0);
    guest
        .driver
        .send_all(&[&[(DATA, 64, true)], &[(DATA + 0x100, 2048, true)]]);
    guest.frame(100);
    guest
        .driver
        .wait("a lost frame", |_| guest.monitor.status().lost == 1);
    guest.frame(52);
    guest.frame(1500);
    guest.driver.wait("two chains", |driver| driver.used() == 2);
    assert_eq!(
        (guest.driver.used_len(0), guest.driver.used_len(1)),
        (64, 1512)
    );
    assert_eq!(guest.read(DATA + 10, 2), [1, 0]);
}

#[test]
fn frames_of_an_earlier_driver_are_not_for_the_next() {
    let mut guest = guest(0, MERGE);
    guest.driver.reset();
    let old = guest.frame(99);
    guest.driver.start(MERGE);
    let new = guest.frame(7);
    assert_ne!(old, new);
    guest.driver.send(&[(DATA, 2048, true)]);
    assert_eq!(guest.driver.answer() as usize, new.len());
}

#[test]
fn frames_go_out_and_what_is_none_is_dropped() {
    let mut guest = guest(1, 0);
    let body: Vec<u8> = (0..60).collect();
    guest.write(DATA, &[0; tap::HEADER]);
    guest.write(DATA + 0x100, &body);
    guest
        .driver
        .send(&[(DATA, 12, false), (DATA + 0x100, 60, false)]);
    assert_eq!(guest.driver.answer(), 0);
    assert_eq!(guest.sent(), [&[0; tap::HEADER][..], &body].concat());
    // A header alone, less than an Ethernet header, and more than any packet has.
    guest.driver.send(&[(DATA, 12, false)]);
    guest.driver.send(&[(DATA, 25, false)]);
    guest
        .driver
        .send(&[(DATA, 0x1_0000, false), (DATA, 100, false)]);
    guest.driver.answer();
    assert_eq!(guest.monitor.status().refused, 3);
    guest.driver.send(&[(DATA, 26, false)]);
    guest.driver.answer();
    assert_eq!(guest.sent().len(), 26);
}

#[test]
fn chains_of_the_wrong_form_break_the_card() {
    for (queue, chain) in [
        (0, &[(DATA, 64, false)][..]),
        (0, &[(DATA, 64, false), (DATA, 64, true)]),
        (0, &[(DATA, 0, true)]),
        (0, &[(0x100_0000, 64, true)]),
        (1, &[(DATA, 64, true)]),
        (1, &[(DATA, 64, false), (DATA, 1, true)]),
        (1, &[(u64::MAX - 1, 64, false)]),
        (CONTROL, &[(DATA, 2, false)]),
    ] {
        let mut guest = guest(queue, 0);
        guest.driver.send(chain);
        guest.driver.wait_until_broken();
        // A reset repairs it.
        guest.driver.reset();
        guest.driver.start(0);
    }
}

#[test]
fn commands_of_the_wrong_length_are_errors() {
    let mut guest = guest(CONTROL, 0);
    let mut answer = |command: &[u8]| {
        guest.write(DATA, command);
        guest.write(DATA + 0x2_0000, &[0xff]);
        let len = command.len() as u32;
        guest
            .driver
            .send(&[(DATA, len, false), (DATA + 0x2_0000, 1, true)]);
        assert_eq!(guest.driver.answer(), 1);
        guest.read(DATA + 0x2_0000, 1)[0]
    };
    // Announcements are all that needs no tap.
    assert_eq!(answer(&[3, 0]), 0);
    for class in 0..8 {
        for command in 0..8 {
            for len in (0..12).chain([100]) {
                let bytes = [&[class, command][..], &vec![0xff; len]].concat();
                let expected = match (class, command, len) {
                    (3, 0, 0) => 0,
                    _ => ERR,
                };
                assert_eq!(answer(&bytes), expected, "{bytes:?}");
            }
        }
    }
    assert_eq!(answer(&[]), ERR);
    assert_eq!(answer(&[3]), ERR);
    assert_eq!(answer(&vec![0; 0x1_1000]), ERR);
}

#[test]
fn a_driver_says_which_frames_it_wants() {
    let features = 1 << VIRTIO_NET_F_CTRL_RX | 1 << VIRTIO_NET_F_CTRL_VLAN;
    let mut filter = Filter::new(features, mac());
    let mut change = |class, command, data: &[u8]| {
        let done = change_filter(&mut filter, class, command, data, mac().octets());
        done.map(|()| filter.clone())
    };
    let own = mac().octets();
    let one = |last| [2, 0, 0, 0, 0, last];
    let filter = change(VIRTIO_NET_CTRL_RX, 0, &[1]).unwrap();
    assert!(filter.addresses().is_empty(), "all frames are wanted");
    let filter = change(VIRTIO_NET_CTRL_RX, 0, &[0]).unwrap();
    assert_eq!(filter.addresses(), [own, [0xff; 6]]);
    let table = |unicast: &[u8], multicast: &[u8]| {
        let list = |list: &[u8]| {
            let addresses: Vec<_> = list.iter().flat_map(|&last| one(last)).collect();
            [&(list.len() as u32).to_le_bytes()[..], &addresses].concat()
        };
        [list(unicast), list(multicast)].concat()
    };
    let filter = change(VIRTIO_NET_CTRL_MAC, 0, &table(&[1], &[2, 3])).unwrap();
    let wanted = [own, one(1), [0xff; 6], one(2), one(3)];
    assert_eq!(filter.addresses(), wanted);
    let filter = change(VIRTIO_NET_CTRL_RX, 5, &[1]).unwrap();
    assert_eq!(filter.addresses(), [own, one(1), one(2), one(3)]);
    let filter = change(VIRTIO_NET_CTRL_RX, 4, &[1]).unwrap();
    assert_eq!(filter.addresses(), [one(2), one(3)]);
    let filter = change(VIRTIO_NET_CTRL_RX, 3, &[1]).unwrap();
    assert_eq!(filter.addresses(), [[0; 6]], "nothing is wanted");
    let vlans = |filter: Option<Filter>| {
        filter
            .unwrap()
            .vlans
            .unwrap()
            .into_iter()
            .collect::<Vec<_>>()
    };
    assert_eq!(vlans(change(VIRTIO_NET_CTRL_VLAN, 0, &[10, 0])), [10]);
    assert_eq!(
        vlans(change(VIRTIO_NET_CTRL_VLAN, 0, &[0xff, 0x0f])),
        [10, 4095]
    );
    assert_eq!(vlans(change(VIRTIO_NET_CTRL_VLAN, 1, &[10, 0])), [4095]);
    // Its own address is the one that it has.
    assert!(change(VIRTIO_NET_CTRL_MAC, 1, &own).is_some());
    for (class, command, data) in [
        (VIRTIO_NET_CTRL_RX, 6, &[1][..]),
        (VIRTIO_NET_CTRL_RX, 0, &[1, 1]),
        (VIRTIO_NET_CTRL_MAC, 0, &table(&[1], &[2])[..13]),
        (
            VIRTIO_NET_CTRL_MAC,
            0,
            &[&table(&[1], &[2])[..], &[0]].concat(),
        ),
        (VIRTIO_NET_CTRL_MAC, 0, &[0xff; 64]),
        (VIRTIO_NET_CTRL_MAC, 1, &one(1)),
        (VIRTIO_NET_CTRL_VLAN, 0, &[0, 0x10]),
        (VIRTIO_NET_CTRL_VLAN, 2, &[10, 0]),
    ] {
        assert!(change(class, command, data).is_none(), "{class} {command}");
    }
}

#[test]
fn a_card_describes_itself() {
    let mut guest = guest(0, 0);
    let features = guest.driver.features();
    assert_ne!(features & 1 << VIRTIO_NET_F_MTU, 0);
    assert_eq!(features & 1 << VIRTIO_NET_F_MQ, 0, "it has one pair");
    assert_eq!(guest.driver.config::<6>(0), mac().octets());
    assert_eq!(guest.driver.config::<6>(6), [1, 0, 1, 0, 0xdc, 0x05]);
    let status = guest.monitor.status();
    assert_eq!(
        (status.mtu, status.is_up, status.max_pairs),
        (1500, true, 1)
    );
    let offloads = |bits: &[u32]| tap_offloads(bits.iter().fold(0, |all, bit| all | 1 << bit));
    assert_eq!(offloads(&[VIRTIO_NET_F_GUEST_TSO4]), 0);
    let bits = [VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO6];
    assert_eq!(offloads(&bits), offload::CHECKSUM | offload::TSO6);
}
