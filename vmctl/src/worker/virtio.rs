//! Virtio devices (virtio 1.2): the part that all of them share, behind the PCI registers.
//!
//! A [`Device`] describes itself (features, queues, configuration) and makes a [`Serve`] for each
//! queue that its driver enables. The [`transport`] runs each of them on a thread of its own
//! (`thread`), without the lock of the other devices: a notification of the driver reaches the
//! queue's thread as an [`Event`], and the thread's interrupt leaves by another.
//!
//! A guest writes whatever it likes into its queues. [`Vring`] and `buffers` check every
//! descriptor, and a device whose queue is malformed stays broken until its driver resets it
//! ([`Notifier::break_device`]).

pub mod block;
mod buffers;
pub mod console;
pub mod entropy;
pub mod net;
mod registers;
#[cfg(test)]
mod tests;
mod thread;
pub mod transport;
pub mod vhost;
pub mod vsock;

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::event::Event;
use super::journal;
use super::memory::Memory;

/// Bits of the interrupt status register (§4.1.4.5): a queue has something, the configuration has
/// changed.
const ISR_QUEUE: u8 = 1 << 0;
const ISR_CONFIG: u8 = 1 << 1;

/// The device types (§5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A network card (§5.1).
    Net,
    /// A disk (§5.2).
    Block,
    /// A console (§5.3).
    Console,
    /// A source of random numbers (§5.4).
    Entropy,
    /// Sockets (§5.10).
    Socket,
}

impl Kind {
    /// Returns the virtio device ID.
    pub fn id(self) -> u16 {
        match self {
            Self::Net => 1,
            Self::Block => 2,
            Self::Console => 3,
            Self::Entropy => 4,
            Self::Socket => 19,
        }
    }

    /// Returns the PCI base class, subclass and programming interface.
    pub fn class(self) -> [u8; 3] {
        match self {
            // Network controller, Ethernet.
            Self::Net => [0x02, 0, 0],
            // Mass storage, other.
            Self::Block => [0x01, 0x80, 0],
            // Simple communication controller, other.
            Self::Console | Self::Socket => [0x07, 0x80, 0],
            // Unassigned class.
            Self::Entropy => [0xff, 0, 0],
        }
    }
}

/// A virtio device without its registers. Only [`Device::close`] may wait.
pub trait Device: fmt::Debug + Send {
    /// Returns the device type.
    fn kind(&self) -> Kind;

    /// Returns the device's name in the log.
    fn name(&self) -> &str;

    /// Returns the features that the device offers beside those of the transport.
    fn features(&self) -> u64 {
        0
    }

    /// Returns the largest size of each queue, a power of two.
    fn queues(&self) -> &[u16];

    /// Reads the device's configuration from offset `at` on. Bytes behind its end stay zero.
    fn read_config(&self, _at: usize, _bytes: &mut [u8]) {}

    /// Writes the device's configuration from offset `at` on.
    fn write_config(&mut self, _at: usize, _bytes: &[u8]) {}

    /// A driver that accepted `features` is ready. Its queues start next.
    fn activate(&mut self, _features: u64) {}

    /// Returns the code that serves queue `index` for a driver that accepted `features`.
    fn server(&mut self, index: u16, features: u64) -> Box<dyn Serve>;

    /// Makes durable whatever has to be. The queues' threads have ended.
    fn close(&mut self) {}
}

/// Copies the part of `config` from offset `at` on. Bytes behind its end stay as they are.
fn read_bytes(config: &[u8], at: usize, bytes: &mut [u8]) {
    for (to, from) in bytes.iter_mut().zip(config.iter().skip(at)) {
        *to = *from;
    }
}

/// Code that serves one queue, on the queue's thread.
pub trait Serve: Send {
    /// Serves the queue until `stop` is signalled.
    ///
    /// # Errors
    ///
    /// The driver's part of the queue is malformed.
    fn run(&mut self, memory: &Memory, vring: &Vring, stop: &Event) -> Result<(), Malformed>;
}

/// The part of a device's state that its threads change and its registers show.
#[derive(Debug)]
pub struct Notifier {
    /// Wakes the thread that sets the interrupt pins as the interrupt status says.
    pins: Arc<Event>,
    broken: AtomicBool,
    isr: AtomicU8,
    generation: AtomicU8,
    config_event: Mutex<Option<Arc<Event>>>,
}

