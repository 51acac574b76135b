//! The devices of one VM, and the bus that finds them.
//!
//! [`Devices`] is plain state behind one lock. An access to a port or to memory returns its answer,
//! and interrupts leave as messages through [`Devices::take_msis`]. PCI devices have events for
//! their interrupts, which [`Devices::take_effects`] binds. A request that concerns the whole machine
//! (power-off, reset, a panic) is kept until [`Devices::take_request`]. No device waits, and none
//! knows of the driver or of another device.

mod fw_cfg;
mod ioapic;
mod panic_text;
mod power;
mod rtc;
mod serial;
mod strays;
#[cfg(test)]
mod tests;

use guest_proto::driver::Msi;
use guest_proto::vcpu_page::{PostedKind, PostedWrite};

use super::acpi::S5;
use super::memory::layout;
use super::pci::{Bus, Effect, PINS};
use super::virtio::Kind;
use super::virtio::transport::Transport;
use fw_cfg::FwCfg;
pub use fw_cfg::{Facts, Part};
use ioapic::Ioapic;
pub use panic_text::PanicText;
use power::Power;
use rtc::Rtc;
use serial::Uart;
pub use strays::Stray;
use strays::Strays;

/// Port numbers.
pub mod port {
    /// COM1, 8 ports.
    pub const SERIAL: u16 = 0x3f8;
    /// CMOS index; data is the next one.
    pub const RTC_INDEX: u16 = 0x70;
    /// CMOS data.
    pub const RTC_DATA: u16 = 0x71;
    /// pvpanic (QEMU's `docs/specs/pvpanic.rst`).
    pub const PVPANIC: u16 = 0x505;
    /// ACPI's PM1 control register, 2 bytes.
    pub const PM1_CONTROL: u16 = 0x600;
    /// Last byte of the PM1 control register.
    pub const PM1_CONTROL_LAST: u16 = PM1_CONTROL + 1;
    /// ACPI reset register.
    pub const RESET: u16 = 0x602;
    /// The value by which a write resets the machine.
    pub const RESET_VALUE: u8 = 1;
    /// Events of the Generic Event Device; reading takes them.
    pub const EVENTS: u16 = 0x604;
    /// ACPI's PM1 event registers: 2 bytes of status, 2 of enable.
    pub const PM1_EVENT: u16 = 0x620;
    /// Last byte of the PM1 event registers.
    pub const PM1_EVENT_LAST: u16 = PM1_EVENT + 3;
    /// The guest writes 1 when it goes to sleep, and 0 when it is awake.
    pub const SLEEP: u16 = 0x624;
    /// Keyboard controller's command port, for its reset line alone.
    pub const I8042: u16 = 0x64;
    /// Reset control of PC chip sets.
    pub const RESET_CONTROL: u16 = 0xcf9;
    /// System control port A of PCs: the gate of address line 20, and a fast reset.
    pub const SYSTEM_CONTROL: u16 = 0x92;
}

/// Bits of [`port::EVENTS`].
pub mod event {
    /// The registers of PCI hot plug have something.
    pub const SLOTS: u8 = 1 << 0;
}

/// Global system interrupts: pins of the I/O APIC.
pub mod irq {
    /// COM1.
    pub const SERIAL: u32 = 4;
    /// Generic Event Device, level-triggered.
    pub const EVENTS: u32 = 5;
    /// ACPI's system control interrupt (SCI), level-triggered.
    pub const SCI: u32 = 9;
}

/// Tag of the serial port's doorbell.
pub const SERIAL_TAG: u16 = 1;
/// Pulses the CPU's reset line.
const I8042_RESET: u8 = 0xfe;
/// System control port A: starts a reset, and opens the gate of address line 20, which is always open here.
const FAST_RESET: u8 = 1 << 0;
const A20_OPEN: u8 = 1 << 1;
/// pvpanic: the guest has panicked; its kernel has loaded a crash kernel.
const PANICKED: u8 = 1 << 0;
const CRASH_LOADED: u8 = 1 << 1;

/// A request of the guest's for the whole machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestRequest {
    /// Power off.
    PowerOff,
    /// Start again.
    Reset,
    /// The guest has panicked (pvpanic).
    Panicked,
}

/// The way to the devices, which other threads use, too.
pub(super) trait Access {
    /// Returns the devices. From then on no other thread has them.
    fn devices(&mut self) -> &mut Devices;
}

/// All devices of a VM.
#[derive(Debug)]
pub struct Devices {
    serial: Uart,
    ioapic: Ioapic,
    rtc: Rtc,
    fw_cfg: FwCfg,
    pci: Bus,
    power: Power,
    events: u8,
    request: Option<GuestRequest>,
    strays: Strays,
}

