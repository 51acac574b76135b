//! Rows of virtio devices: a disk and a NIC.

use x86_64::instructions::interrupts;

use super::{OFTEN, after, drop_value, repeat};
use crate::cpu::{read, write};
use crate::measure::Bench;
use crate::virtio::{Device, Queue, SIZE};

/// Memory of the queues and of the buffers, below what the rows of memory measure.
const MEMORY: u64 = 32 << 20;
const PAGE: u64 = 4096;
/// Requests that are open at once.
const DEPTH: u16 = 32;

/// Measures each row.
pub(super) fn run(bench: &mut Bench) {
    if let Some(disk) = Disk::find() {
        disk_rows(bench, disk);
    }
    if let Some(mut nic) = Nic::find() {
        bench.row("net-request", OFTEN, |times| {
            repeat(times, || drop_value(nic.request()));
        });
        bench.row("net-send", 32 * OFTEN, |times| {
            repeat(times / u64::from(DEPTH), || nic.send());
        });
    }
}

fn disk_rows(bench: &mut Bench, mut disk: Disk) {
    bench.row("virtio-config", OFTEN, |times| {
        repeat(times, || drop_value(read::<u32>(disk.device.configuration)));
    });
    bench.row("doorbell", OFTEN, |times| {
        repeat(times, || disk.queue.ring());
    });
    for (id, operation, depth) in [
        ("disk-id", Operation::Id, 1),
        ("disk-read-1", Operation::Read, 1),
        ("disk-write-1", Operation::Write, 1),
        ("disk-read-32", Operation::Read, DEPTH),
        ("disk-write-32", Operation::Write, DEPTH),
    ] {
        bench.row(id, OFTEN, |times| disk.run(operation, times, depth));
    }
}

/// Halts until so many requests of a queue are used. Interrupts are disabled before and afterwards.
fn wait(queue: &Queue, requests: u16) {
    queue.interrupt_after(requests);
    while queue.ready() < requests {
        interrupts::enable_and_hlt();
        interrupts::disable();
    }
}

/// What a request asks of a disk (virtio 1.2 §5.2.6).
#[derive(Clone, Copy)]
enum Operation {
    Read = 0,
    Write = 1,
    Id = 8,
}

/// A disk, with a place for each open request: descriptors, header, data and status.
struct Disk {
    device: Device,
    queue: Queue,
    random: u32,
}

impl Disk {
    const KIND: u16 = 2;
    const PARTS: u16 = 3;
    const HEADERS: u64 = MEMORY + 2 * PAGE;
    const STATUS: u64 = Self::HEADERS + PAGE;
    const DATA: u64 = Self::STATUS + PAGE;

    fn find() -> Option<Self> {
        let device = Device::find(Self::KIND)?;
        let queue = device.queue(0, MEMORY);
        device.start();
        Some(Self {
            device,
            queue,
            random: 1,
        })
    }

    /// Carries out requests, with at most `depth` of them open at once.
    fn run(&mut self, operation: Operation, times: u64, depth: u16) {
        let depth = times.min(depth.into()) as u16;
        for place in 0..depth {
            self.describe(operation, place);
            self.begin(place);
        }
        let mut left = times - u64::from(depth);
        self.queue.notify();
        let mut open = depth;
        while open > 0 {
            wait(&self.queue, 1);
            while let Some(first) = self.queue.take() {
                let place = first / Self::PARTS;
                let status: u8 = read(Self::STATUS + u64::from(place));
                if status != 0 {
                    crate::stop(format_args!("a request ended with status {status}"));
                }
                if left > 0 {
                    left -= 1;
                    self.begin(place);
                } else {
                    open -= 1;
                }
            }
            self.queue.notify();
        }
    }

    fn describe(&self, operation: Operation, place: u16) {
        let number = u64::from(place);
        let header = Self::HEADERS + 16 * number;
        write(header, operation as u64);
        let bytes = match operation {
            Operation::Id => 20,
            Operation::Read | Operation::Write => PAGE as u32,
        };
        let is_read = !matches!(operation, Operation::Write);
        let parts = [
            (header, 16, false),
            (Self::DATA + PAGE * number, bytes, is_read),
            (Self::STATUS + number, 1, true),
        ];
        self.queue.describe(Self::PARTS * place, &parts);
    }

