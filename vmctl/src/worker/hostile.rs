//! Actions of a hostile driver, made from arbitrary bytes, for property tests and fuzzing.
//!
//! [`queue`] serves one queue whose rings, descriptors and buffers come from the bytes. [`bus`]
//! makes accesses to the PCI bus of them. Neither may panic or hang, and a device may write nowhere
//! but to the buffers that are its to write.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_WRITE};
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueT};
use vm_memory::{ByteValued, Bytes, GuestAddress};

use super::event::Event;
use super::memory::{Memory, Ram};
use super::pci::{Bus, window};
use super::stall::Stalls;
use super::virtio::block::{Block, Options};
use super::virtio::console::{Console, Port};
use super::virtio::entropy::Entropy;
use super::virtio::net::{Net, Options as NetOptions};
use super::virtio::transport::Transport;
use super::virtio::vsock::{Mux, Vsock};
use super::virtio::{Device, Interrupt, Vring};
use crate::config::{OnError, OnTimeout};
use crate::disk::{Access, Cache, Chain, Format, Image};
use crate::net::{Mac, Tap};

const RAM: u64 = 256 << 10;
const DISK: u64 = 1 << 20;
const PAGE: usize = 4096;
/// Addresses of the queue's parts.
const TABLE: u64 = 0x1000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;
/// Places of buffers, and their contents.
const BUFFERS: u64 = 0x4000;
/// Largest size of a queue, as a power of two.
const MAX_QUEUE: u16 = 16;

/// The bytes that remain. Behind the last one come zeroes.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    fn word(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    fn long(&mut self) -> u64 {
        (0..8).fold(0, |value, _| value << 8 | u64::from(self.byte()))
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A device, and what has to be looked at afterwards.
struct Target {
    device: Box<dyn Device>,
    port: Option<Arc<Port>>,
    image: Option<File>,
    /// The other end of a cable.
    network: Option<OwnedFd>,
}

fn event() -> Arc<Event> {
    #[expect(clippy::expect_used, reason = "a test's process has descriptors left")]
    Arc::new(Event::new().expect("an event"))
}

impl Target {
    fn of(kind: u8) -> Self {
        let mut target = Self {
            device: Box::new(Entropy),
            port: None,
            image: None,
            network: None,
        };
        match kind % 6 {
            0 => {}
            5 => target.device = Box::new(sockets()),
            1 => {
                #[expect(clippy::expect_used, reason = "a test's process has descriptors left")]
                let port = Arc::new(Port::new(event()).expect("a port"));
                port.type_in(b"typed");
                target.device = Box::new(Console::new(Arc::clone(&port)));
                target.port = Some(port);
            }
            2 => {
                let (card, network) = card();
                target.device = Box::new(card);
                target.network = Some(network);
            }
            kind => {
                let access = if kind == 3 {
                    Access::Write
                } else {
                    Access::Read
                };
                let (file, image) = image(access);
                let stalls = Arc::new(Stalls::new(event()));
                target.device = Box::new(Block::new(image, options(), stalls));
                target.image = Some(file);
            }
        }
        target
    }

    /// Checks what must hold in the end.
    fn check(&self) {
        if let Some(file) = &self.image {
            assert_eq!(file.metadata().map_or(0, |meta| meta.len()), DISK);
        }
    }
}

/// A network card to which its network has sent some frames, and the network.
fn card() -> (Net, OwnedFd) {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
    #[expect(clippy::expect_used, reason = "a test's process has descriptors left")]
    let (tap, network) = pair.expect("sockets");
    for len in [20, 100, 2000, 5] {
        // Bytes that do not fit into the guest's buffers are lost.
        let _ = rustix::io::write(&network, &vec![0xee; len]);
    }
    let options = NetOptions {
        name: "nic0".to_owned(),
        place: "lan0".to_owned(),
        mac: Mac::of_text("nic0"),
        is_up: true,
    };
    let tap = Tap::of_sockets(vec![tap]);
    let memory = ram().mapping().clone();
    (Net::new(tap, Vec::new(), options, memory), network)
}

