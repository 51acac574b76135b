//! Host networks, with this test in the guests' place: raw frames into taps and out of them.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmctl::net::tap::HEADER as VIRTIO_HEADER;
use vmctl::net::{self, Cable, Mac, Mode, NetError, Network, Place, Rules, Spec, Tap, Vlan};

const EVERYBODY: [u8; 6] = [0xff; 6];
const ARP: u16 = 0x0806;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const TAG: u16 = 0x8100;
/// For experiments (IEEE 802).
const EXPERIMENT: u16 = 0x88b5;
/// How long nothing must come, for it to count as kept away.
const SILENCE: Duration = Duration::from_millis(1500);

/// A network for one test.
struct Net(&'static str);

impl Net {
    fn new(name: &'static str, address: Option<&str>, mode: Mode, vlan_filtering: bool) -> Self {
        let address = address.map(|text| text.parse().unwrap());
        net::create(&Spec {
            address6: None,
            dhcp: false,
            name: name.to_owned(),
            address,
            mode,
            vlan_filtering,
            mtu: None,
            range: None,
            overlay: None,
        })
        .unwrap();
        Self(name)
    }

    fn listed(&self) -> Network {
        let mut all = net::list().unwrap().into_iter();
        all.find(|network| network.name == self.0).unwrap()
    }

    fn guest(&self, vm: &str, number: u8, vlan: Option<Vlan>) -> Guest {
        let place = Place::Network(self.0.to_owned());
        let cable = Cable {
            vlan,
            ..cable(vm, &place, number)
        };
        Guest {
            tap: net::plug_in(&cable).unwrap(),
            mac: mac(number).octets(),
        }
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        net::delete(self.0).unwrap();
    }
}

fn mac(number: u8) -> Mac {
    format!("52:54:00:00:00:{number:02x}").parse().unwrap()
}

/// The cable of a guest without VLANs.
fn cable<'a>(vm: &'a str, place: &'a Place, number: u8) -> Cable<'a> {
    Cable {
        vm,
        place,
        mac: mac(number),
        vlan: None,
        trunks: &[],
        mtu: None,
        rules: Rules::default(),
        pairs: 1,
        min_pairs: 1,
    }
}

fn vlan(id: u16, tagged: bool) -> Option<Vlan> {
    Some(Vlan::new(id, tagged).unwrap())
}

struct Guest {
    tap: Tap,
    mac: [u8; 6],
}

impl Guest {
    fn fd(&self) -> BorrowedFd<'_> {
        self.tap.queue(0).unwrap()
    }

    fn send(&self, to: [u8; 6], kind: u16, body: &[u8]) {
        let header = [0; VIRTIO_HEADER];
        let frame = [&header[..], &to, &self.mac, &kind.to_be_bytes(), body].concat();
        assert_eq!(rustix::io::write(self.fd(), &frame).unwrap(), frame.len());
    }

    /// The next frame's kind and body, if one comes by then.
    fn receive(&self, end: Instant) -> Option<(u16, Vec<u8>)> {
        let left = end.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).unwrap();
        let mut fds = [PollFd::from_borrowed_fd(self.fd(), PollFlags::IN)];
        if poll(&mut fds, Some(&left)).unwrap() == 0 {
            return None;
        }
        let mut frame = [0; 4096];
        let length = rustix::io::read(self.fd(), &mut frame).unwrap();
        let frame = &frame[VIRTIO_HEADER..length];
        let kind = u16::from_be_bytes([frame[12], frame[13]]);
        Some((kind, frame[14..].to_vec()))
    }

    /// Bodies of what comes for a while, of one kind.
    fn heard(&self, wanted: u16) -> Vec<Vec<u8>> {
        let end = Instant::now() + SILENCE;
        let frames = std::iter::from_fn(|| self.receive(end));
        frames
            .filter(|(kind, _)| *kind == wanted)
            .map(|(_, body)| body)
            .collect()
    }

    /// Whether a frame comes. One that is not expected is not waited for as long.
    fn hears(&self, kind: u16, body: &[u8], is_expected: bool) -> bool {
        let timeout = if is_expected {
            4 * SILENCE
        } else {
            SILENCE / 8
        };
        let end = Instant::now() + timeout;
        let mut frames = std::iter::from_fn(|| self.receive(end));
        frames.any(|(its_kind, its_body)| its_kind == kind && its_body == body)
    }

    /// Whether somebody behind a gateway answers an echo request.
    fn reaches(&self, own: Ipv4Addr, gateway: Mac, to: Ipv4Addr) -> bool {
        let request = echo_request(own, to);
        self.send(gateway.octets(), IPV4, &request);
        let end = Instant::now() + 2 * SILENCE;
        while let Some((kind, body)) = self.receive(end) {
            match kind {
                // Who has `own`?
                ARP if body[7] == 1 && body[24..28] == own.octets() => self.answer_arp(&body),
                IPV4 if body[9] == 1 && body[20] == 0 && body[12..16] == to.octets() => {
                    return body[16..20] == own.octets();
                }
                _ => {}
            }
        }
        false
    }

    fn answer_arp(&self, request: &[u8]) {
        let mut answer = request[..28].to_vec();
        answer[7] = 2;
        answer[8..14].copy_from_slice(&self.mac);
        answer[14..18].copy_from_slice(&request[24..28]);
        answer[18..28].copy_from_slice(&request[8..18]);
        let to = request[8..14].try_into().unwrap();
        self.send(to, ARP, &answer);
    }
}

