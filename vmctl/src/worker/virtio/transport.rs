//! A virtio device on the PCI bus (virtio 1.2 §4.1): where its registers are, and the life of its
//! queues' threads.
//!
//! BAR 0 is memory and holds the common configuration (`registers`), the interrupt status, the
//! device's own configuration, and the MSI-X table with its pending bits. BAR 1 is I/O ports, four
//! for each queue. A notification is an `out` to one of them: the microvisor needs no instruction
//! decoder for it, and signals the queue's [`Event`] directly.
//!
//! A queue's thread runs from the moment when the driver is ready until a reset. A reset is
//! complete when the threads have ended; until then the device status does not read as 0 (§2.4.2).

use std::fmt;
use std::io;
use std::sync::Arc;

use virtio_bindings::virtio_config::{VIRTIO_F_RING_RESET, VIRTIO_F_VERSION_1};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;

use super::registers::{self, Action, Registers, View};
use super::thread::{QueueThread, Work};
use super::{Device, Interrupt, Kind, Notifier, Vring};
use crate::worker::event::Event;
use crate::worker::memory::Memory;
use crate::worker::pci::header::{Header, Identity, Space};
use crate::worker::pci::msix::Msix;
use crate::worker::pci::{Effect, window};

/// PCI vendor ID of virtio devices (§4.1.2).
const VENDOR: u16 = 0x1af4;
/// PCI device ID that corresponds to virtio device ID 0 (§4.1.2).
const FIRST_DEVICE: u16 = 0x1040;
/// PCI revision ID of a device that is not transitional (§4.1.2.1).
const REVISION: u8 = 1;

const MEMORY_BAR: usize = 0;
const NOTIFY_BAR: usize = 1;
/// The parts of BAR 0: a page each.
mod region {
    pub(super) const COMMON: u32 = 0x0000;
    pub(super) const ISR: u32 = 0x1000;
    pub(super) const DEVICE: u32 = 0x2000;
    pub(super) const MSIX: u32 = 0x3000;
    pub(super) const PENDING: u32 = 0x4000;
    pub(super) const SIZE: u32 = 0x8000;
    pub(super) const PAGE: u32 = 0x1000;
}
/// I/O ports of a queue.
const NOTIFY_PORTS: u32 = 4;
/// Queues that a device can have: as many as a slot has ports for.
pub const MAX_QUEUES: usize = (window::SLOT_IO / NOTIFY_PORTS) as usize;
/// Doorbell tag of the first queue in slot 0. Each slot has [`MAX_QUEUES`] tags.
const FIRST_TAG: u16 = 0x100;

/// Offset of the PCI command register.
const COMMAND: usize = 4;
/// ID of PCI's vendor-specific capability.
const CAPABILITY: u8 = 0x09;
/// Types of virtio's capabilities (§4.1.4).
mod capability {
    pub(super) const COMMON: u8 = 1;
    pub(super) const NOTIFY: u8 = 2;
    pub(super) const ISR: u8 = 3;
    pub(super) const DEVICE: u8 = 4;
    pub(super) const PCI: u8 = 5;
}

/// Features that the transport offers for every device.
const FEATURES: u64 = 1 << VIRTIO_F_VERSION_1
    | 1 << VIRTIO_F_RING_RESET
    | 1 << VIRTIO_RING_F_EVENT_IDX
    | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// A queue's event and, while the queue is served, its thread.
#[derive(Debug)]
struct QueueState {
    kick: Arc<Event>,
    thread: Option<QueueThread>,
}

/// A device with its registers.
#[derive(Debug)]
pub struct Transport {
    header: Header,
    msix: Msix,
    registers: Registers,
    device: Box<dyn Device>,
    memory: Memory,
    queues: Vec<QueueState>,
    /// Shared with the queues' threads. A reset replaces it.
    notifier: Arc<Notifier>,
    pins: Arc<Event>,
    /// Doorbell tag of the first queue.
    tag: u16,
    /// First I/O port of the doorbells that the driver knows.
    doorbells: Option<u16>,
    /// Offset in configuration space of the PCI configuration access capability (§4.1.4.9).
    access: usize,
}