/// A socket device that two programs of VM 0 have connected to.
fn sockets() -> Vsock {
    #[expect(clippy::expect_used, reason = "a test's process has descriptors left")]
    let mux = (|| {
        let dir = tempfile::tempdir().ok()?;
        let path = dir.path().join("vsock");
        let listener = UnixListener::bind(&path).ok()?;
        let mux = Mux::new(3, listener, event()).ok()?;
        for line in ["CONNECT 1\ntyped", "CONNECT "] {
            let mut client = UnixStream::connect(&path).ok()?;
            client.write_all(line.as_bytes()).ok()?;
        }
        Some(mux)
    })()
    .expect("sockets");
    Vsock::Worker(Arc::new(mux))
}

fn image(access: Access) -> (File, Image) {
    #[expect(clippy::expect_used, reason = "memory is a file as good as any")]
    let (file, image) = (|| {
        let file = memfd_create("disk", MemfdFlags::CLOEXEC).ok()?;
        ftruncate(&file, DISK).ok()?;
        let file = File::from(file);
        let copy = OwnedFd::from(file.try_clone().ok()?);
        let chain = Chain::of_files(Path::new("disk"), Format::Raw, access, vec![copy]).ok()?;
        Some((file, Image::new(chain, Cache::Writeback).ok()?))
    })()
    .expect("an image");
    (file, image)
}

fn options() -> Options {
    Options {
        name: "disk".to_owned(),
        serial: "SERIAL".to_owned(),
        queues: 2,
        writethrough: false,
        on_enospc: OnError::Report,
        on_error: OnError::Report,
        io_timeout: Duration::from_secs(30),
        on_timeout: OnTimeout::Wait,
    }
}

fn ram() -> Ram {
    #[expect(clippy::expect_used, reason = "a test's process has memory left")]
    Ram::new(RAM).expect("memory")
}

/// Serves a queue that consists of `data`.
pub fn queue(data: &[u8]) {
    let mut input = Input(data);
    let mut target = Target::of(input.byte());
    let ram = ram();
    let memory = ram.mapping();
    let choices = input.byte();
    let index = u16::from(choices & 1 | choices >> 5 & 2);
    let Some(vring) = make_queue(&mut input, memory, index, choices) else {
        return;
    };
    let before = contents(memory);
    // The thread is told to end at once. It serves the requests that exist first.
    let stop = event();
    stop.signal();
    let features = target.device.features();
    let mut server = target.device.server(index, features);
    // A malformed queue is an error, and no more.
    let _ = server.run(memory, &vring, &stop);
    drop(server);
    target.device.close();
    target.check();
    if let Some(port) = &target.port {
        port.take_output();
    }
    check_memory(&before, &contents(memory));
}

/// Writes rings, descriptors and buffers.
fn make_queue(input: &mut Input<'_>, memory: &Memory, index: u16, choices: u8) -> Option<Vring> {
    let size = 1 << (choices >> 1 & 7).min(4);
    let put = |at: u64, bytes: &[u8]| drop(memory.write_slice(bytes, GuestAddress(at)));
    // The flags, the index, the heads, and the index at which the driver wants to hear of something.
    put(AVAILABLE, &u16::from(input.byte()).to_le_bytes());
    let count = u16::from(input.byte()) % (size + 3);
    put(AVAILABLE + 2, &count.to_le_bytes());
    for slot in 0..u64::from(size) {
        let head = u16::from(input.byte() % 20);
        put(AVAILABLE + 4 + 2 * slot, &head.to_le_bytes());
    }
    let event = u16::from(input.byte());
    put(AVAILABLE + 4 + 2 * u64::from(size), &event.to_le_bytes());
    let mut at = TABLE;
    for _ in 0..size {
        put(at, descriptor(input).as_slice());
        at += 16;
    }
    // Headers of requests, and tables of indirect descriptors.
    let mut at = BUFFERS;
    while !input.is_empty() && at < BUFFERS + 0x1000 {
        let choice = input.byte();
        if choice & 0xc0 == 0xc0 {
            put(at, descriptor(input).as_slice());
        } else {
            put(at, &u32::from(choice & 0xf).to_le_bytes());
            put(at + 8, &u64::from(input.word()).to_le_bytes());
        }
        at += 16;
    }
    let mut queue = Queue::new(MAX_QUEUE).ok()?;
    queue.try_set_size(size).ok()?;
    queue.try_set_desc_table_address(GuestAddress(TABLE)).ok()?;
    queue
        .try_set_avail_ring_address(GuestAddress(AVAILABLE))
        .ok()?;
    queue.try_set_used_ring_address(GuestAddress(USED)).ok()?;
    queue.set_event_idx(choices & 0x10 != 0);
    queue.set_ready(true);
    Some(Vring::new(
        index,
        queue,
        self::event(),
        Interrupt::Vector(self::event()),
    ))
}