/// An IPv4 packet with an ICMP echo request.
fn echo_request(from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    let mut icmp = vec![8, 0, 0, 0, 0x12, 0x34, 0, 1];
    icmp.extend(b"are you there?");
    let sum = checksum(&icmp);
    icmp[2..4].copy_from_slice(&sum);
    let mut packet = vec![0x45, 0, 0, 20 + icmp.len() as u8, 0, 1, 0, 0, 64, 1, 0, 0];
    packet.extend(from.octets());
    packet.extend(to.octets());
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum);
    packet.extend(icmp);
    packet
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let words = bytes.chunks(2);
    let sum: u32 = words
        .map(|w| u32::from(w[0]) << 8 | u32::from(*w.get(1).unwrap_or(&0)))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    (!(folded as u16)).to_be_bytes()
}

#[test]
fn vlans_are_kept_apart() {
    let net = Net::new("vlans", None, Mode::Isolated, true);
    let a = net.guest("vlans-a", 1, vlan(10, false));
    let b = net.guest("vlans-b", 2, vlan(10, false));
    let c = net.guest("vlans-c", 3, vlan(20, false));
    let trunk = net.guest("vlans-t", 4, vlan(10, true));
    let plain = net.guest("vlans-p", 5, None);
    // To everybody, and to one station by its address.
    for (from, to, text) in [(&c, EVERYBODY, "c"), (&a, EVERYBODY, "a"), (&c, b.mac, "C")] {
        from.send(to, EXPERIMENT, text.as_bytes());
    }
    assert_eq!(b.heard(EXPERIMENT), [b"a"]);
    assert!(a.heard(EXPERIMENT).is_empty());
    assert!(c.heard(EXPERIMENT).is_empty());
    assert!(plain.heard(EXPERIMENT).is_empty());
    // VLAN 10, then the frame's own kind.
    assert_eq!(trunk.heard(TAG), [[0, 10, 0x88, 0xb5, b'a']]);
    // A tag of another's VLAN does not lead there.
    let tagged = |id: u8| [&[0, id, 0x88, 0xb5], &b"tagged"[..]].concat();
    a.send(EVERYBODY, TAG, &tagged(20));
    trunk.send(EVERYBODY, TAG, &tagged(20));
    trunk.send(b.mac, TAG, &tagged(10));
    assert!(c.heard(EXPERIMENT).is_empty());
    assert_eq!(b.heard(EXPERIMENT), [b"tagged"]);
    let ports = net.listed().ports;
    let vlans = |name: &str| {
        let port = ports.iter().find(|port| port.vm.as_deref() == Some(name));
        let port = port.unwrap();
        let vlans: Vec<_> = port.vlans.iter().map(ToString::to_string).collect();
        (port.mac.unwrap(), vlans.join(","))
    };
    assert_eq!(vlans("vlans-a"), (mac(1), "10".to_owned()));
    assert_eq!(vlans("vlans-c"), (mac(3), "20".to_owned()));
    assert_eq!(vlans("vlans-t"), (mac(4), "10t".to_owned()));
    assert_eq!(vlans("vlans-p"), (mac(5), "1".to_owned()));
}

