//! Devices behind their registers, under a driver that also makes every mistake.

use std::time::{Duration, Instant};

use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};

use super::transport::Transport;
use super::*;
use crate::worker::memory::Ram;
use crate::worker::pci::Effect;

/// Status bits.
const ACKNOWLEDGE: u8 = 1;
const DRIVER: u8 = 2;
const DRIVER_OK: u8 = 4;
const FEATURES_OK: u8 = 8;
const NEEDS_RESET: u8 = 0x40;
/// Addresses of the driver's one queue.
const DESCRIPTORS: u64 = 0x1_0000;
const AVAILABLE: u64 = 0x2_0000;
const USED: u64 = 0x3_0000;
const QUEUE: u16 = 16;

/// A device and its driver.
pub(super) struct Driver {
    transport: Transport,
    memory: Memory,
    pins: Arc<Event>,
    sent: u16,
    /// The one queue that it uses.
    pub(super) queue: u16,
    /// Descriptors of chains that were not answered, at the start of the table.
    pub(super) kept: u16,
}

impl Driver {
    pub(super) fn new(device: Box<dyn Device>) -> Self {
        let ram = Ram::new(4 << 20).unwrap();
        let memory = ram.mapping().clone();
        let pins = Arc::new(Event::new().unwrap());
        let mut transport = Transport::new(1, device, memory.clone(), Arc::clone(&pins)).unwrap();
        transport.connect(&mut Vec::new());
        Self {
            transport,
            memory,
            pins,
            sent: 0,
            queue: 0,
            kept: 0,
        }
    }

    pub(super) fn memory(&self) -> &Memory {
        &self.memory
    }

    fn get(&mut self, at: u32, size: u8) -> u64 {
        self.transport.read(0, at, size)
    }

    /// Reads the device's configuration.
    pub(super) fn config<const N: usize>(&mut self, at: u32) -> [u8; N] {
        let read = |n| self.transport.read(0, 0x2000 + at + n as u32, 1) as u8;
        std::array::from_fn(read)
    }

    fn put(&mut self, at: u32, size: u8, value: u64) {
        self.transport.write(0, at, size, value, &mut Vec::new());
    }

    pub(super) fn status(&mut self) -> u8 {
        self.get(0x14, 1) as u8
    }

    fn set_status(&mut self, status: u8) {
        self.put(0x14, 1, u64::from(status));
    }

    pub(super) fn features(&mut self) -> u64 {
        self.put(0, 4, 0);
        let low = self.get(4, 4);
        self.put(0, 4, 1);
        low | self.get(4, 4) << 32
    }

    fn accept(&mut self, features: u64) {
        for (select, half) in [(0, features & 0xffff_ffff), (1, features >> 32)] {
            self.put(8, 4, select);
            self.put(12, 4, half);
        }
    }

    /// Brings the device up with `features` beside virtio 1, and its first queue.
    pub(super) fn start(&mut self, features: u64) {
        self.start_at(features, [DESCRIPTORS, AVAILABLE, USED]);
    }