fn descriptor(input: &mut Input<'_>) -> Descriptor {
    let choice = input.byte();
    let place = u64::from(input.byte()) << 4;
    let address = match choice >> 6 {
        0 | 1 => BUFFERS + place,
        2 => RAM - place,
        _ => input.long(),
    };
    let len = match choice >> 4 & 3 {
        0 => 16,
        1 => u32::from(input.byte()),
        2 => u32::from(input.word()) << 2,
        _ => u32::MAX - u32::from(input.byte()),
    };
    let next = u16::from(input.byte() % 20);
    Descriptor::new(address, len, u16::from(choice & 7), next)
}

fn contents(memory: &Memory) -> Vec<u8> {
    let mut bytes = vec![0; RAM as usize];
    let _ = memory.read_slice(&mut bytes, GuestAddress(0));
    bytes
}

/// Checks that nothing has changed but the used ring and buffers that a descriptor lets the device
/// write. Indirect tables may let it write anywhere.
fn check_memory(before: &[u8], after: &[u8]) {
    let mut may_change = vec![(USED, 0x1000), (AVAILABLE, 0x1000)];
    let descriptor = |at: usize| {
        let bytes = before.get(at..at + 16).and_then(|b| b.try_into().ok());
        u128::from_le_bytes(bytes.unwrap_or_default())
    };
    for index in 0..usize::from(MAX_QUEUE) {
        let raw = descriptor(TABLE as usize + 16 * index);
        let (address, len) = (raw as u64, (raw >> 64) as u32);
        let flags = u32::from((raw >> 96) as u16);
        if flags & VRING_DESC_F_INDIRECT != 0 {
            return;
        }
        if flags & VRING_DESC_F_WRITE != 0 {
            may_change.push((address, u64::from(len)));
        }
    }
    let pages = before.chunks(PAGE).zip(after.chunks(PAGE)).enumerate();
    for (page, (old, new)) in pages.filter(|(_, (old, new))| old != new) {
        let bytes = old.iter().zip(new).enumerate();
        for (at, _) in bytes.filter(|(_, (old, new))| old != new) {
            let at = (page * PAGE + at) as u64;
            let is_allowed = |&(start, len): &(u64, u64)| at.wrapping_sub(start) < len;
            assert!(may_change.iter().any(is_allowed), "a write to {at:#x}");
        }
    }
}

