//! The PCI bus: configuration space through I/O ports and through memory (ECAM), and the address
//! windows for the devices' BARs.
//!
//! [`Bus`] finds the function that an access belongs to. Slot 0 holds the host bridge; each other
//! slot can hold one virtio device. A BAR is decoded only while it lies in the bus's windows, so a
//! guest that moves it elsewhere reaches neither RAM nor another device with it. Changes that the
//! driver has to learn of (interrupts, doorbells) leave the bus as [`Effect`]s. Devices come and go while
//! the guest runs, with its consent: [`Bus::plug`] and [`Bus::ask_for`].

pub mod header;
pub mod msix;
pub mod slots;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use guest_proto::driver::Msi;

use super::event::Event;
use super::virtio::Kind;
use super::virtio::transport::Transport;
use header::{Header, Identity, Space};
use slots::SlotRegisters;

/// Slots of the bus.
pub const SLOTS: usize = 32;

/// The bus's address ranges.
pub mod window {
    use std::ops::RangeInclusive;

    /// I/O ports for BARs.
    pub const IO: RangeInclusive<u16> = 0xc000..=0xdfff;
    /// Memory addresses for BARs.
    pub const MEMORY: RangeInclusive<u32> = 0xc000_0000..=0xdfff_ffff;
    /// Memory addresses of configuration space, for one bus (ECAM, PCI Express 5.0 §7.2.2).
    pub const ECAM: RangeInclusive<u32> = 0xe000_0000..=0xe00f_ffff;
    /// The registers of hot plug.
    pub const SLOTS: RangeInclusive<u16> = 0x608..=0x608 + super::slots::LENGTH - 1;
    /// The configuration address port (PCI 3.0 §3.2.2.3.2).
    pub const ADDRESS: u16 = 0xcf8;
    /// The configuration data ports.
    pub const DATA: RangeInclusive<u16> = 0xcfc..=0xcff;
    /// I/O ports that a slot's BARs have at first.
    pub const SLOT_IO: u32 = 0x100;
    /// Bytes of memory addresses that a slot's BARs have at first.
    pub const SLOT_MEMORY: u32 = 0x1_0000;
}

/// Bit of the configuration address: the data ports are enabled.
const ENABLE: u32 = 1 << 31;
/// IDs of QEMU's PCI Express host bridge, for which kernels have no driver and no workaround.
const HOST_BRIDGE: Identity = Identity {
    device: (0x1b36, 0x0008),
    subsystem: (0x1af4, 0x1100),
    class: [6, 0, 0],
    revision: 0,
};

/// Pins of the I/O APIC that devices' interrupt pins lead to.
pub const PINS: std::ops::Range<u32> = 16..24;

/// Returns the pin of the I/O APIC that a slot's interrupt pin leads to.
pub fn pin(slot: u8) -> u32 {
    PINS.start + u32::from(slot) % PINS.len() as u32
}

/// A change that the driver of `/dev/microvisor` has to learn of.
#[derive(Debug)]
pub enum Effect {
    /// The event delivers this interrupt from now on.
    BindInterrupt(Arc<Event>, Msi),
    /// The event delivers no interrupt any more.
    UnbindInterrupt(Arc<Event>),
    /// Writes to these I/O ports signal the event from now on.
    AddDoorbell {
        /// First port.
        port: u16,
        /// Number of ports.
        length: u16,
        /// The doorbell's tag.
        tag: u16,
        /// The event.
        event: Arc<Event>,
    },
    /// The doorbell with this tag ends.
    RemoveDoorbell(u16),
}

/// The bus with its devices.
#[derive(Debug)]
pub struct Bus {
    address: u32,
    bridge: Header,
    /// The devices by their slots, of which most are free.
    slots: BTreeMap<usize, Box<Transport>>,
    slot_registers: SlotRegisters,
    /// Devices that were taken out of their slots.
    removed: Vec<Transport>,
    effects: Vec<Effect>,
}

impl Default for Bus {
    fn default() -> Self {
        Self {
            address: 0,
            bridge: Header::new(HOST_BRIDGE),
            slots: BTreeMap::new(),
            slot_registers: SlotRegisters::default(),
            removed: Vec::new(),
            effects: Vec::new(),
        }
    }
}

