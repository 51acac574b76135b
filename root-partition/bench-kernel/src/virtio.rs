//! The driver's side of a virtio device on the PCI bus (virtio 1.2 §4.1), with interrupts by MSI-X.

use core::sync::atomic::{Ordering, fence};

use test_kernel::cpu::write_port16;

use crate::apic::X2APIC_VECTOR;
use crate::cpu::{read, write};
use crate::pci::{Function, Space};

const VENDOR: u16 = 0x1af4;
/// PCI device ID that corresponds to virtio device ID 0.
const FIRST_DEVICE: u16 = 0x1040;
/// Descriptors of a queue.
pub const SIZE: u16 = 128;

/// PCI capabilities.
mod capability {
    pub(super) const VIRTIO: u8 = 0x09;
    pub(super) const MSIX: u8 = 0x11;
    /// Types of virtio's capabilities.
    pub(super) const COMMON: u8 = 1;
    pub(super) const NOTIFY: u8 = 2;
    pub(super) const DEVICE: u8 = 4;
}

/// Offsets in the common configuration (§4.1.4.3).
mod common {
    pub(super) const DEVICE_FEATURE_SELECT: u64 = 0x00;
    pub(super) const DEVICE_FEATURE: u64 = 0x04;
    pub(super) const DRIVER_FEATURE_SELECT: u64 = 0x08;
    pub(super) const DRIVER_FEATURE: u64 = 0x0c;
    pub(super) const STATUS: u64 = 0x14;
    pub(super) const QUEUE_SELECT: u64 = 0x16;
    pub(super) const QUEUE_SIZE: u64 = 0x18;
    pub(super) const QUEUE_VECTOR: u64 = 0x1a;
    pub(super) const QUEUE_ENABLE: u64 = 0x1c;
    pub(super) const QUEUE_NOTIFY_OFFSET: u64 = 0x1e;
    pub(super) const QUEUE_AREAS: u64 = 0x20;
}

/// Bits of the device status (§2.1).
mod status {
    pub(super) const ACKNOWLEDGE: u8 = 1;
    pub(super) const DRIVER: u8 = 2;
    pub(super) const DRIVER_OK: u8 = 4;
    pub(super) const FEATURES_OK: u8 = 8;
}

/// Features, as two words: VIRTIO_F_EVENT_IDX and VIRTIO_F_VERSION_1.
const FEATURES: [u32; 2] = [1 << 29, 1];

/// A device.
pub struct Device {
    common: u64,
    /// Address of the device's own configuration.
    pub configuration: u64,
    notify: Space,
    notify_multiplier: u32,
}

impl Device {
    /// Resets the first device of a type, and accepts it with the features that this kernel knows.
    pub fn find(kind: u16) -> Option<Self> {
        let function = Function::find(VENDOR, FIRST_DEVICE + kind)?;
        function.enable();
        route_interrupts(function)?;
        let (_, Space::Memory(common)) = structure(function, capability::COMMON)? else {
            return None;
        };
        let (_, Space::Memory(configuration)) = structure(function, capability::DEVICE)? else {
            return None;
        };
        let (at, notify) = structure(function, capability::NOTIFY)?;
        let device = Self {
            common,
            configuration,
            notify,
            notify_multiplier: function.read(at + 16),
        };
        device.set_status(0);
        while read::<u8>(common + common::STATUS) != 0 {}
        device.set_status(status::ACKNOWLEDGE | status::DRIVER);
        for (half, wanted) in (0u32..).zip(FEATURES) {
            write(common + common::DEVICE_FEATURE_SELECT, half);
            let offered: u32 = read(common + common::DEVICE_FEATURE);
            write(common + common::DRIVER_FEATURE_SELECT, half);
            write(common + common::DRIVER_FEATURE, offered & wanted);
        }
        device.set_status(status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK);
        Some(device)
    }

    fn set_status(&self, status: u8) {
        write(self.common + common::STATUS, status);
    }

    /// Sets up a queue in a page of memory that nothing uses.
    pub fn queue(&self, index: u16, memory: u64) -> Queue {
        const DESCRIPTORS: u64 = 16 * SIZE as u64;
        let queue = Queue {
            descriptors: memory,
            available: memory + DESCRIPTORS,
            used: memory + DESCRIPTORS + 0x400,
            notify: self.notify,
            index,
            next: 0,
            notified: 0,
            seen: 0,
        };
        let at = |register: u64| self.common + register;
        write(at(common::QUEUE_SELECT), index);
        write(at(common::QUEUE_SIZE), SIZE);
        write(at(common::QUEUE_VECTOR), 0_u16);
        let areas = [queue.descriptors, queue.available, queue.used];
        for (number, area) in (0u64..).zip(areas) {
            write(at(common::QUEUE_AREAS + 8 * number), area as u32);
            write(at(common::QUEUE_AREAS + 8 * number + 4), 0_u32);
        }
        write(at(common::QUEUE_ENABLE), 1_u16);
        let offset =
            u32::from(read::<u16>(at(common::QUEUE_NOTIFY_OFFSET))) * self.notify_multiplier;
        let notify = match self.notify {
            Space::Port(port) => Space::Port(port + offset as u16),
            Space::Memory(address) => Space::Memory(address + u64::from(offset)),
        };
        Queue { notify, ..queue }
    }

