//! Connections from both sides, with a test in the guest's place.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::Duration;

use vm_memory::{Bytes, GuestAddress, VolatileSlice};
use zerocopy::{FromBytes, IntoBytes};

use super::super::tests::Driver;
use super::connection::BUFFER;
use super::packet::{HEADER, Header, Ports, SHUTDOWN_BOTH, SHUTDOWN_SEND, operation};
use super::*;
use crate::worker::memory::Memory;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};

const CID: u64 = 77;
const DATA: u64 = 0x4_0000;
/// Bytes of each buffer of the guest.
const CHAIN: u32 = 0x1000;
const ROOM: u32 = 0x8000;

/// A guest whose driver has given the device buffers.
struct Guest {
    driver: Driver,
    mux: Arc<Mux>,
    wake: Arc<Event>,
    path: std::path::PathBuf,
    /// Packets that were taken.
    taken: u16,
    _dir: tempfile::TempDir,
}

fn guest(buffers: u16) -> Guest {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("web");
    let wake = Arc::new(Event::new().unwrap());
    let listener = UnixListener::bind(&path).unwrap();
    let mux = Arc::new(Mux::new(CID, listener, Arc::clone(&wake)).unwrap());
    let mut driver = Driver::new(Box::new(Vsock::Worker(Arc::clone(&mux))));
    driver.start(0);
    let mut guest = Guest {
        driver,
        mux,
        wake,
        path,
        taken: 0,
        _dir: dir,
    };
    guest.give(buffers);
    guest
}

impl Guest {
    /// Gives the device buffers.
    fn give(&mut self, count: u16) {
        for slot in 0..count {
            let at = DATA + u64::from(slot) * u64::from(CHAIN);
            self.driver.kept = slot;
            self.driver.send(&[(at, CHAIN, true)]);
        }
    }

    /// Waits for a packet, and gives its buffer back.
    fn packet(&mut self) -> (Header, Vec<u8>) {
        let taken = self.taken;
        self.driver
            .wait("a packet", |driver| driver.used() != taken);
        let head = self.driver.used_head(taken);
        let len = self.driver.used_len(taken) as usize;
        self.taken += 1;
        let mut bytes = vec![0; len];
        let at = DATA + u64::from(head) * u64::from(CHAIN);
        let memory: &Memory = self.driver.memory();
        memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        let data = bytes.split_off(HEADER);
        self.driver.kept = head;
        self.driver.send(&[(at, CHAIN, true)]);
        let header = Header::read_from_bytes(&bytes).unwrap();
        assert_eq!(header.len.get() as usize, data.len());
        (header, data)
    }

    /// Waits for a packet without data; returns its ports, operation and flags.
    fn word(&mut self) -> (Ports, u16, u32) {
        let (header, data) = self.packet();
        assert!(data.is_empty(), "{header:?}");
        assert_eq!((header.src_cid.get(), header.dst_cid.get()), (2, CID));
        let ports = Ports {
            host: header.src_port.get(),
            guest: header.dst_port.get(),
        };
        (ports, header.operation.get(), header.flags.get())
    }

    /// Sends a packet to the device.
    fn say(&self, ports: Ports, operation: u16, change: impl FnOnce(&mut Header)) {
        self.send(ports, operation, &mut [], change);
    }

    fn send(
        &self,
        ports: Ports,
        operation: u16,
        data: &mut [u8],
        change: impl FnOnce(&mut Header),
    ) {
        let mut header = Header::new(2, ports, operation);
        header.src_cid = CID.into();
        header.dst_cid = 2.into();
        header.src_port = ports.guest.into();
        header.dst_port = ports.host.into();
        header.buf_alloc = ROOM.into();
        header.len = (data.len() as u32).into();
        change(&mut header);
        self.mux.hear(&header, &[VolatileSlice::from(data)]);
    }

    fn client(&self, line: &str) -> UnixStream {
        let mut client = UnixStream::connect(&self.path).unwrap();
        client
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        client.write_all(line.as_bytes()).unwrap();
        client
    }

    /// Connects from VM 0.
    fn connect(&mut self) -> (UnixStream, Ports) {
        let mut client = self.client("CONNECT 52\n");
        let (ports, operation, _) = self.word();
        assert_eq!((operation, ports.guest), (operation::REQUEST, 52));
        self.say(ports, operation::RESPONSE, |_| {});
        let ok = format!("OK {}\n", ports.host);
        assert_eq!(read(&mut client, ok.len()), ok.as_bytes());
        (client, ports)
    }
}

fn read(client: &mut UnixStream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    client.read_exact(&mut bytes).unwrap();
    bytes
}