impl Bus {
    /// Returns the lowest slot without a device.
    pub fn free_slot(&self) -> Option<u8> {
        let free = |slot: &usize| !self.slots.contains_key(slot);
        (1..SLOTS).find(free).map(|slot| slot as u8)
    }

    /// Puts a device into the slot that it was made for.
    pub fn insert(&mut self, slot: u8, mut device: Box<Transport>) {
        device.connect(&mut self.effects);
        let slot = usize::from(slot);
        if slot < SLOTS {
            self.slots.insert(slot, device);
        }
    }

    /// Does the same as [`Self::insert`] while the guest runs, and tells the guest by the registers of hot plug.
    pub fn plug(&mut self, slot: u8, device: Box<Transport>) {
        self.insert(slot, device);
        self.slot_registers.came(slot);
    }

    /// Asks the guest to give up the device of this kind with this name. Returns false if there is
    /// none.
    pub fn ask_for(&mut self, kind: Kind, name: &str) -> bool {
        let slot = self.slot_of(|device| device.kind() == kind && device.name() == name);
        slot.inspect(|&slot| self.slot_registers.ask(slot as u8));
        slot.is_some()
    }

    fn slot_of(&self, wanted: impl Fn(&Transport) -> bool) -> Option<usize> {
        let mut slots = self.slots.iter();
        slots.find_map(|(slot, device)| wanted(device).then_some(*slot))
    }

    /// Tells the driver of a device that the device's configuration has changed.
    pub fn config_changed(&mut self, kind: Kind, name: &str) {
        let slot = self.slot_of(|device| device.kind() == kind && device.name() == name);
        if let Some(device) = slot.and_then(|slot| self.slots.get(&slot)) {
            device.config_changed();
        }
    }

    /// Takes the console out of its slot, for the end of the VM.
    pub fn take_console(&mut self) -> Option<Box<Transport>> {
        let slot = self.slot_of(|device| device.kind() == Kind::Console)?;
        self.slots.remove(&slot)
    }

    /// Takes the devices that the guest has given up since the last call. Their threads end soon.
    pub fn take_removed(&mut self) -> Vec<Transport> {
        std::mem::take(&mut self.removed)
    }

    fn remove(&mut self, slot: usize) {
        if let Some(mut device) = self.slots.remove(&slot) {
            device.disconnect(&mut self.effects);
            self.removed.push(*device);
        }
    }

    /// Takes all devices out of their slots, for the end of the VM.
    pub fn take_devices(&mut self) -> Vec<Box<Transport>> {
        std::mem::take(&mut self.slots).into_values().collect()
    }

    /// Returns the interrupt pins that devices assert, as bits: those of [`pin`].
    pub fn asserted(&self) -> u32 {
        self.slots.iter().fold(0, |pins, (slot, device)| {
            pins | u32::from(device.is_asserted()) << pin(*slot as u8)
        })
    }

    /// Whether no change and no removed device waits to be taken.
    pub fn is_settled(&self) -> bool {
        self.effects.is_empty() && self.removed.is_empty()
    }

    /// Takes the changes since the last call.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// Reads an I/O port. Returns `None` if the port does not belong to the bus.
    pub fn read_port(&mut self, port: u16, size: u8) -> Option<u64> {
        if port == window::ADDRESS && size == 4 {
            return Some(u64::from(self.address));
        }
        if window::DATA.contains(&port) {
            let (slot, at) = self.selected(port)?;
            return Some(u64::from(self.read_config(slot, at, size)));
        }
        if window::SLOTS.contains(&port) {
            let at = port - window::SLOTS.start();
            let byte = |value, i| value << 8 | u64::from(self.slot_registers.read(at + i));
            return Some((0..u16::from(size)).rev().fold(0, byte));
        }
        if !window::IO.contains(&port) {
            return None;
        }
        let found = self.find(Space::Io, u64::from(port));
        Some(found.map_or(ones(size), |(device, bar, at)| device.read(bar, at, size)))
    }

