//! The common configuration of a virtio device (virtio 1.2 §4.1.4.3), as plain state.
//!
//! [`Registers`] keeps the values that the driver wrote, and refuses those that the specification
//! does not allow at that time. A write that has to start or stop something returns an [`Action`]
//! for the transport.

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_F_RING_RESET, VIRTIO_F_VERSION_1,
};

/// Bytes of the structure.
pub(super) const LENGTH: u32 = 0x40;
/// The vector number that means no vector.
pub(super) const NO_VECTOR: u16 = 0xffff;

const DRIVER_OK: u8 = VIRTIO_CONFIG_S_DRIVER_OK as u8;
const FEATURES_OK: u8 = VIRTIO_CONFIG_S_FEATURES_OK as u8;
const NEEDS_RESET: u8 = VIRTIO_CONFIG_S_NEEDS_RESET as u8;

/// Offsets, with the specification's names.
mod offset {
    pub(super) const DEVICE_FEATURE_SELECT: u32 = 0x00;
    pub(super) const DEVICE_FEATURE: u32 = 0x04;
    pub(super) const DRIVER_FEATURE_SELECT: u32 = 0x08;
    pub(super) const DRIVER_FEATURE: u32 = 0x0c;
    pub(super) const CONFIG_MSIX_VECTOR: u32 = 0x10;
    pub(super) const NUM_QUEUES: u32 = 0x12;
    pub(super) const DEVICE_STATUS: u32 = 0x14;
    pub(super) const CONFIG_GENERATION: u32 = 0x15;
    pub(super) const QUEUE_SELECT: u32 = 0x16;
    pub(super) const QUEUE_SIZE: u32 = 0x18;
    pub(super) const QUEUE_MSIX_VECTOR: u32 = 0x1a;
    pub(super) const QUEUE_ENABLE: u32 = 0x1c;
    pub(super) const QUEUE_NOTIFY_OFF: u32 = 0x1e;
    /// Descriptor table, driver area and device area, of 8 bytes each.
    pub(super) const QUEUE_DESC: u32 = 0x20;
    pub(super) const QUEUE_DEVICE_END: u32 = 0x37;
    pub(super) const QUEUE_RESET: u32 = 0x3a;
}

/// A queue, as its driver has set it up.
#[derive(Clone, Debug)]
pub(super) struct QueueSetup {
    /// Largest size that the device offers.
    pub(super) max_size: u16,
    pub(super) size: u16,
    pub(super) vector: u16,
    pub(super) is_enabled: bool,
    /// The driver has asked for a reset of this queue, which is not complete.
    pub(super) is_resetting: bool,
    /// Addresses of the descriptor table, the driver area and the device area.
    pub(super) areas: [u64; 3],
}

impl QueueSetup {
    fn new(max_size: u16) -> Self {
        Self {
            max_size,
            size: max_size,
            vector: NO_VECTOR,
            is_enabled: false,
            is_resetting: false,
            areas: [0; 3],
        }
    }

    /// Forgets the driver's settings.
    pub(super) fn reset(&mut self) {
        *self = Self::new(self.max_size);
    }
}

/// The work of the transport after a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// No effect.
    None,
    /// Stop all queues. The reset is complete when their threads have ended.
    Reset,
    /// Start all enabled queues: the driver is ready.
    Start,
    /// Start one queue of a running device.
    StartQueue(u16),
    /// Stop one queue.
    ResetQueue(u16),
}

/// The values of a read that the registers do not hold.
#[derive(Clone, Copy, Debug)]
pub(super) struct View {
    /// Features that the device offers.
    pub(super) features: u64,
    /// Version of the device's configuration.
    pub(super) generation: u8,
    /// The device is broken.
    pub(super) needs_reset: bool,
}

/// The registers.
#[derive(Debug)]
pub(super) struct Registers {
    device_select: u32,
    driver_select: u32,
    /// Features that the driver accepted.
    pub(super) driver_features: u64,
    pub(super) config_vector: u16,
    status: u8,
    queue_select: u16,
    pub(super) queues: Vec<QueueSetup>,
    /// The driver has asked for a reset, which is not complete: the status does not read as 0
    /// before it is (§2.4.2).
    is_resetting: bool,
}

impl Registers {
    /// Returns the registers of a device with queues of these sizes.
    pub(super) fn new(queues: &[u16]) -> Self {
        Self {
            device_select: 0,
            driver_select: 0,
            driver_features: 0,
            config_vector: NO_VECTOR,
            status: 0,
            queue_select: 0,
            queues: queues.iter().map(|&max| QueueSetup::new(max)).collect(),
            is_resetting: false,
        }
    }