impl Default for Devices {
    fn default() -> Self {
        Self::new()
    }
}

impl Devices {
    /// Devices as after a reset.
    pub fn new() -> Self {
        Self {
            serial: Uart::new(),
            ioapic: Ioapic::new(),
            rtc: Rtc::new(),
            fw_cfg: FwCfg::default(),
            pci: Bus::default(),
            power: Power::default(),
            events: 0,
            request: None,
            strays: Strays::default(),
        }
    }

    /// Reads `size` bytes at a port: from byte-wide devices one after the other.
    pub fn read_port(&mut self, port: u16, size: u8) -> u64 {
        if let Some(value) = self.pci.read_port(port, size) {
            return value;
        }
        (0..u16::from(size)).rev().fold(0, |value, i| {
            value << 8 | u64::from(self.read_byte(port.wrapping_add(i)))
        })
    }

    /// Writes `size` bytes at a port.
    pub fn write_port(&mut self, port: u16, size: u8, value: u64) {
        if self.pci.write_port(port, size, value) {
            return;
        }
        if (port, size) == (fw_cfg::SELECTOR, 2) {
            return self.fw_cfg.select(value as u16);
        }
        for (i, byte) in (0..u16::from(size)).zip(value.to_le_bytes()) {
            self.write_byte(port.wrapping_add(i), byte);
        }
    }

    fn read_byte(&mut self, port: u16) -> u8 {
        match port {
            self::port::SERIAL..=0x3ff => {
                let value = self.serial.read((port - self::port::SERIAL) as u8);
                self.pulse_serial();
                value
            }
            self::port::RTC_DATA => self.rtc.read(),
            self::port::PVPANIC => PANICKED | CRASH_LOADED,
            self::port::PM1_CONTROL..=self::port::PM1_CONTROL_LAST => {
                Power::read_control(port - self::port::PM1_CONTROL)
            }
            self::port::PM1_EVENT..=self::port::PM1_EVENT_LAST => {
                self.power.read_event(port - self::port::PM1_EVENT)
            }
            self::port::SLEEP => self.power.is_asleep().into(),
            self::port::SYSTEM_CONTROL => A20_OPEN,
            fw_cfg::DATA => self.fw_cfg.read(),
            self::port::EVENTS => {
                self.ioapic.set_line(irq::EVENTS, false);
                std::mem::take(&mut self.events)
            }
            _ => {
                self.stray(true, port.into(), false);
                0xff
            }
        }
    }

    fn write_byte(&mut self, port: u16, value: u8) {
        match port {
            self::port::SERIAL..=0x3ff => {
                self.serial.write((port - self::port::SERIAL) as u8, value);
                self.pulse_serial();
            }
            self::port::RTC_INDEX => self.rtc.select(value),
            self::port::RTC_DATA => self.rtc.write(value),
            self::port::PVPANIC if value & PANICKED != 0 => self.ask(GuestRequest::Panicked),
            self::port::PM1_CONTROL..=self::port::PM1_CONTROL_LAST => {
                if Power::sleep_type(port - self::port::PM1_CONTROL, value) == Some(S5) {
                    self.ask(GuestRequest::PowerOff);
                }
            }
            self::port::PM1_EVENT..=self::port::PM1_EVENT_LAST => {
                self.power.write_event(port - self::port::PM1_EVENT, value);
                self.update_sci();
            }
            self::port::SLEEP => self.power.set_asleep(value & 1 != 0),
            self::port::RESET if value == self::port::RESET_VALUE => self.ask(GuestRequest::Reset),
            self::port::I8042 if value == I8042_RESET => self.ask(GuestRequest::Reset),
            // Bit 2 starts the reset; the kind (bits 1 and 3) makes no difference here.
            self::port::RESET_CONTROL if value & 1 << 2 != 0 => self.ask(GuestRequest::Reset),
            self::port::SYSTEM_CONTROL if value & FAST_RESET != 0 => self.ask(GuestRequest::Reset),
            self::port::PVPANIC
            | self::port::SYSTEM_CONTROL
            | self::port::RESET
            | self::port::RESET_CONTROL => {}
            _ => self.stray(true, port.into(), true),
        }
    }

    /// Reads guest memory that is no RAM.
    pub fn read_memory(&mut self, gpa: u64, size: u8) -> u64 {
        match gpa.checked_sub(layout::IOAPIC) {
            Some(offset @ 0..0x1000) => u64::from(self.ioapic.read(offset)),
            _ => self.pci.read_memory(gpa, size).unwrap_or_else(|| {
                self.stray(false, gpa, false);
                u64::MAX >> (64 - 8 * u32::from(size.clamp(1, 8)))
            }),
        }
    }