impl Notifier {
    fn new(pins: Arc<Event>) -> Self {
        Self {
            pins,
            broken: AtomicBool::default(),
            isr: AtomicU8::default(),
            generation: AtomicU8::default(),
            config_event: Mutex::default(),
        }
    }

    /// Has changes of the configuration signal `event` from now on.
    fn set_config_event(&self, event: Option<Arc<Event>>) {
        *self
            .config_event
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = event;
    }

    /// Tells the driver that the configuration has changed.
    pub fn config_changed(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.signal_config();
    }

    fn signal_config(&self) {
        self.isr.fetch_or(ISR_CONFIG, Ordering::AcqRel);
        let event = self
            .config_event
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        event.as_ref().unwrap_or(&self.pins).signal();
    }

    /// Interrupts the driver by the device's pin, because a queue has something.
    fn raise_pin(&self) {
        self.isr.fetch_or(ISR_QUEUE, Ordering::AcqRel);
        self.pins.signal();
    }

    /// Returns whether the interrupt status says anything.
    fn has_isr(&self) -> bool {
        self.isr.load(Ordering::Acquire) != 0
    }

    /// Sets `DEVICE_NEEDS_RESET` (§2.1.2) and logs the first reason.
    pub fn break_device(&self, name: &str, reason: impl fmt::Display) {
        if !self.broken.swap(true, Ordering::AcqRel) {
            journal::guest(format_args!(
                "{name}: {reason}; the device is broken until its driver resets it"
            ));
        }
        self.signal_config();
    }

    fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    fn generation(&self) -> u8 {
        self.generation.load(Ordering::Acquire)
    }

    fn take_isr(&self) -> u8 {
        self.isr.swap(0, Ordering::AcqRel)
    }
}

/// A chain of descriptors over guest memory.
pub type Chain<'a> = DescriptorChain<&'a Memory>;

/// One queue, as the threads that serve it see it.
#[derive(Debug)]
pub struct Vring {
    /// The queue's number.
    pub index: u16,
    /// The state that threads lock for each step.
    ring: Mutex<Ring>,
    /// The event that the driver's notifications signal.
    pub kick: Arc<Event>,
    /// The interrupt of the queue.
    pub call: Interrupt,
}

/// A queue's addresses and positions.
#[derive(Debug)]
struct Ring {
    queue: Queue,
    /// Position in the used ring when the driver was last considered for an interrupt.
    considered: u16,
}

/// Addresses of a queue in guest memory.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Number of descriptors.
    pub size: u16,
    /// Address of the descriptor table.
    pub descriptors: u64,
    /// Address of the available ring.
    pub available: u64,
    /// Address of the used ring.
    pub used: u64,
}

/// The interrupt of a queue.
#[derive(Debug)]
pub enum Interrupt {
    /// Not at all: the driver gave the queue no vector.
    None,
    /// By a vector.
    Vector(Arc<Event>),
    /// By the device's pin, without MSI-X.
    Pin(Arc<Notifier>),
}

impl Interrupt {
    fn send(&self) {
        match self {
            Self::None => {}
            Self::Vector(event) => event.signal(),
            Self::Pin(notifier) => notifier.raise_pin(),
        }
    }
}

/// Error: the driver's part of a queue is malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

const BAD_RING: Malformed = Malformed("the ring's index or address is invalid");

impl Vring {
    /// Returns a queue whose notifications signal `kick`, and which interrupts by `call`.
    pub fn new(index: u16, queue: Queue, kick: Arc<Event>, call: Interrupt) -> Self {
        Self {
            index,
            ring: Mutex::new(Ring {
                queue,
                considered: 0,
            }),
            kick,
            call,
        }
    }

    /// Returns where the queue is.
    pub fn layout(&self) -> Layout {
        let queue = &self.ring().queue;
        Layout {
            size: queue.size(),
            descriptors: queue.desc_table(),
            available: queue.avail_ring(),
            used: queue.used_ring(),
        }
    }