/// An ARP request from an address.
fn arp(mac: [u8; 6], from: Ipv4Addr) -> Vec<u8> {
    let mut body = vec![0, 1, 8, 0, 6, 4, 0, 1];
    body.extend(mac);
    body.extend(from.octets());
    body.extend([0; 6]);
    body.extend([10, 77, 9, 99]);
    body
}

/// An IPv4 packet with UDP.
fn udp(from: Ipv4Addr, ports: [u16; 2], body: &[u8]) -> Vec<u8> {
    let len = 28 + body.len() as u16;
    let mut packet = vec![
        0x45,
        0,
        (len >> 8) as u8,
        len as u8,
        0,
        1,
        0,
        0,
        64,
        17,
        0,
        0,
    ];
    packet.extend(from.octets());
    packet.extend([255; 4]);
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum);
    for word in [ports[0], ports[1], len - 20, 0] {
        packet.extend(word.to_be_bytes());
    }
    packet.extend(body);
    packet
}

/// An IPv6 packet with a neighbour advertisement.
fn advertisement(from: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, 24, 58, 255];
    packet.extend(from.octets());
    packet.extend(Ipv6Addr::from_bits(0xff02 << 112 | 1).octets());
    packet.extend([136, 0, 0, 0, 0x20, 0, 0, 0]);
    packet.extend(target.octets());
    packet
}

#[test]
fn a_guest_pretends_to_be_nobody_else() {
    let net = Net::new("spoof", Some("10.77.9.1/24"), Mode::Isolated, false);
    let place = Place::Network("spoof".to_owned());
    let guest = |vm: &str, number, rules| {
        let cable = Cable {
            rules,
            ..cable(vm, &place, number)
        };
        let tap = net::plug_in(&cable).unwrap();
        let mac = mac(number).octets();
        Guest { tap, mac }
    };
    let own = Ipv4Addr::new(10, 77, 9, 2);
    let other = Ipv4Addr::new(10, 77, 9, 3);
    let rules = Rules {
        addresses: vec![own.into()],
        ..Rules::default()
    };
    let a = guest("a", 1, rules.clone());
    let b = guest("b", 2, Rules::default());
    let open = Rules {
        spoof: true,
        ..Rules::default()
    };
    let c = guest("c", 3, open);
    // It can't have an address that is taken, or none of the network's.
    let refused = |address: &str| {
        let rules = Rules {
            addresses: vec![address.parse().unwrap()],
            ..Rules::default()
        };
        let cable = Cable {
            rules,
            ..cable("d", &place, 4)
        };
        net::plug_in(&cable).map(drop).unwrap_err().to_string()
    };
    assert_eq!(
        refused("10.77.9.2"),
        "spoof: VM a has the address 10.77.9.2"
    );
    for (address, what) in [
        ("10.77.8.2", "outside of the network"),
        ("10.77.9.0", "the network, not a host in it"),
        ("10.77.9.255", "the broadcast address, not a host"),
        ("10.77.9.1", "root's own"),
    ] {
        let line = format!("spoof: address {address}: that is {what} (10.77.9.1/24)");
        assert_eq!(refused(address), line);
    }
    let port = net
        .listed()
        .ports
        .into_iter()
        .find(|port| port.vm.as_deref() == Some("a"));
    assert_eq!(port.unwrap().addresses, [IpAddr::from(own)]);

    let local = |last: u128| Ipv6Addr::from_bits(0xfe80 << 112 | 0x5054_00ff_fe00_0000 | last);
    let none = Ipv4Addr::UNSPECIFIED;
    let tagged = [&[0, 10, 0x08, 0x00][..], &udp(other, [9, 9], b"tagged")].concat();
    // What a guest with an address may send, one without, and one that may send anything.
    for (kind, body, from_a, from_b) in [
        (ARP, arp(a.mac, own), true, false),
        (ARP, arp(a.mac, none), true, false),
        (ARP, arp(a.mac, other), false, false),
        (ARP, arp(c.mac, own), false, false),
        (IPV4, udp(own, [9, 9], b"own"), true, true),
        (IPV4, udp(other, [9, 9], b"other"), false, true),
        (IPV4, udp(none, [68, 9], b"none"), true, true),
        (IPV4, udp(own, [67, 9], b"a DHCP server"), false, false),
        (IPV6, advertisement(local(1), local(1)), true, true),
        (IPV6, advertisement(local(7), local(1)), false, true),
        (IPV6, advertisement(local(1), local(7)), false, true),
        (EXPERIMENT, b"no address".to_vec(), false, true),
        (TAG, tagged, false, true),
    ] {
        for (guest, is_sent) in [(&a, from_a), (&b, from_b), (&c, true)] {
            guest.send(EVERYBODY, kind, &body);
            let to = if guest.mac == c.mac { &b } else { &c };
            let heard = to.hears(kind, &body, is_sent);
            assert_eq!(heard, is_sent, "{:x?}: {kind:#x} {body:x?}", guest.mac);
        }
    }
    // Another station's address.
    let forged = Guest {
        tap: b.tap,
        mac: a.mac,
    };
    forged.send(EVERYBODY, EXPERIMENT, b"forged");
    assert!(c.heard(EXPERIMENT).is_empty());
    drop((a, forged, c));
}