    /// Writes guest memory that is no RAM.
    pub fn write_memory(&mut self, gpa: u64, size: u8, value: u64) {
        match gpa.checked_sub(layout::IOAPIC) {
            Some(offset @ 0..0x1000) => self.ioapic.write(offset, value as u32),
            _ if self.pci.write_memory(gpa, size, value) => {}
            _ => self.stray(false, gpa, true),
        }
    }

    /// Sets what firmware and test kernels are told.
    pub fn set_facts(&mut self, facts: Facts) {
        self.fw_cfg = FwCfg::new(facts);
    }

    /// Returns the PCI bus.
    pub fn pci(&mut self) -> &mut Bus {
        &mut self.pci
    }

    /// Takes the changes of PCI devices that the driver has to learn of.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        self.pci.take_effects()
    }

    /// Takes a posted write.
    pub fn posted(&mut self, entry: &PostedWrite) {
        match (PostedKind::from_raw(entry.kind), entry.tag) {
            (Some(PostedKind::Port), SERIAL_TAG) => {
                // The offset is below the doorbell's length.
                let port = port::SERIAL.wrapping_add(entry.offset as u16);
                self.write_port(port, entry.size, entry.data);
            }
            (Some(PostedKind::Eoi), _) => self.ioapic.end_of_interrupt(entry.data as u8),
            // No other device has a doorbell.
            _ => {}
        }
    }

    /// Puts a device onto the PCI bus while the guest runs.
    pub fn plug(&mut self, slot: u8, device: Box<Transport>) {
        self.pci.plug(slot, device);
        self.raise(event::SLOTS);
    }

    /// Asks the guest to give up the disk or network card with this name. Returns false if there is none.
    pub fn ask_for_device(&mut self, name: &str) -> bool {
        let is_there = self.pci.ask_for(Kind::Block, name) || self.pci.ask_for(Kind::Net, name);
        if is_there {
            self.raise(event::SLOTS);
        }
        is_there
    }

    /// Presses the power button.
    pub fn press_power_button(&mut self) {
        self.power.press();
        self.update_sci();
    }

    /// Wakes a guest that sleeps.
    pub fn wake_guest(&mut self) {
        self.power.wake();
        self.update_sci();
    }

    fn update_sci(&mut self) {
        self.ioapic.set_line(irq::SCI, self.power.line());
    }

    /// Whether the guest sleeps (suspend-to-idle).
    pub fn is_asleep(&self) -> bool {
        self.power.is_asleep()
    }

    /// Whether the guest has gone to sleep or woken up since the last call.
    pub fn take_sleep_change(&mut self) -> bool {
        self.power.take_change()
    }

    fn raise(&mut self, event: u8) {
        self.events |= event;
        self.ioapic.set_line(irq::EVENTS, true);
    }

    /// Bytes that the serial port can take as typed.
    pub fn serial_room(&self) -> usize {
        self.serial.room()
    }

    /// Types at the serial port; `bytes` beyond [`Self::serial_room`] are lost.
    pub fn type_serial(&mut self, bytes: &[u8]) {
        self.serial.receive(bytes);
        self.pulse_serial();
    }

    /// Returns the bytes that the guest wrote to the serial port since the last call.
    pub fn serial_output(&mut self) -> &mut Vec<u8> {
        self.serial.output()
    }

    /// Whether no device has an interrupt, an output, a request or a change for anybody.
    pub fn is_settled(&mut self) -> bool {
        self.update_pins();
        self.ioapic.is_settled()
            && self.pci.is_settled()
            && self.serial.output().is_empty()
            && self.request.is_none()
            && self.strays.is_settled()
            && !self.power.has_changed()
    }

    fn update_pins(&mut self) {
        self.ioapic.set_lines(PINS, self.pci.asserted());
    }

    /// Interrupts to deliver since the last call.
    pub fn take_msis(&mut self) -> Vec<Msi> {
        self.update_pins();
        self.ioapic.take_msis()
    }

    /// Takes the guest's request.
    pub fn take_request(&mut self) -> Option<GuestRequest> {
        self.request.take()
    }

    /// Accesses to ports and memory where nothing is.
    pub fn stray_accesses(&self) -> u64 {
        self.strays.count
    }

    /// Those that are worth a line in the log, since the last call.
    pub fn take_strays(&mut self) -> Vec<Stray> {
        self.strays.take()
    }

    fn stray(&mut self, port: bool, address: u64, write: bool) {
        self.strays.note(Stray {
            port,
            address,
            write,
        });
    }

    /// The first request counts: a panic is told before the reboot that it leads to.
    fn ask(&mut self, request: GuestRequest) {
        self.request.get_or_insert(request);
    }

    fn pulse_serial(&mut self) {
        if self.serial.take_interrupt() {
            self.ioapic.pulse(irq::SERIAL);
        }
    }
}