    /// Returns whether the driver waits for a reset of the device.
    pub(super) fn is_resetting(&self) -> bool {
        self.is_resetting
    }

    /// Completes the reset.
    pub(super) fn complete_reset(&mut self) {
        self.is_resetting = false;
        self.status = 0;
    }

    /// Returns whether the driver accepted this feature.
    pub(super) fn has(&self, feature: u32) -> bool {
        self.driver_features >> feature & 1 != 0
    }

    /// Reads a register.
    pub(super) fn read(&self, at: u32, size: u8, view: View) -> u64 {
        let queue = self.queues.get(usize::from(self.queue_select));
        let of_queue = |get: fn(&QueueSetup) -> u16| queue.map_or(0, |queue| get(queue).into());
        let half = |value: u64, select: u32| match select {
            0 => value & 0xffff_ffff,
            1 => value >> 32,
            _ => 0,
        };
        match (at, size) {
            (offset::DEVICE_FEATURE_SELECT, 4) => self.device_select.into(),
            (offset::DEVICE_FEATURE, 4) => half(view.features, self.device_select),
            (offset::DRIVER_FEATURE_SELECT, 4) => self.driver_select.into(),
            (offset::DRIVER_FEATURE, 4) => half(self.driver_features, self.driver_select),
            (offset::CONFIG_MSIX_VECTOR, 2) => self.config_vector.into(),
            (offset::NUM_QUEUES, 2) => self.queues.len() as u64,
            (offset::DEVICE_STATUS, 1) if view.needs_reset => u64::from(self.status | NEEDS_RESET),
            (offset::DEVICE_STATUS, 1) => self.status.into(),
            (offset::CONFIG_GENERATION, 1) => view.generation.into(),
            (offset::QUEUE_SELECT, 2) => self.queue_select.into(),
            (offset::QUEUE_SIZE, 2) => of_queue(|queue| queue.size),
            (offset::QUEUE_MSIX_VECTOR, 2) => queue.map_or(NO_VECTOR, |queue| queue.vector).into(),
            (offset::QUEUE_ENABLE, 2) => of_queue(|queue| queue.is_enabled.into()),
            (offset::QUEUE_NOTIFY_OFF, 2) => self.queue_select.into(),
            (offset::QUEUE_RESET, 2) => of_queue(|queue| queue.is_resetting.into()),
            (offset::QUEUE_DESC..=offset::QUEUE_DEVICE_END, 4 | 8) if at.is_multiple_of(4) => {
                let at = at - offset::QUEUE_DESC;
                let area = queue.map_or(0, |queue| queue.areas[(at / 8) as usize]);
                match size {
                    8 if at.is_multiple_of(8) => area,
                    _ => half(area, at / 4 % 2),
                }
            }
            _ => 0,
        }
    }

    /// Writes a register. The device offers `features` and has `vectors` MSI-X vectors.
    pub(super) fn write(
        &mut self,
        at: u32,
        size: u8,
        value: u64,
        features: u64,
        vectors: u16,
    ) -> Action {
        let vector = match value as u16 {
            vector if vector < vectors => vector,
            _ => NO_VECTOR,
        };
        match (at, size) {
            (offset::DEVICE_FEATURE_SELECT, 4) => self.device_select = value as u32,
            (offset::DRIVER_FEATURE_SELECT, 4) => self.driver_select = value as u32,
            (offset::DRIVER_FEATURE, 4) => self.accept(value as u32),
            (offset::CONFIG_MSIX_VECTOR, 2) => self.config_vector = vector,
            (offset::DEVICE_STATUS, 1) => return self.write_status(value as u8, features),
            (offset::QUEUE_SELECT, 2) => self.queue_select = value as u16,
            (offset::QUEUE_ENABLE, 2) if value == 1 => return self.enable_queue(),
            (offset::QUEUE_RESET, 2) if value == 1 => return self.reset_queue(),
            _ => self.write_queue(at, size, value, vector),
        }
        Action::None
    }