    /// Tells the device that its queues are ready.
    pub fn start(&self) {
        let status = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK;
        self.set_status(status);
    }
}

/// Returns where virtio's structure of a type is, and the offset of its capability.
fn structure(function: Function, kind: u8) -> Option<(u8, Space)> {
    let mut found = function.capabilities(capability::VIRTIO);
    let at = found.find(|at| (function.read(*at) >> 24) as u8 == kind)?;
    let offset = function.read(at + 8);
    Some((at, place(function, function.read(at + 4) as u8, offset)))
}

/// Returns the place at an offset of a base address register.
fn place(function: Function, bar: u8, offset: u32) -> Space {
    match function.bar(bar) {
        Space::Port(port) => Space::Port(port + offset as u16),
        Space::Memory(address) => Space::Memory(address + u64::from(offset)),
    }
}

/// Enables MSI-X, with the first vector leading to the one handler of this kernel.
fn route_interrupts(function: Function) -> Option<()> {
    const ENABLE: u32 = 1 << 31;
    const MASK_ALL: u32 = 1 << 30;
    const TO_FIRST_CPU: u32 = 0xfee0_0000;
    let at = function.capabilities(capability::MSIX).next()?;
    let table = function.read(at + 4);
    let Space::Memory(table) = place(function, table as u8 & 7, table & !7) else {
        return None;
    };
    function.write(at, function.read(at) | ENABLE | MASK_ALL);
    let entry = [TO_FIRST_CPU, 0, X2APIC_VECTOR.into(), 0];
    for (field, value) in (0..).zip(entry) {
        write(table + 4 * field, value);
    }
    function.write(at, function.read(at) & !MASK_ALL | ENABLE);
    Some(())
}

/// A part of a request: its address, its bytes, and whether the device writes it.
pub type Part = (u64, u32, bool);

/// A split virtqueue (§2.7).
pub struct Queue {
    descriptors: u64,
    available: u64,
    used: u64,
    notify: Space,
    index: u16,
    /// The available ring's index.
    next: u16,
    /// What it was at the last notification.
    notified: u16,
    /// How far the used ring was read.
    seen: u16,
}

impl Queue {
    /// Puts a request into descriptors from `first` on.
    pub fn describe(&self, first: u16, parts: &[Part]) {
        const NEXT: u16 = 1;
        const WRITE: u16 = 2;
        for (number, &(address, length, is_written)) in (first..).zip(parts) {
            let is_last = usize::from(number - first) + 1 == parts.len();
            let flags = if is_written { WRITE } else { 0 } | if is_last { 0 } else { NEXT };
            let at = self.descriptors + 16 * u64::from(number);
            write(at, address);
            write(at + 8, length);
            write(at + 12, flags);
            write(at + 14, number + 1);
        }
    }

    /// Makes the request that begins with a descriptor available.
    pub fn add(&mut self, first: u16) {
        write(self.available + 4 + 2 * u64::from(self.next % SIZE), first);
        self.next = self.next.wrapping_add(1);
        fence(Ordering::Release);
        write(self.available + 2, self.next);
    }

    /// Notifies the device, if it wants that for one of the requests since the last time (§2.7.10).
    pub fn notify(&mut self) {
        fence(Ordering::SeqCst);
        let event: u16 = read(self.used + 4 + 8 * u64::from(SIZE));
        let since = self.next.wrapping_sub(self.notified);
        let is_wanted = self.next.wrapping_sub(event).wrapping_sub(1) < since;
        self.notified = self.next;
        if is_wanted {
            self.ring();
        }
    }

    /// Notifies the device.
    pub fn ring(&self) {
        match self.notify {
            Space::Port(port) => write_port16(port, self.index),
            Space::Memory(address) => write(address, self.index),
        }
    }

    /// Asks for an interrupt when so many more requests than were taken by [`Self::take`] are used.
    pub fn interrupt_after(&self, requests: u16) {
        let event = self.seen.wrapping_add(requests).wrapping_sub(1);
        write(self.available + 4 + 2 * u64::from(SIZE), event);
        fence(Ordering::SeqCst);
    }

    /// Returns how many requests are used and were not taken.
    pub fn ready(&self) -> u16 {
        let used: u16 = read(self.used + 2);
        used.wrapping_sub(self.seen)
    }

    /// Takes a used request: its first descriptor.
    pub fn take(&mut self) -> Option<u16> {
        if self.ready() == 0 {
            return None;
        }
        fence(Ordering::Acquire);
        let first: u32 = read(self.used + 4 + 8 * u64::from(self.seen % SIZE));
        self.seen = self.seen.wrapping_add(1);
        Some(first as u16)
    }
}