/// Makes accesses to a bus with one device of each kind of `data`.
pub fn bus(data: &[u8]) {
    let mut input = Input(data);
    let ram = ram();
    let mut bus = Bus::default();
    let mut targets = Vec::new();
    for (slot, kind) in (1u8..).zip(0..6) {
        let Target {
            device,
            port,
            image,
            network,
        } = Target::of(kind);
        let Ok(transport) = Transport::new(slot, device, ram.mapping().clone(), event()) else {
            return;
        };
        bus.insert(slot, Box::new(transport));
        targets.push((port, image, network));
    }
    while !input.is_empty() {
        access(&mut input, &mut bus, ram.mapping());
        bus.take_effects();
        bus.asserted();
        for mut device in bus.take_removed() {
            device.close();
        }
        for port in targets.iter().filter_map(|(port, ..)| port.as_ref()) {
            port.take_output();
        }
    }
    for mut device in bus.take_devices() {
        device.close();
    }
    for (_, image, _) in &targets {
        let len = image
            .as_ref()
            .map(|file| file.metadata().map_or(0, |meta| meta.len()));
        assert!(len.is_none_or(|len| len == DISK));
    }
}

fn access(input: &mut Input<'_>, bus: &mut Bus, memory: &Memory) {
    let choice = input.byte();
    let size = 1 << (choice & 3);
    let slot = u32::from(input.byte() % 6);
    let at = u32::from(input.word());
    let register = *window::MEMORY.start() + slot * window::SLOT_MEMORY;
    match choice >> 2 & 7 {
        0 if at < 0x8000 => bring_up(bus, register, at as u16 % 3),
        // The registers that matter most: those of the common configuration.
        0 | 1 => {
            let address = u64::from(register + at % 0x40);
            let value = match choice >> 5 {
                // Addresses of queues.
                0..=3 => u64::from(input.byte()) << 12,
                4 | 5 => u64::from(input.byte()),
                _ => input.long(),
            };
            bus.write_memory(address, size, value);
        }
        2 => drop(bus.read_memory(u64::from(register + at % 0x5000), size)),
        3 => drop(bus.write_memory(u64::from(register + at % 0x5000), size, input.long())),
        4 => {
            let address = *window::ECAM.start() + (slot << 15 | at & 0xfff);
            let value = input.long();
            bus.write_memory(u64::from(address), size, value);
            bus.read_memory(u64::from(address), size);
        }
        5 => {
            let value = u64::from(input.word());
            let address = 1 << 31 | slot << 11 | at & 0xfc;
            bus.write_port(window::ADDRESS, 4, u64::from(address));
            bus.write_port(*window::DATA.start(), size.min(4), value);
            bus.read_port(*window::DATA.start(), size.min(4));
        }
        // Notifications, and the registers of hot plug.
        6 => {
            let port = window::IO.start() + (slot * window::SLOT_IO + at % 16) as u16;
            bus.write_port(port, size.min(4), u64::from(input.word()));
            let port = window::SLOTS.start() + at as u16 % 16;
            bus.write_port(port, size.min(4), u64::from(input.word()));
            bus.ask_for(super::virtio::Kind::Entropy, "rng");
        }
        _ => {
            let value = input.long();
            let address = GuestAddress((u64::from(at) << 2) & (RAM - 1));
            let _ = memory.write_obj(value, address);
        }
    }
}

/// Does what a driver does to get its device ready, so that other accesses meet queues that are served.
fn bring_up(bus: &mut Bus, register: u32, queue: u16) {
    let mut put = |at: u32, size: u8, value: u64| {
        bus.write_memory(u64::from(register + at), size, value);
    };
    for (at, size, value) in [
        (0x14, 1, 0x3),
        // Version 1, and resets of single queues.
        (0x08, 4, 1),
        (0x0c, 4, 0x101),
        (0x14, 1, 0xb),
        (0x16, 2, u64::from(queue)),
        (0x18, 2, u64::from(MAX_QUEUE)),
        (0x20, 8, TABLE),
        (0x28, 8, AVAILABLE),
        (0x30, 8, USED),
        (0x1c, 2, 1),
        (0x14, 1, 0xf),
    ] {
        put(at, size, value);
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: 4000,
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        #[test]
        fn no_queue_harms_the_worker(data in vec(any::<u8>(), 0..600)) {
            super::queue(&data);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: 400,
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        #[test]
        fn no_access_to_the_bus_harms_the_worker(data in vec(any::<u8>(), 0..4000)) {
            super::bus(&data);
        }
    }
}