    /// Makes the request of a place available, for any 4 KiB of the first 16 MiB.
    fn begin(&mut self, place: u16) {
        const SECTORS: u32 = (16 << 20) / 512 - 8;
        self.random = after(self.random);
        let sector = (self.random >> 8) & SECTORS & !7;
        write(Self::HEADERS + 16 * u64::from(place) + 8, u64::from(sector));
        write(Self::STATUS + u64::from(place), 0xff_u8);
        self.queue.add(Self::PARTS * place);
    }
}

/// Addresses that the scripts know: of the host in its network, and of this guest.
const HOST: u32 = u32::from_le_bytes([10, 77, 0, 1]);
const GUEST: u32 = u32::from_le_bytes([10, 77, 0, 10]);
/// Bytes before a frame (virtio 1.2 §5.1.6).
const HEADER: u64 = 12;
/// Bytes of a frame with ARP (RFC 826).
const ARP: u32 = 42;
/// Types of frames, in the order in which a CPU reads their bytes: ARP, and one for experiments (IEEE 802).
const TYPE_ARP: u16 = 0x0806_u16.to_be();
const TYPE_EXPERIMENT: u16 = 0x88b5_u16.to_be();

/// A NIC that knows its host.
struct Nic {
    receive: Queue,
    send: Queue,
}

impl Nic {
    const KIND: u16 = 1;
    const RECEIVED: u64 = MEMORY + (1 << 20);
    const REQUEST: u64 = Self::RECEIVED + PAGE * SIZE as u64;
    const FRAME: u64 = Self::REQUEST + PAGE;
    /// Descriptor of the request.
    const ASK: u16 = DEPTH;

    fn find() -> Option<Self> {
        let device = Device::find(Self::KIND)?;
        let receive = device.queue(0, MEMORY + (2 << 20));
        let send = device.queue(1, MEMORY + (3 << 20));
        device.start();
        let mut nic = Self { receive, send };
        for number in 0..SIZE {
            let at = Self::RECEIVED + PAGE * u64::from(number);
            nic.receive.describe(number, &[(at, 2048, true)]);
            nic.receive.add(number);
        }
        nic.receive.notify();
        let frame = (Self::FRAME, HEADER as u32 + 60, false);
        (0..DEPTH).for_each(|number| nic.send.describe(number, &[frame]));
        let request = (Self::REQUEST, HEADER as u32 + ARP, false);
        nic.send.describe(Self::ASK, &[request]);
        for at in 0..6 {
            let byte: u8 = read(device.configuration + at);
            let request = Self::REQUEST + HEADER;
            // The sender, in the frame and in ARP.
            write(request + 6 + at, byte);
            write(request + 22 + at, byte);
            write(request + at, 0xff_u8);
            write(Self::FRAME + HEADER + 6 + at, byte);
        }
        arp(Self::REQUEST + HEADER);
        write(Self::FRAME + HEADER + 12, TYPE_EXPERIMENT);
        let answer = nic.request();
        // From now on both go to the host alone: hosts limit what guests send to everybody.
        for at in 0..6 {
            let byte: u8 = read(answer + 6 + at);
            write(Self::REQUEST + HEADER + at, byte);
            write(Self::FRAME + HEADER + at, byte);
        }
        Some(nic)
    }

    /// Asks for the host's address, and waits for its answer, which it returns.
    fn request(&mut self) -> u64 {
        // A notification that the frame was sent is of no use here.
        self.send.interrupt_after(SIZE);
        while self.send.take().is_some() {}
        self.send.add(Self::ASK);
        self.send.notify();
        loop {
            wait(&self.receive, 1);
            let Some(number) = self.receive.take() else {
                continue;
            };
            let frame = Self::RECEIVED + PAGE * u64::from(number) + HEADER;
            self.receive.add(number);
            self.receive.notify();
            if read::<u16>(frame + 12) == TYPE_ARP {
                return frame;
            }
        }
    }

    /// Sends as many frames as may be open at once, and waits until they are sent.
    fn send(&mut self) {
        while self.send.take().is_some() {}
        (0..DEPTH).for_each(|number| self.send.add(number));
        self.send.notify();
        wait(&self.send, DEPTH);
    }
}

/// Writes the parts of an ARP request that are the same for each guest and host.
fn arp(frame: u64) {
    write(frame + 12, TYPE_ARP);
    // Ethernet and IPv4, with addresses of 6 and 4 bytes; the operation is a request.
    let fields: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 1];
    for (at, byte) in (14..).zip(fields) {
        write(frame + at, byte);
    }
    write(frame + 28, GUEST);
    write(frame + 38, HOST);
}