    /// Takes the next chain that the driver has made available.
    ///
    /// # Errors
    ///
    /// The available ring's index is more than a queue ahead.
    pub fn pop<'a>(&self, memory: &'a Memory) -> Result<Option<Chain<'a>>, Malformed> {
        let mut ring = self.ring();
        let mut available = ring.queue.iter(memory).map_err(|_| BAD_RING)?;
        Ok(available.next())
    }

    /// Returns a chain to the driver, with `written` bytes written to it.
    ///
    /// # Errors
    ///
    /// The queue has no descriptor `head`.
    pub fn push(&self, memory: &Memory, head: u16, written: u32) -> Result<(), Malformed> {
        self.push_all(memory, &[(head, written)])
    }

    /// Returns some chains to the driver, each with bytes that were written to it. The driver sees either
    /// none of them or all.
    ///
    /// # Errors
    ///
    /// The queue has no such descriptor.
    pub fn push_all(&self, memory: &Memory, chains: &[(u16, u32)]) -> Result<(), Malformed> {
        let Some((&(head, written), others)) = chains.split_last() else {
            return Ok(());
        };
        let queue = &mut self.ring().queue;
        for &(head, written) in others {
            let element = u64::from(written) << 32 | u64::from(head);
            let slot = queue.next_used() % queue.size();
            let at = used_element(queue.used_ring(), slot).ok_or(BAD_RING)?;
            memory
                .write_obj(element.to_le(), at)
                .map_err(|_| BAD_RING)?;
            queue.set_next_used(queue.next_used().wrapping_add(1));
        }
        // With the last one the driver sees the new position.
        let pushed = queue.add_used(memory, head, written);
        pushed.map_err(|_| Malformed("a chain's head is no descriptor of the queue"))
    }

    /// Interrupts the driver if it asked to hear of the chains that were pushed.
    ///
    /// # Errors
    ///
    /// The ring is not in memory.
    pub fn notify(&self, memory: &Memory) -> Result<(), Malformed> {
        if self.ring().wants_interrupt(memory)? {
            self.call.send();
        }
        Ok(())
    }

    /// Tells the driver not to notify.
    ///
    /// # Errors
    ///
    /// The ring is not in memory.
    pub fn disable_notification(&self, memory: &Memory) -> Result<(), Malformed> {
        let disabled = self.ring().queue.disable_notification(memory);
        disabled.map_err(|_| BAD_RING)
    }

    /// Tells the driver to notify. Returns true if there is a chain already: the caller takes it
    /// before it waits.
    ///
    /// # Errors
    ///
    /// The ring is not in memory.
    pub fn enable_notification(&self, memory: &Memory) -> Result<bool, Malformed> {
        let enabled = self.ring().queue.enable_notification(memory);
        enabled.map_err(|_| BAD_RING)
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns where an element of the used ring is: 32 bits of the chain's head, 32 bits of the length
/// (§2.7.8).
fn used_element(used_ring: u64, slot: u16) -> Option<GuestAddress> {
    let offset = 4 + 8 * u64::from(slot);
    used_ring.checked_add(offset).map(GuestAddress)
}

impl Ring {
    /// Returns whether the driver asked to hear of the chains that were pushed since the last call
    /// (§2.7.7).
    fn wants_interrupt(&mut self, memory: &Memory) -> Result<bool, Malformed> {
        let queue = &self.queue;
        // The chains are visible to the driver before the worker reads whether the driver wants an interrupt: the driver looks
        // for chains after it asks for one.
        fence(Ordering::SeqCst);
        let read = |offset: u64| {
            let at = queue.avail_ring().checked_add(offset).ok_or(BAD_RING)?;
            let word = memory.load::<u16>(GuestAddress(at), Ordering::Relaxed);
            word.map(u16::from_le).map_err(|_| BAD_RING)
        };
        let now = queue.next_used();
        let before = std::mem::replace(&mut self.considered, now);
        if !queue.event_idx_enabled() {
            return Ok(now != before && read(0)? & VRING_AVAIL_F_NO_INTERRUPT as u16 == 0);
        }
        let event = read(4 + 2 * u64::from(queue.size()))?;
        let is_behind = now.wrapping_sub(event).wrapping_sub(1);
        Ok(is_behind < now.wrapping_sub(before))
    }
}