    fn start_at(&mut self, features: u64, areas: [u64; 3]) {
        self.set_status(ACKNOWLEDGE | DRIVER);
        self.accept(features | 1 << 32);
        self.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK);
        self.put(0x16, 2, u64::from(self.queue));
        self.set_up_queue(areas);
        self.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    }

    fn set_up_queue(&mut self, areas: [u64; 3]) {
        self.put(0x18, 2, u64::from(QUEUE));
        for (at, area) in [0x20, 0x28, 0x30].into_iter().zip(areas) {
            self.put(at, 8, area);
        }
        self.put(0x1c, 2, 1);
    }

    /// Resets the device and waits until the reset is complete.
    pub(super) fn reset(&mut self) {
        self.set_status(0);
        self.wait("a reset", |driver| driver.status() == 0);
        self.clear_queue();
    }

    fn clear_queue(&mut self) {
        for ring in [AVAILABLE, USED] {
            let zeroes = [0; 0x1000];
            self.memory
                .write_slice(&zeroes, GuestAddress(ring))
                .unwrap();
        }
        self.sent = 0;
        self.kept = 0;
    }

    pub(super) fn wait(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !done(self) {
            assert!(Instant::now() < deadline, "{what} in time");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn put_descriptor(&self, index: u16, descriptor: Descriptor) {
        let at = GuestAddress(DESCRIPTORS + 16 * u64::from(index));
        self.memory.write_obj(descriptor, at).unwrap();
    }

    /// Makes a chain of the descriptors available: address, length, whether the device writes.
    pub(super) fn send(&mut self, chain: &[(u64, u32, bool)]) {
        self.send_all(&[chain]);
    }

    /// Makes some chains available at once.
    pub(super) fn send_all(&mut self, chains: &[&[(u64, u32, bool)]]) {
        let mut index = self.kept;
        for (slot, chain) in (self.sent..).zip(chains) {
            let slot = AVAILABLE + 4 + 2 * u64::from(slot % QUEUE);
            self.memory.write_obj(index, GuestAddress(slot)).unwrap();
            let end = index + chain.len() as u16;
            for &(at, len, writes) in *chain {
                let flags = u16::from(index + 1 < end) | u16::from(writes) << 1;
                self.put_descriptor(index, Descriptor::new(at, len, flags, index + 1));
                index += 1;
            }
        }
        self.publish(chains.len() as u16);
    }

    fn make_available(&mut self, head: u16, count: u16) {
        let slot = AVAILABLE + 4 + 2 * u64::from(self.sent % QUEUE);
        self.memory.write_obj(head, GuestAddress(slot)).unwrap();
        self.publish(count);
    }

    /// Moves the available ring's index and notifies.
    fn publish(&mut self, count: u16) {
        self.sent = self.sent.wrapping_add(count);
        let index = GuestAddress(AVAILABLE + 2);
        self.memory.write_obj(self.sent, index).unwrap();
        // A notification that missed its doorbell.
        let port = 4 * u32::from(self.queue);
        self.transport.write(1, port, 2, 0, &mut Vec::new());
    }

    pub(super) fn used(&self) -> u16 {
        self.memory.read_obj(GuestAddress(USED + 2)).unwrap()
    }

    /// Waits for the answer to what was sent last; its length.
    pub(super) fn answer(&mut self) -> u32 {
        self.wait("an answer", |driver| driver.used() == driver.sent);
        let slot = u64::from(self.sent.wrapping_sub(1) % QUEUE);
        let len = GuestAddress(USED + 4 + 8 * slot + 4);
        self.memory.read_obj(len).unwrap()
    }

    /// Returns an element of the used ring: the length of a chain that was answered.
    pub(super) fn used_len(&self, slot: u16) -> u32 {
        let at = GuestAddress(USED + 4 + 8 * u64::from(slot % QUEUE) + 4);
        self.memory.read_obj(at).unwrap()
    }

    /// Returns an element of the used ring: the head of a chain that was answered.
    pub(super) fn used_head(&self, slot: u16) -> u16 {
        let at = GuestAddress(USED + 4 + 8 * u64::from(slot % QUEUE));
        self.memory.read_obj::<u32>(at).unwrap() as u16
    }

    /// Waits until all chains but `count` are answered.
    pub(super) fn wait_for_all_but(&mut self, count: u16) {
        self.wait("an answer", |driver| driver.used() == driver.sent - count);
    }

    pub(super) fn wait_until_broken(&mut self) {
        self.wait("broken", |driver| driver.status() & NEEDS_RESET != 0);
    }
}

#[test]
fn a_console_writes_and_reads() {
    let wake = Arc::new(Event::new().unwrap());
    let port = Arc::new(console::Port::new(Arc::clone(&wake)).unwrap());
    let mut driver = Driver::new(Box::new(console::Console::new(Arc::clone(&port))));
    assert_eq!(driver.features() & 1, 1, "it has a size");
    // The queue by which the guest reads. What was typed before there are buffers waits.
    port.type_in(b"hello");
    driver.start(1);
    driver.send(&[(0x4_0000, 4, true)]);
    assert_eq!(driver.answer(), 4);
    driver.send(&[(0x4_0010, 4, true)]);
    assert_eq!(driver.answer(), 1);
    driver.send(&[(0x4_0020, 4, true)]);
    port.type_in(b"x");
    assert_eq!(driver.answer(), 1);
    let read = |at| driver.memory.read_obj::<[u8; 4]>(GuestAddress(at)).unwrap();
    assert_eq!(
        (&read(0x4_0000), read(0x4_0010)[0], read(0x4_0020)[0]),
        (b"hell", b'o', b'x')
    );
    let room = port.room();
    port.type_in(&vec![b'y'; room]);
    assert_eq!(port.room(), 0);
    wake.clear();
    driver.send(&[(0x4_0000, 4, true)]);
    assert_eq!(driver.answer(), 4);
    assert!(wake.is_signalled(), "there is room again");
    // Its size.
    let generation = driver.get(0x15, 1);
    assert!(port.resize(132, 43));
    driver.transport.config_changed();
    assert_eq!(driver.get(0x2000, 4), 43 << 16 | 132);
    assert_ne!(driver.get(0x15, 1), generation);
    assert_eq!(driver.get(0x1000, 1), 3, "both kinds of interrupts");
    assert!(!port.resize(132, 43));
}

#[test]
fn a_console_whose_output_is_not_taken_holds_the_guest_up() {
    let wake = Arc::new(Event::new().unwrap());
    let port = Arc::new(console::Port::new(Arc::clone(&wake)).unwrap());
    let mut driver = Driver::new(Box::new(console::Console::new(Arc::clone(&port))));
    driver.queue = 1;
    driver.start(0);
    let text = [b'a'; 0x1_0000];
    driver
        .memory
        .write_slice(&text, GuestAddress(0x5_0000))
        .unwrap();
    assert!(port.prepare_sleep());
    // A chain of many pieces.
    driver.send(&[(0x5_0000, 0x1_0000, false), (0x5_0000, 0x1_0000, false)]);
    driver.answer();
    assert!(wake.is_signalled());
    assert!(!port.prepare_sleep());
    assert_eq!(port.take_output().len(), 0x2_0000);
    for _ in 0..8 {
        driver.send(&[(0x5_0000, 0x1_0000, false)]);
    }
    driver.wait("an answer", |driver| driver.used() >= 4);
    assert!(driver.used() < driver.sent, "some output waits");
    let mut taken = 0;
    driver.wait("all output", |_| {
        taken += port.take_output().len();
        taken == 0x8_0000
    });
    driver.answer();
    // A reset does not wait for users.
    for _ in 0..8 {
        driver.send(&[(0x5_0000, 0x1_0000, false)]);
    }
    driver.reset();
    // The last words come although the queue's thread was told to end.
    port.take_output();
    driver.start(0);
    driver.send(&[(0x5_0000, 5, false)]);
    driver.transport.close();
    assert_eq!(port.take_output(), b"aaaaa");
}

fn entropy() -> Driver {
    Driver::new(Box::new(entropy::Entropy))
}

#[test]
fn random_numbers_come() {
    let mut driver = entropy();
    driver.start(0);
    driver.send(&[(0x4_0000, 16, true), (0x5_0000, 16, true)]);
    assert_eq!(driver.answer(), 32);
    let (first, second): (u128, u128) = (
        driver.memory.read_obj(GuestAddress(0x4_0000)).unwrap(),
        driver.memory.read_obj(GuestAddress(0x5_0000)).unwrap(),
    );
    assert!(first != 0 && second != 0 && first != second);
}

#[test]
fn the_transport_offers_its_features() {
    let mut driver = entropy();
    assert_eq!(driver.features(), 1 << 40 | 1 << 32 | 1 << 29 | 1 << 28);
}

#[test]
fn a_reset_lets_a_driver_begin_anew() {
    let mut driver = entropy();
    for _ in 0..3 {
        driver.start(0);
        driver.send(&[(0x4_0000, 16, true)]);
        assert_eq!(driver.answer(), 16);
        driver.reset();
        assert_eq!(driver.get(0x1c, 2), 0, "the queue is not enabled");
        driver.send(&[(0x4_0000, 16, true)]);
        assert_eq!(driver.used(), 0, "nobody looks at the queue");
        driver.reset();
    }
}

#[test]
fn without_msix_a_device_interrupts_by_its_pin() {
    let mut driver = entropy();
    assert_eq!(driver.transport.header().read(0x3d, 1), 1);
    driver.start(0);
    assert!(!driver.transport.is_asserted());
    driver.send(&[(0x4_0000, 16, true)]);
    driver.answer();
    driver.wait("an interrupt", |driver| driver.transport.is_asserted());
    assert!(driver.pins.is_signalled());
    assert_ne!(driver.transport.read_config(6, 2) & 1 << 3, 0);
    // Disabled in the command register.
    driver.transport.write_config(4, 2, 0x403, &mut Vec::new());
    assert!(!driver.transport.is_asserted());
    driver.transport.write_config(4, 2, 3, &mut Vec::new());
    assert!(driver.transport.is_asserted());
    assert_eq!(driver.get(0x1000, 1), 1, "a queue has something");
    assert!(!driver.transport.is_asserted());
    assert_eq!(driver.transport.read_config(6, 2) & 1 << 3, 0);
    driver.send(&[(0x4_0000, 16, true)]);
    driver.answer();
    driver.wait("an interrupt", |driver| driver.transport.is_asserted());
    driver.reset();
    assert!(!driver.transport.is_asserted());
}

type Misdeed = fn(&mut Driver);

#[test]
fn a_queue_that_makes_no_sense_breaks_the_device_until_its_reset() {
    let mut driver = entropy();
    let looping = |driver: &mut Driver| {
        driver.put_descriptor(0, Descriptor::new(0x4_0000, 16, 3, 1));
        driver.put_descriptor(1, Descriptor::new(0x4_0000, 16, 3, 0));
        driver.make_available(0, 1);
    };
    let out_of_range = |driver: &mut Driver| driver.make_available(QUEUE, 1);
    let outside = |driver: &mut Driver| driver.send(&[(1 << 40, 16, true)]);
    let huge = |driver: &mut Driver| driver.send(&[(0x4_0000, u32::MAX, true)]);
    let mixed = |driver: &mut Driver| {
        driver.send(&[(0x4_0000, 16, true), (0x4_0000, 16, false)]);
    };
    let runaway = |driver: &mut Driver| driver.make_available(0, QUEUE + 1);
    let wrong: [(&str, Misdeed); 6] = [
        ("a loop", looping),
        ("a head that is no descriptor", out_of_range),
        ("outside of memory", outside),
        ("longer than memory", huge),
        ("to read behind to write", mixed),
        ("more than the queue holds", runaway),
    ];
    for (what, send) in wrong {
        driver.start(0);
        eprintln!("{what}");
        send(&mut driver);
        driver.wait_until_broken();
        driver.reset();
        driver.start(0);
        driver.send(&[(0x4_0000, 16, true)]);
        assert_eq!(driver.answer(), 16, "after {what}");
        driver.reset();
    }
}

#[test]
fn a_queue_outside_of_memory_or_not_aligned_breaks_the_device() {
    let mut driver = entropy();
    let good = [DESCRIPTORS, AVAILABLE, USED];
    for (area, address) in [
        (0, 1 << 40),
        (0, !0xf),
        (1, 4 << 20),
        (2, 0xfee0_0000),
        (0, DESCRIPTORS + 8),
        (1, AVAILABLE + 1),
        (2, USED + 2),
    ] {
        let mut areas = good;
        areas[area] = address;
        driver.start_at(0, areas);
        driver.wait_until_broken();
        driver.reset();
    }
    driver.start(0);
    driver.send(&[(0x4_0000, 16, true)]);
    assert_eq!(driver.answer(), 16);
}

#[test]
fn one_queue_can_be_reset_while_the_device_runs() {
    let mut driver = entropy();
    driver.start(1 << 40);
    driver.send(&[(0x4_0000, 16, true)]);
    assert_eq!(driver.answer(), 16);
    driver.put(0x3a, 2, 1);
    driver.wait("a queue's reset", |driver| driver.get(0x3a, 2) == 0);
    assert_eq!(driver.get(0x1c, 2), 0, "the queue is not enabled");
    driver.clear_queue();
    driver.send(&[(0x4_0000, 16, true)]);
    assert_eq!(driver.used(), 0, "nobody looks at the queue");
    driver.set_up_queue([DESCRIPTORS, AVAILABLE, USED]);
    assert_eq!(driver.answer(), 16);
}

#[test]
fn interrupts_go_to_the_vector_of_the_queue() {
    let mut driver = entropy();
    let mut effects = Vec::new();
    // Vector 1 of two, unmasked, enabled in the MSI-X capability, which is the last one.
    let mut at = driver.transport.header().read(0x34, 1) as usize;
    while driver.transport.header().read(at, 1) != 0x11 {
        at = driver.transport.header().read(at + 1, 1) as usize;
    }
    for (at, value) in [(0x3010, 0xfee0_0000), (0x3018, 0x41), (0x301c, 0)] {
        driver.transport.write(0, at, 4, value, &mut effects);
    }
    driver
        .transport
        .write_config(at + 2, 2, 0x8000, &mut effects);
    let [Effect::BindInterrupt(event, msi)] = &effects[..] else {
        panic!("{effects:?}");
    };
    assert_eq!(msi.data, 0x41);
    driver.put(0x1a, 2, 7);
    assert_eq!(driver.get(0x1a, 2), 0xffff, "there is no vector 7");
    driver.put(0x1a, 2, 1);
    driver.start(0);
    driver.send(&[(0x4_0000, 16, true)]);
    driver.answer();
    driver.wait("an interrupt", |_| event.is_signalled());
}