impl Transport {
    /// Puts registers for slot `slot` in front of `device`. `pins` wakes the thread that looks at
    /// [`Self::is_asserted`].
    ///
    /// # Errors
    ///
    /// The process has no file descriptors left.
    pub fn new(
        slot: u8,
        device: Box<dyn Device>,
        memory: Memory,
        pins: Arc<Event>,
    ) -> io::Result<Self> {
        let kind = device.kind();
        let id = (VENDOR, FIRST_DEVICE + kind.id());
        let mut header = Header::new(Identity {
            device: id,
            subsystem: id,
            class: kind.class(),
            revision: REVISION,
        });
        let sizes = device.queues();
        let sizes = &sizes[..sizes.len().min(MAX_QUEUES)];
        let state = |_: &u16| -> io::Result<_> {
            Ok(QueueState {
                kick: Arc::new(Event::new()?),
                thread: None,
            })
        };
        let queues: Vec<_> = sizes.iter().map(state).collect::<io::Result<_>>()?;
        let ports = NOTIFY_PORTS * queues.len() as u32;
        let slot = u32::from(slot);
        let memory_at = window::MEMORY.start() + slot * window::SLOT_MEMORY;
        let ports_at = u32::from(*window::IO.start()) + slot * window::SLOT_IO;
        header.add_bar(MEMORY_BAR, Space::Memory, region::SIZE, memory_at);
        header.add_bar(NOTIFY_BAR, Space::Io, ports, ports_at);
        header.add_pin();
        let access = add_capabilities(&mut header, ports.next_power_of_two());
        let vectors = queues.len() as u16 + 1;
        let bar = MEMORY_BAR as u32;
        let msix = Msix::new(&mut header, vectors, bar, region::MSIX, region::PENDING)?;
        Ok(Self {
            header,
            msix,
            registers: Registers::new(sizes),
            device,
            memory,
            queues,
            notifier: Arc::new(Notifier::new(Arc::clone(&pins))),
            pins,
            tag: FIRST_TAG + slot as u16 * MAX_QUEUES as u16,
            doorbells: None,
            access,
        })
    }

    /// Returns the device's type.
    pub fn kind(&self) -> Kind {
        self.device.kind()
    }

    /// Tells the driver that the device's configuration has changed.
    pub fn config_changed(&self) {
        self.notifier.config_changed();
    }

    /// Returns the device's name.
    pub fn name(&self) -> &str {
        self.device.name()
    }

    /// Returns the configuration space.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The device was put onto the bus: asks for its doorbells.
    pub fn connect(&mut self, effects: &mut Vec<Effect>) {
        self.place_doorbells(effects);
    }

    /// The device was taken off the bus: gives back its doorbells and interrupts, and tells its
    /// threads to end.
    pub fn disconnect(&mut self, effects: &mut Vec<Effect>) {
        self.header.write(COMMAND, 2, 0);
        self.msix.disable(&mut self.header, effects);
        self.place_doorbells(effects);
        self.stop_queues();
    }

    /// Ends the threads, waits until they have ended, and closes the device.
    pub fn close(&mut self) {
        self.stop_queues();
        for queue in &mut self.queues {
            queue.thread = None;
        }
        self.device.close();
    }

    /// Returns whether the device asserts its interrupt pin.
    pub fn is_asserted(&self) -> bool {
        self.notifier.has_isr() && !self.msix.is_enabled(&self.header) && self.header.allows_pin()
    }

    /// Reads configuration space.
    pub fn read_config(&mut self, at: usize, size: u8) -> u32 {
        let has_isr = self.notifier.has_isr() && !self.msix.is_enabled(&self.header);
        self.header.set_interrupt_status(has_isr);
        match self.access_target(at, size) {
            Some((bar, offset)) => self.read(bar, offset, size) as u32,
            None => self.header.read(at, size),
        }
    }

    /// Writes configuration space.
    pub fn write_config(&mut self, at: usize, size: u8, value: u32, effects: &mut Vec<Effect>) {
        self.header.write(at, size, value);
        if let Some((bar, offset)) = self.access_target(at, size) {
            self.write(bar, offset, size, u64::from(value), effects);
        }
        self.msix.update(&self.header, effects);
        self.place_doorbells(effects);
    }

    /// Returns the BAR and the offset that the PCI configuration access capability selects, if an
    /// access is one to its data field and has the length that the capability says.
    fn access_target(&self, at: usize, size: u8) -> Option<(usize, u32)> {
        let field = |at, size| self.header.read(self.access + at, size);
        let is_data = at == self.access + access_field::DATA;
        (is_data && field(access_field::LENGTH, 4) == u32::from(size)).then(|| {
            (
                field(access_field::BAR, 1) as usize,
                field(access_field::OFFSET, 4),
            )
        })
    }