#[test]
fn a_guest_hears_no_others_dhcp_and_floods_nobody() {
    let net = Net::new("dhcp", None, Mode::Isolated, false);
    let a = net.guest("a", 1, None);
    let place = Place::Network("dhcp".to_owned());
    let rules = Rules {
        spoof: true,
        packets: Some(100),
        ..Rules::default()
    };
    let cable = Cable {
        rules,
        ..cable("server", &place, 2)
    };
    let server = Guest {
        tap: net::plug_in(&cable).unwrap(),
        mac: mac(2).octets(),
    };
    let answer = |client: [u8; 6]| {
        let body = [&[0; 28][..], &client, &[0; 16]].concat();
        udp(Ipv4Addr::new(10, 0, 0, 1), [67, 68], &body)
    };
    server.send(EVERYBODY, IPV4, &answer(server.mac));
    server.send(
        EVERYBODY,
        IPV4,
        &udp(Ipv4Addr::UNSPECIFIED, [68, 67], b"request"),
    );
    // Root has other things to say.
    let heard_udp = || {
        let all = a.heard(IPV4).into_iter();
        all.filter(|body| body[9] == 17).collect::<Vec<_>>()
    };
    assert_eq!(heard_udp(), [[0; 0]; 0]);
    server.send(EVERYBODY, IPV4, &answer(a.mac));
    assert_eq!(heard_udp(), [answer(a.mac)]);
    for _ in 0..1000 {
        server.send(a.mac, EXPERIMENT, b"flood");
    }
    let count = a.heard(EXPERIMENT).len();
    assert!((100..900).contains(&count), "{count} of 1000 frames");
    drop((a, server));
}