    /// The driver changes a queue. A queue that is enabled keeps its settings.
    fn write_queue(&mut self, at: u32, size: u8, value: u64, vector: u16) {
        let Some(queue) = self.queues.get_mut(usize::from(self.queue_select)) else {
            return;
        };
        if self.is_resetting || queue.is_enabled {
            return;
        }
        match (at, size) {
            (offset::QUEUE_SIZE, 2) => {
                let size = value as u16;
                if size.is_power_of_two() && size <= queue.max_size {
                    queue.size = size;
                }
            }
            (offset::QUEUE_MSIX_VECTOR, 2) => queue.vector = vector,
            (offset::QUEUE_DESC..=offset::QUEUE_DEVICE_END, 4 | 8) if at.is_multiple_of(4) => {
                let at = at - offset::QUEUE_DESC;
                let area = &mut queue.areas[(at / 8) as usize];
                *area = match (size, at / 4 % 2) {
                    (8, 0) => value,
                    (_, 0) => *area & !0xffff_ffff | value & 0xffff_ffff,
                    _ => *area & 0xffff_ffff | value << 32,
                };
            }
            _ => {}
        }
    }

    fn enable_queue(&mut self) -> Action {
        let is_running = self.status & DRIVER_OK != 0;
        let may_start = !is_running || self.has(VIRTIO_F_RING_RESET);
        let index = self.queue_select;
        let queue = self.queues.get_mut(usize::from(index));
        match queue.filter(|queue| !queue.is_enabled) {
            Some(queue) if may_start && !self.is_resetting => queue.is_enabled = true,
            _ => return Action::None,
        }
        match is_running {
            true => Action::StartQueue(index),
            false => Action::None,
        }
    }

    fn reset_queue(&mut self) -> Action {
        let may_reset = self.has(VIRTIO_F_RING_RESET) && !self.is_resetting;
        let index = self.queue_select;
        let queue = self.queues.get_mut(usize::from(index));
        match queue.filter(|queue| queue.is_enabled && !queue.is_resetting) {
            Some(queue) if may_reset => queue.is_resetting = true,
            _ => return Action::None,
        }
        Action::ResetQueue(index)
    }

    fn accept(&mut self, half: u32) {
        if self.is_resetting || self.status & FEATURES_OK != 0 {
            return;
        }
        let half = u64::from(half);
        self.driver_features = match self.driver_select {
            0 => self.driver_features & !0xffff_ffff | half,
            1 => self.driver_features & 0xffff_ffff | half << 32,
            _ => return,
        };
    }

    fn write_status(&mut self, value: u8, features: u64) -> Action {
        if value == 0 {
            return self.reset();
        }
        if self.is_resetting {
            return Action::None;
        }
        let mut value = value & !NEEDS_RESET;
        let rises = |bit: u8, value: u8| value & !self.status & bit != 0;
        let is_subset = self.driver_features & !features == 0;
        if rises(FEATURES_OK, value) && !(is_subset && self.has(VIRTIO_F_VERSION_1)) {
            // The driver reads the status back to learn this (§3.1.1).
            value &= !FEATURES_OK;
        }
        let starts = rises(DRIVER_OK, value) && value & FEATURES_OK != 0;
        self.status = value;
        match starts {
            true => Action::Start,
            false => Action::None,
        }
    }