    /// Registers a doorbell for each queue where BAR 1 is now. Outside of the bus's ports there are
    /// none: other devices' ports are not the guest's to take.
    fn place_doorbells(&mut self, effects: &mut Vec<Effect>) {
        let bar = self.header.bar(NOTIFY_BAR);
        let base = bar.and_then(|(_, base, _)| u16::try_from(base).ok());
        let wanted = base.filter(|base| window::IO.contains(base));
        if wanted == self.doorbells {
            return;
        }
        let is_placed = self.doorbells.is_some();
        self.doorbells = wanted;
        for (index, queue) in (0u16..).zip(&self.queues) {
            let tag = self.tag + index;
            if is_placed {
                effects.push(Effect::RemoveDoorbell(tag));
            }
            effects.extend(wanted.map(|base| Effect::AddDoorbell {
                port: base + index * NOTIFY_PORTS as u16,
                length: NOTIFY_PORTS as u16,
                tag,
                event: Arc::clone(&queue.kick),
            }));
        }
    }

    /// Reads a BAR.
    pub fn read(&mut self, bar: usize, at: u32, size: u8) -> u64 {
        if bar != MEMORY_BAR {
            return 0;
        }
        let within = at % region::PAGE;
        match at - within {
            region::COMMON => {
                self.complete_resets();
                self.registers.read(within, size, self.view())
            }
            region::ISR if within == 0 => u64::from(self.notifier.take_isr()),
            region::DEVICE => {
                let mut bytes = [0; 8];
                let len = usize::from(size.min(8));
                self.device.read_config(within as usize, &mut bytes[..len]);
                u64::from_le_bytes(bytes)
            }
            region::MSIX => self.msix.read(within, size),
            region::PENDING => self.msix.read_pending(within, size),
            _ => 0,
        }
    }

    /// Writes a BAR.
    pub fn write(&mut self, bar: usize, at: u32, size: u8, value: u64, effects: &mut Vec<Effect>) {
        if bar != MEMORY_BAR {
            // The driver has no doorbell there, for example because it has too many of them.
            let queue = self.queues.get((at / NOTIFY_PORTS) as usize);
            queue.inspect(|queue| queue.kick.signal());
            return;
        }
        let within = at % region::PAGE;
        match at - within {
            region::COMMON => {
                self.complete_resets();
                let (features, vectors) = (self.features(), self.msix.vectors());
                let action = self.registers.write(within, size, value, features, vectors);
                self.act(action);
            }
            region::DEVICE => {
                let bytes = value.to_le_bytes();
                let len = usize::from(size.min(8));
                self.device.write_config(within as usize, &bytes[..len]);
            }
            region::MSIX => self.msix.write(&self.header, within, size, value, effects),
            _ => {}
        }
    }

    fn features(&self) -> u64 {
        FEATURES | self.device.features()
    }

    fn view(&self) -> View {
        View {
            features: self.features(),
            generation: self.notifier.generation(),
            needs_reset: self.notifier.is_broken(),
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::None => {}
            Action::Reset => {
                self.stop_queues();
                self.complete_resets();
            }
            Action::Start => {
                let event = self.msix.event(self.registers.config_vector).cloned();
                self.notifier.set_config_event(event);
                self.device.activate(self.registers.driver_features);
                for index in 0..self.queues.len() {
                    self.start_queue(index);
                }
            }
            Action::StartQueue(index) => self.start_queue(usize::from(index)),
            Action::ResetQueue(index) => {
                let queue = self.queues.get(usize::from(index));
                if let Some(thread) = queue.and_then(|queue| queue.thread.as_ref()) {
                    thread.stop();
                }
                self.complete_resets();
            }
        }
    }

    fn stop_queues(&self) {
        let threads = self.queues.iter().filter_map(|queue| queue.thread.as_ref());
        threads.for_each(QueueThread::stop);
    }

    /// Completes the resets whose threads have ended.
    fn complete_resets(&mut self) {
        let has_ended = |queue: &QueueState| {
            let thread = queue.thread.as_ref();
            thread.is_none_or(QueueThread::has_ended)
        };
        if self.registers.is_resetting() && self.queues.iter().all(has_ended) {
            for queue in &mut self.queues {
                queue.thread = None;
            }
            self.notifier = Arc::new(Notifier::new(Arc::clone(&self.pins)));
            self.registers.complete_reset();
        }
        for (setup, queue) in self.registers.queues.iter_mut().zip(&mut self.queues) {
            if setup.is_resetting && has_ended(queue) {
                queue.thread = None;
                setup.reset();
            }
        }
    }

    /// Starts the thread of a queue, if the driver has enabled the queue. If the thread can't start,
    /// the device is broken.
    fn start_queue(&mut self, index: usize) {
        let started = self.start_thread(index);
        match (started, self.queues.get_mut(index)) {
            (Ok(thread), Some(queue)) => queue.thread = thread,
            (Ok(_), None) => {}
            (Err(reason), _) => {
                let reason = format_args!("queue {index}: {reason}");
                self.notifier.break_device(self.device.name(), reason);
            }
        }
    }