fn is_closed(client: &mut UnixStream) -> bool {
    match client.read(&mut [0]) {
        Ok(count) => count == 0,
        // Something that it sent was not read.
        Err(e) => e.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

fn ports(host: u32, guest: u32) -> Ports {
    Ports { host, guest }
}

#[test]
fn a_program_of_vm_0_reaches_a_port_of_the_guest() {
    let mut guest = guest(4);
    assert_eq!(guest.driver.config::<8>(0), CID.to_le_bytes());
    let (mut client, ports) = guest.connect();
    client.write_all(b"hello").unwrap();
    let (header, data) = guest.packet();
    assert_eq!(
        (header.operation.get(), &*data),
        (operation::DATA, &b"hello"[..])
    );
    assert_eq!(header.buf_alloc.get(), BUFFER);
    guest.send(ports, operation::DATA, &mut b"world".to_vec(), |_| {});
    assert_eq!(read(&mut client, 5), b"world");
    // The client sends no more, but receives.
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(guest.word(), (ports, operation::SHUTDOWN, SHUTDOWN_SEND));
    guest.send(ports, operation::DATA, &mut b"bye".to_vec(), |_| {});
    assert_eq!(read(&mut client, 3), b"bye");
    // The guest closes.
    guest.say(ports, operation::SHUTDOWN, |it| {
        it.flags = SHUTDOWN_BOTH.into()
    });
    assert_eq!(guest.word(), (ports, operation::RESET, 0));
    assert!(is_closed(&mut client));
}

#[test]
fn what_a_client_said_before_it_closed_reaches_the_guest() {
    let mut guest = guest(2);
    let (mut client, ports) = guest.connect();
    // More than the guest has room for at once.
    let data: Vec<u8> = (0..ROOM * 2).map(|n| n as u8).collect();
    client.write_all(&data).unwrap();
    drop(client);
    let mut got = Vec::new();
    let mut asked = 0;
    let last = loop {
        let (header, data) = guest.packet();
        got.extend(data);
        assert!(
            got.len() as u32 <= (asked + 1) * ROOM,
            "more than there is room for"
        );
        match header.operation.get() {
            operation::DATA => {}
            operation::CREDIT_REQUEST => {
                asked += 1;
                let taken = got.len() as u32;
                guest.say(ports, operation::CREDIT_UPDATE, |it| {
                    it.fwd_cnt = taken.into()
                });
            }
            operation::SHUTDOWN if header.flags.get() == SHUTDOWN_SEND => {}
            _ => break header,
        }
    };
    assert_eq!((got == data, asked >= 1), (true, true));
    assert_eq!(last.operation.get(), operation::SHUTDOWN);
    assert_eq!(last.flags.get(), SHUTDOWN_BOTH);
    guest.say(ports, operation::RESET, |_| {});
    // Its answer, that the connection is gone, has no answer.
    guest.say(ports, operation::DATA, |_| {});
    assert_eq!(guest.word(), (ports, operation::RESET, 0));
}

#[test]
fn a_client_has_to_say_which_port_it_wants() {
    let mut guest = guest(4);
    for line in [
        "GET / HTTP/1.1\n",
        "CONNECT\n",
        "CONNECT x\n",
        "CONNECT 4294967296\n",
        "\n",
    ] {
        assert!(is_closed(&mut guest.client(line)), "{line}");
    }
    assert!(is_closed(&mut guest.client(&"x".repeat(100))));
    // One that takes its time, and one that says more than the line.
    let mut slow = guest.client("conn");
    let client = guest.client("CONNECT 7\r\nmore");
    let (first, _, _) = guest.word();
    guest.say(first, operation::RESPONSE, |_| {});
    assert_eq!(guest.packet().1, b"more");
    slow.write_all(b"ect 8\n").unwrap();
    let (second, _, _) = guest.word();
    assert_eq!((first.guest, second.guest), (7, 8));
    assert_ne!(first.host, second.host);
    // A port at which nobody listens.
    guest.say(second, operation::RESET, |_| {});
    assert!(is_closed(&mut slow));
    // A client that goes before the guest has answered.
    drop(client);
    let gone = guest.client("CONNECT 9\n");
    let mut words = std::iter::repeat_with(|| guest.word());
    let (third, _, _) = words.find(|it| it.1 == operation::REQUEST).unwrap();
    drop(gone);
    let answer = words.find(|it| it.0 == third);
    assert_eq!(answer, Some((third, operation::RESET, 0)));
}

#[test]
fn clients_that_say_nothing_are_bounded() {
    let mut guest = guest(4);
    let mut first = guest.client("");
    let others: Vec<_> = (0..64).map(|_| guest.client("")).collect();
    assert!(is_closed(&mut first), "the oldest one makes room");
    guest.connect();
    drop(others);
}

#[test]
fn the_guest_reaches_a_program_of_vm_0() {
    let mut guest = guest(4);
    let ports = ports(80, 1000);
    guest.say(ports, operation::REQUEST, |_| {});
    assert!(guest.wake.is_signalled());
    let requests = guest.mux.take_requests();
    let [(request, 80)] = requests[..] else {
        panic!("{requests:?}");
    };
    assert!(guest.mux.take_requests().is_empty());
    let (mut program, end) = UnixStream::pair().unwrap();
    guest.mux.answer(request, Some(OwnedFd::from(end)));
    assert_eq!(guest.word(), (ports, operation::RESPONSE, 0));
    guest.send(ports, operation::DATA, &mut b"hello".to_vec(), |_| {});
    assert_eq!(read(&mut program, 5), b"hello");
    program.write_all(b"world").unwrap();
    assert_eq!(guest.packet().1, b"world");
    // The guest asks what room there is.
    guest.say(ports, operation::CREDIT_REQUEST, |_| {});
    let (update, _) = guest.packet();
    assert_eq!(update.operation.get(), operation::CREDIT_UPDATE);
    assert_eq!(update.fwd_cnt.get(), 5);
    // The same connection again is none.
    guest.say(ports, operation::REQUEST, |_| {});
    assert_eq!(guest.word(), (ports, operation::RESET, 0));
    assert!(is_closed(&mut program));
}

#[test]
fn nobody_listens_or_the_daemon_is_gone() {
    let mut guest = guest(4);
    let many: Vec<_> = (0..20).map(|n| ports(80, n)).collect();
    for &ports in &many {
        guest.say(ports, operation::REQUEST, |_| {});
    }
    let requests = guest.mux.take_requests();
    assert_eq!(requests.len(), 16, "the others wait");
    guest.mux.answer(requests[0].0, None);
    assert_eq!(guest.word(), (many[0], operation::RESET, 0));
    // A guest that gives up.
    guest.say(many[1], operation::RESET, |_| {});
    let (mut program, end) = UnixStream::pair().unwrap();
    guest.mux.answer(requests[1].0, Some(end.into()));
    assert!(is_closed(&mut program));
    guest.mux.daemon_lost();
    for &ports in &many[2..16] {
        assert_eq!(guest.word(), (ports, operation::RESET, 0));
    }
    let requests = guest.mux.take_requests();
    assert_eq!(requests.len(), 4);
    // An answer to what was asked of another daemon is of no use.
    guest.mux.answer(requests[0].0 - 1, None);
    let (_program, end) = UnixStream::pair().unwrap();
    guest.mux.answer(requests[0].0, Some(end.into()));
    assert_eq!(guest.word(), (many[16], operation::RESPONSE, 0));
}

#[test]
fn requests_that_a_guest_gives_up_are_not_kept() {
    let guest = guest(4);
    for n in 0..100 {
        guest.say(ports(80, n), operation::REQUEST, |_| {});
        guest.say(ports(80, n), operation::RESET, |_| {});
    }
    assert_eq!(guest.mux.take_requests(), []);
}

#[test]
fn a_program_that_does_not_read_holds_only_its_own_connection_up() {
    let mut guest = guest(4);
    let (mut lazy, held) = guest.connect();
    let (mut busy, other) = guest.connect();
    let mut sent = 0;
    let mut forwarded = 0;
    let mut data = vec![b'x'; 4096];
    // As much as the socket takes, and what the device keeps.
    while sent - forwarded + 4096 <= BUFFER && sent < 8 << 20 {
        guest.send(held, operation::DATA, &mut data, |_| {});
        sent += 4096;
        guest.say(held, operation::CREDIT_REQUEST, |_| {});
        forwarded = loop {
            let (header, _) = guest.packet();
            if header.operation.get() == operation::CREDIT_UPDATE
                && guest.driver.used() == guest.taken
            {
                break header.fwd_cnt.get();
            }
        };
    }
    assert!(sent < 8 << 20, "the device keeps all");
    guest.send(other, operation::DATA, &mut b"hello".to_vec(), |_| {});
    assert_eq!(read(&mut busy, 5), b"hello");
    // All of it comes when the program reads.
    assert_eq!(read(&mut lazy, sent as usize).len(), sent as usize);
    let told = std::iter::repeat_with(|| guest.packet().0.fwd_cnt.get());
    let told = told.take(10).find(|&told| sent - told < BUFFER / 2);
    assert!(told.is_some(), "the guest hears that there is room");
    // More than there is room for ends the connection.
    let mut data = vec![b'x'; BUFFER as usize + 1];
    guest.send(held, operation::DATA, &mut data, |_| {});
    assert_eq!(guest.word(), (held, operation::RESET, 0));
    assert!(is_closed(&mut lazy));
}

#[test]
fn wrong_packets_are_refused() {
    let mut guest = guest(4);
    let stray = ports(80, 1);
    for operation in [
        0,
        operation::RESPONSE,
        operation::DATA,
        operation::CREDIT_REQUEST,
        99,
    ] {
        guest.say(stray, operation, |_| {});
        assert_eq!(guest.word(), (stray, operation::RESET, 0));
    }
    // A type that is not a stream, and another guest.
    guest.say(stray, operation::REQUEST, |it| it.kind = 2.into());
    let (header, _) = guest.packet();
    assert_eq!(
        (header.kind.get(), header.operation.get()),
        (2, operation::RESET)
    );
    guest.say(stray, operation::REQUEST, |it| it.dst_cid = 5.into());
    let (header, _) = guest.packet();
    assert_eq!(
        (header.src_cid.get(), header.operation.get()),
        (5, operation::RESET)
    );
    // Neither a reset nor a forged address has an answer.
    guest.say(stray, operation::RESET, |_| {});
    guest.say(stray, operation::DATA, |it| it.src_cid = 78.into());
    assert!(guest.mux.take_requests().is_empty());
    // Data before the connection is there.
    guest.say(stray, operation::REQUEST, |_| {});
    guest.send(stray, operation::DATA, &mut b"x".to_vec(), |_| {});
    assert_eq!(guest.word(), (stray, operation::RESET, 0));
    // Data behind the end of data.
    let (_client, ports) = guest.connect();
    guest.say(ports, operation::SHUTDOWN, |it| {
        it.flags = SHUTDOWN_SEND.into()
    });
    guest.send(ports, operation::DATA, &mut b"x".to_vec(), |_| {});
    assert_eq!(guest.word(), (ports, operation::RESET, 0));
}

#[test]
fn connections_are_bounded() {
    let mut guest = guest(4);
    for n in 0..1024 {
        guest.say(ports(80, n), operation::REQUEST, |_| {});
    }
    guest.say(ports(80, 1024), operation::REQUEST, |_| {});
    assert_eq!(guest.word(), (ports(80, 1024), operation::RESET, 0));
    assert!(is_closed(&mut guest.client("CONNECT 1\n")));
}

#[test]
fn a_reset_ends_all_connections() {
    let mut guest = guest(4);
    let (mut client, _) = guest.connect();
    guest.driver.reset();
    assert!(is_closed(&mut client));
    guest.driver.start(0);
    guest.taken = 0;
    guest.give(4);
    guest.connect();
}

fn transmitter() -> Driver {
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join("web")).unwrap();
    let wake = Arc::new(Event::new().unwrap());
    let mux = Mux::new(CID, listener, wake).unwrap();
    let mut driver = Driver::new(Box::new(Vsock::Worker(Arc::new(mux))));
    driver.queue = TRANSMIT;
    driver.start(0);
    driver
}

#[test]
fn packets_lie_in_buffers_of_any_form() {
    let mut driver = transmitter();
    let mut header = Header::new(2, ports(9, 9), operation::DATA);
    header.src_cid = CID.into();
    header.dst_cid = 2.into();
    header.len = 10.into();
    let write = |driver: &Driver, header: &Header| {
        let memory = driver.memory();
        memory
            .write_slice(header.as_bytes(), GuestAddress(DATA))
            .unwrap();
    };
    write(&driver, &header);
    driver.send(&[
        (DATA, 10, false),
        (DATA + 10, 40, false),
        (DATA + 50, 4, false),
    ]);
    assert_eq!(driver.answer(), 0);
    // Nobody takes the answers: the device takes no more packets than it keeps answers for.
    for _ in 0..300 {
        if driver.status() & 0x40 != 0 {
            break;
        }
        driver.kept = 0;
        driver.send(&[(DATA, 54, false)]);
        std::thread::sleep(Duration::from_micros(100));
    }
    driver.wait("most packets", |driver| driver.used() >= 250);
    std::thread::sleep(Duration::from_millis(20));
    assert!(driver.used() <= 257, "{} packets", driver.used());
    driver.reset();
    // Packets that are shorter than their header, and than it says; one that the device should write.
    for chain in [(DATA, 43, false), (DATA, 53, false), (DATA, 54, true)] {
        driver.start(0);
        write(&driver, &header);
        driver.send(&[chain]);
        driver.wait_until_broken();
        driver.reset();
    }
}

#[test]
fn buffers_without_room_break_the_device() {
    for chain in [(DATA, 44, true), (DATA, 100, false)] {
        let mut guest = guest(0);
        guest.driver.send(&[chain]);
        guest.say(ports(1, 1), operation::DATA, |_| {});
        guest.driver.wait_until_broken();
    }
}