#[test]
fn a_tap_is_refused_or_ends_with_its_descriptor() {
    let net = Net::new("taps", None, Mode::Isolated, false);
    let guest = net.guest("taps-a", 1, None);
    let name = guest.tap.name().to_owned();
    let refused = |place: Place, number, change: fn(&mut Cable<'_>)| {
        let mut cable = cable("b", &place, number);
        change(&mut cable);
        let result = net::plug_in(&cable);
        result.map(drop).unwrap_err().to_string()
    };
    let same: fn(&mut Cable<'_>) = |_| {};
    let network = |name: &str| Place::Network(name.to_owned());
    let line = refused(network("nowhere"), 2, same);
    assert!(line.starts_with("nowhere: no such network"), "{line}");
    let line = refused(network("eth0"), 2, same);
    assert!(line.starts_with("eth0: an interface"), "{line}");
    let line = refused(Place::Bridge("eth0".to_owned()), 2, same);
    assert_eq!(line, "eth0: not a bridge");
    let line = refused(Place::Bridge("br9".to_owned()), 2, same);
    assert_eq!(line, "br9: VM 0 has no such interface");
    let line = refused(Place::Tap("br9".to_owned()), 2, same);
    assert_eq!(line, "br9: VM 0 has no such interface");
    let line = refused(Place::Tap("eth0".to_owned()), 2, same);
    assert_eq!(line, "eth0: not a tap device");
    let line = refused(Place::Tap(name.clone()), 2, same);
    assert_eq!(line, format!("{name}: another program uses this tap"));
    let line = refused(network("taps"), 1, same);
    assert_eq!(
        line,
        "taps: VM taps-a has the MAC address 52:54:00:00:00:01"
    );
    let line = refused(network("taps"), 2, |cable| cable.vlan = vlan(10, false));
    assert!(line.starts_with("taps: VLAN 10: this bridge"), "{line}");
    let line = refused(network("taps"), 2, |cable| cable.trunks = &[20]);
    assert!(line.starts_with("taps: VLAN 20: this bridge"), "{line}");
    let line = refused(network("taps"), 2, |cable| cable.mtu = Some(1501));
    assert_eq!(line, "taps: its MTU is 1500: a NIC can't have 1501");
    assert_eq!(
        net::delete("taps"),
        Err(NetError::Conflict(format!("taps: in use by {name}")))
    );
    let there = |name: &str| Path::new("/sys/class/net").join(name).exists();
    assert!(there(&name));
    assert_eq!(net.listed().ports.len(), 1);
    // The bridge keeps its address, whoever comes and goes.
    let before = net.listed().mac;
    drop(guest);
    super::eventually("the tap goes", || !there(&name));
    assert_eq!(net.listed().mac, before);
    drop(net.guest("taps-a", 1, None));
}

#[test]
fn nat_leads_out_and_an_isolated_network_does_not() {
    let forwards = || fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap();
    assert_eq!(forwards(), "0\n");
    let out = Net::new("nat", Some("10.77.5.1/24"), Mode::Nat, false);
    let apart = Net::new("apart", Some("10.77.6.1/24"), Mode::Isolated, false);
    assert_eq!(forwards(), "1\n");
    let (a, b) = (out.guest("nat-a", 1, None), apart.guest("apart-b", 2, None));
    let (a_ip, b_ip) = (Ipv4Addr::new(10, 77, 5, 2), Ipv4Addr::new(10, 77, 6, 2));
    let (a_gateway, b_gateway) = (out.listed().mac.unwrap(), apart.listed().mac.unwrap());
    let world = Ipv4Addr::new(10, 0, 2, 2);
    assert!(a.reaches(a_ip, a_gateway, Ipv4Addr::new(10, 77, 5, 1)));
    assert!(b.reaches(b_ip, b_gateway, Ipv4Addr::new(10, 77, 6, 1)));
    assert!(a.reaches(a_ip, a_gateway, world));
    assert!(!b.reaches(b_ip, b_gateway, world));
    // Not even root looks for one network's guest on behalf of the other's.
    for (from, own, gateway, to, ip) in [
        (&a, a_ip, a_gateway, &b, b_ip),
        (&b, b_ip, b_gateway, &a, a_ip),
    ] {
        from.send(gateway.octets(), IPV4, &echo_request(own, ip));
        let icmp = to.heard(IPV4).into_iter().find(|body| body[9] == 1);
        assert_eq!(icmp, None);
    }
    drop((a, b));
    drop((out, apart));
    assert_eq!(forwards(), "0\n");
}