    fn reset(&mut self) -> Action {
        let queues = std::mem::take(&mut self.queues);
        *self = Self {
            status: self.status,
            is_resetting: true,
            ..Self::new(&[])
        };
        self.queues = queues;
        self.queues.iter_mut().for_each(QueueSetup::reset);
        Action::Reset
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFFERED: u64 = 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_F_RING_RESET;

    fn write(registers: &mut Registers, at: u32, size: u8, value: u64) -> Action {
        registers.write(at, size, value, OFFERED, 3)
    }

    fn read(registers: &Registers, at: u32, size: u8) -> u64 {
        let view = View {
            features: OFFERED,
            generation: 7,
            needs_reset: false,
        };
        registers.read(at, size, view)
    }

    /// Registers of a device with two queues, whose driver accepted `features`.
    fn negotiated(features: u64) -> Registers {
        let mut registers = Registers::new(&[64, 16]);
        write(&mut registers, offset::DEVICE_STATUS, 1, 3);
        for (select, half) in [(0, features & 0xffff_ffff), (1, features >> 32)] {
            write(&mut registers, offset::DRIVER_FEATURE_SELECT, 4, select);
            write(&mut registers, offset::DRIVER_FEATURE, 4, half);
        }
        let ok = u64::from(3 | FEATURES_OK);
        assert_eq!(
            write(&mut registers, offset::DEVICE_STATUS, 1, ok),
            Action::None
        );
        registers
    }

    fn start(registers: &mut Registers) -> Action {
        let ok = u64::from(3 | FEATURES_OK | DRIVER_OK);
        write(registers, offset::DEVICE_STATUS, 1, ok)
    }

    #[test]
    fn features_are_accepted_if_offered_and_modern() {
        for (accepted, is_ok) in [
            (OFFERED, true),
            (1 << VIRTIO_F_VERSION_1, true),
            (0, false),
            (1 << VIRTIO_F_VERSION_1 | 1 << 5, false),
        ] {
            let registers = negotiated(accepted);
            let status = read(&registers, offset::DEVICE_STATUS, 1) as u8;
            assert_eq!(status & FEATURES_OK != 0, is_ok, "{accepted:#x}");
        }
        let mut registers = negotiated(0);
        assert_eq!(start(&mut registers), Action::None, "features not ok");
    }

    #[test]
    fn a_reset_is_complete_when_the_transport_says_so() {
        let mut registers = negotiated(OFFERED);
        assert_eq!(start(&mut registers), Action::Start);
        assert_eq!(start(&mut registers), Action::None, "started already");
        assert_eq!(
            write(&mut registers, offset::DEVICE_STATUS, 1, 0),
            Action::Reset
        );
        assert_ne!(read(&registers, offset::DEVICE_STATUS, 1), 0);
        assert_eq!(start(&mut registers), Action::None, "while it is resetting");
        registers.complete_reset();
        assert_eq!(read(&registers, offset::DEVICE_STATUS, 1), 0);
        assert_eq!(read(&registers, offset::DRIVER_FEATURE, 4), 0);
    }

    #[test]
    fn an_enabled_queue_keeps_its_settings() {
        let mut registers = negotiated(OFFERED);
        write(&mut registers, offset::QUEUE_SELECT, 2, 1);
        assert_eq!(read(&registers, offset::QUEUE_SIZE, 2), 16);
        for (size, kept) in [(8, 8), (7, 8), (32, 8), (0, 8)] {
            write(&mut registers, offset::QUEUE_SIZE, 2, size);
            assert_eq!(read(&registers, offset::QUEUE_SIZE, 2), kept, "{size}");
        }
        write(&mut registers, offset::QUEUE_DESC, 4, 0x1000);
        write(&mut registers, offset::QUEUE_DESC + 4, 4, 1);
        assert_eq!(read(&registers, offset::QUEUE_DESC, 8), 0x1_0000_1000);
        for (vector, kept) in [(2, 2), (3, u64::from(NO_VECTOR))] {
            write(&mut registers, offset::QUEUE_MSIX_VECTOR, 2, vector);
            assert_eq!(read(&registers, offset::QUEUE_MSIX_VECTOR, 2), kept);
        }
        assert_eq!(
            write(&mut registers, offset::QUEUE_ENABLE, 2, 1),
            Action::None
        );
        write(&mut registers, offset::QUEUE_DESC, 8, 0);
        write(&mut registers, offset::QUEUE_SIZE, 2, 16);
        assert_eq!(registers.queues[1].areas[0], 0x1_0000_1000);
        assert_eq!(registers.queues[1].size, 8);
        write(&mut registers, offset::QUEUE_SELECT, 2, 2);
        assert_eq!(read(&registers, offset::QUEUE_SIZE, 2), 0, "no third queue");
    }

    #[test]
    fn one_queue_can_be_reset_and_enabled_again() {
        let mut registers = negotiated(OFFERED);
        write(&mut registers, offset::QUEUE_SELECT, 2, 1);
        write(&mut registers, offset::QUEUE_ENABLE, 2, 1);
        start(&mut registers);
        let reset = |registers: &mut Registers| write(registers, offset::QUEUE_RESET, 2, 1);
        assert_eq!(reset(&mut registers), Action::ResetQueue(1));
        assert_eq!(reset(&mut registers), Action::None);
        assert_eq!(read(&registers, offset::QUEUE_RESET, 2), 1);
        registers.queues[1].reset();
        assert_eq!(read(&registers, offset::QUEUE_RESET, 2), 0);
        assert_eq!(read(&registers, offset::QUEUE_ENABLE, 2), 0);
        let enable = write(&mut registers, offset::QUEUE_ENABLE, 2, 1);
        assert_eq!(enable, Action::StartQueue(1));

        let mut registers = negotiated(1 << VIRTIO_F_VERSION_1);
        write(&mut registers, offset::QUEUE_ENABLE, 2, 1);
        start(&mut registers);
        assert_eq!(reset(&mut registers), Action::None, "not negotiated");
        write(&mut registers, offset::QUEUE_SELECT, 2, 1);
        let enable = write(&mut registers, offset::QUEUE_ENABLE, 2, 1);
        assert_eq!(enable, Action::None, "too late");
    }
}