    /// Writes an I/O port. Returns false if the port does not belong to the bus.
    pub fn write_port(&mut self, port: u16, size: u8, value: u64) -> bool {
        if port == window::ADDRESS && size == 4 {
            self.address = value as u32;
        } else if window::DATA.contains(&port) {
            let Some((slot, at)) = self.selected(port) else {
                return false;
            };
            self.write_config(slot, at, size, value as u32);
        } else if window::SLOTS.contains(&port) {
            let at = port - window::SLOTS.start();
            for (i, byte) in (0..u16::from(size)).zip(value.to_le_bytes()) {
                let given_up = self.slot_registers.write(at + i, byte);
                let slots = (0..SLOTS).filter(|slot| given_up >> slot & 1 != 0);
                slots.for_each(|slot| self.remove(slot));
            }
        } else if window::IO.contains(&port) {
            self.write_space(Space::Io, u64::from(port), size, value);
        } else {
            return false;
        }
        true
    }

    /// Reads a memory address. Returns `None` if the address does not belong to the bus.
    pub fn read_memory(&mut self, gpa: u64, size: u8) -> Option<u64> {
        let address = u32::try_from(gpa).ok()?;
        if window::ECAM.contains(&address) {
            let (slot, at) = ecam(address)?;
            let low = u64::from(self.read_config(slot, at, size.min(4)));
            let high = match size {
                8 => u64::from(self.read_config(slot, at + 4, 4)),
                _ => 0,
            };
            return Some(high << 32 | low);
        }
        if !window::MEMORY.contains(&address) {
            return None;
        }
        let found = self.find(Space::Memory, gpa);
        Some(found.map_or(ones(size), |(device, bar, at)| device.read(bar, at, size)))
    }

    /// Writes a memory address. Returns false if the address does not belong to the bus.
    pub fn write_memory(&mut self, gpa: u64, size: u8, value: u64) -> bool {
        let Ok(address) = u32::try_from(gpa) else {
            return false;
        };
        if window::ECAM.contains(&address) {
            let Some((slot, at)) = ecam(address) else {
                return true;
            };
            self.write_config(slot, at, size.min(4), value as u32);
            if size == 8 {
                self.write_config(slot, at + 4, 4, (value >> 32) as u32);
            }
            return true;
        }
        if !window::MEMORY.contains(&address) {
            return false;
        }
        self.write_space(Space::Memory, gpa, size, value);
        true
    }

    /// Returns the slot and the offset that the configuration address and a data port select. For
    /// another bus, or a function other than the first, the slot is one that does not exist.
    fn selected(&self, port: u16) -> Option<(usize, usize)> {
        if self.address & ENABLE == 0 {
            return None;
        }
        let at = (self.address & 0xfc) as usize + usize::from(port - window::DATA.start());
        let is_here = self.address & 0x00ff_0700 == 0;
        let slot = (self.address >> 11 & 0x1f) as usize;
        Some((if is_here { slot } else { SLOTS }, at))
    }

    fn read_config(&mut self, slot: usize, at: usize, size: u8) -> u32 {
        if slot == 0 {
            self.bridge.read(at, size)
        } else if let Some(device) = self.slots.get_mut(&slot) {
            device.read_config(at, size)
        } else {
            // A slot without a device reads as all ones.
            ones(size) as u32
        }
    }

    fn write_config(&mut self, slot: usize, at: usize, size: u8, value: u32) {
        if slot == 0 {
            self.bridge.write(at, size, value);
        } else if let Some(device) = self.slots.get_mut(&slot) {
            device.write_config(at, size, value, &mut self.effects);
        }
    }

    fn find(&mut self, space: Space, address: u64) -> Option<(&mut Transport, usize, u32)> {
        let mut devices = self.slots.values_mut();
        devices.find_map(|device| {
            let (bar, at) = device.header().decode(space, address)?;
            Some((device.as_mut(), bar, at))
        })
    }

    fn write_space(&mut self, space: Space, address: u64, size: u8, value: u64) {
        let mut effects = std::mem::take(&mut self.effects);
        if let Some((device, bar, at)) = self.find(space, address) {
            device.write(bar, at, size, value, &mut effects);
        }
        self.effects = effects;
    }
}

/// Returns slot and offset of an address in [`window::ECAM`], or `None` for a function other than
/// the first.
fn ecam(address: u32) -> Option<(usize, usize)> {
    let at = (address - window::ECAM.start()) as usize;
    (at >> 12 & 7 == 0).then_some((at >> 15, at & 0xfff))
}

fn ones(size: u8) -> u64 {
    u64::MAX >> (64 - 8 * u32::from(size.clamp(1, 8)))
}