    fn start_thread(&mut self, index: usize) -> Result<Option<QueueThread>, QueueError> {
        let Some(vring) = self.vring(index)? else {
            return Ok(None);
        };
        let features = self.registers.driver_features;
        let server = self.device.server(vring.index, features);
        let work = Work {
            device: self.device.name().to_owned(),
            memory: self.memory.clone(),
            vring,
            notifier: Arc::clone(&self.notifier),
        };
        let thread = QueueThread::start(work, server).map_err(QueueError::Thread)?;
        Ok(Some(thread))
    }

    /// Returns a queue for its thread, or `None` if the driver has not enabled it.
    fn vring(&self, index: usize) -> Result<Option<Vring>, QueueError> {
        let (Some(setup), Some(state)) = (self.registers.queues.get(index), self.queues.get(index))
        else {
            return Ok(None);
        };
        if !setup.is_enabled {
            return Ok(None);
        }
        let queue = queue(setup, self.registers.has(VIRTIO_RING_F_EVENT_IDX))
            .filter(|queue| queue.is_valid(&self.memory))
            .ok_or(QueueError::Address)?;
        // A signal of the time before is void: the thread looks at the ring first.
        state.kick.clear();
        let call = match (
            self.msix.is_enabled(&self.header),
            self.msix.event(setup.vector),
        ) {
            (false, _) => Interrupt::Pin(Arc::clone(&self.notifier)),
            (true, Some(event)) => Interrupt::Vector(Arc::clone(event)),
            (true, None) => Interrupt::None,
        };
        let kick = Arc::clone(&state.kick);
        Ok(Some(Vring::new(index as u16, queue, kick, call)))
    }
}

/// Returns the queue that a driver has set up; `None` if its addresses are not aligned.
fn queue(setup: &registers::QueueSetup, event_idx: bool) -> Option<Queue> {
    let [descriptors, driver, device] = setup.areas.map(GuestAddress);
    let mut queue = Queue::new(setup.max_size).ok()?;
    queue.try_set_size(setup.size).ok()?;
    queue.try_set_desc_table_address(descriptors).ok()?;
    queue.try_set_avail_ring_address(driver).ok()?;
    queue.try_set_used_ring_address(device).ok()?;
    queue.set_event_idx(event_idx);
    queue.set_ready(true);
    Some(queue)
}

/// Error: a queue can't be served.
#[derive(Debug)]
enum QueueError {
    /// An address of the queue is not aligned or not in memory.
    Address,
    /// The thread does not start.
    Thread(io::Error),
}

impl fmt::Display for QueueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address => f.write_str("an address is not aligned or not in memory"),
            Self::Thread(e) => write!(f, "its thread does not start: {e}"),
        }
    }
}

/// Fields of the PCI configuration access capability, from the body of the capability on.
mod access_field {
    pub(super) const BAR: usize = 2;
    pub(super) const OFFSET: usize = 6;
    pub(super) const LENGTH: usize = 10;
    pub(super) const DATA: usize = 14;
}

/// Adds the capabilities that say where the registers are. Returns the offset of the body of the
/// PCI configuration access capability.
fn add_capabilities(header: &mut Header, ports: u32) -> usize {
    let body = |kind, bar: usize, offset: u32, len: u32, tail: &[u32]| {
        let size = 16 + 4 * tail.len();
        let mut body = vec![size as u8, kind, bar as u8, 0, 0, 0];
        for word in [offset, len].iter().chain(tail) {
            body.extend(word.to_le_bytes());
        }
        body
    };
    for (kind, offset, len) in [
        (capability::COMMON, region::COMMON, registers::LENGTH),
        (capability::ISR, region::ISR, 1),
        (capability::DEVICE, region::DEVICE, region::PAGE),
    ] {
        let body = body(kind, MEMORY_BAR, offset, len, &[]);
        header.add_capability(CAPABILITY, &body, &[]);
    }
    let notify = body(capability::NOTIFY, NOTIFY_BAR, 0, ports, &[NOTIFY_PORTS]);
    header.add_capability(CAPABILITY, &notify, &[]);
    let access = body(capability::PCI, 0, 0, 0, &[0]);
    let mut writable = [0; 18];
    writable[access_field::BAR] = 0xff;
    writable[access_field::OFFSET..].fill(0xff);
    header.add_capability(CAPABILITY, &access, &writable)
}
