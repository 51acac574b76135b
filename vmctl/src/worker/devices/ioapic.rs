//! The I/O APIC: 24 pins, redirected into messages (Intel 82093AA, with the EOI register of
//! version 0x20).

use std::ops::Range;

use guest_proto::driver::Msi;

const PINS: usize = 24;
const VERSION: u32 = 0x20 | ((PINS as u32 - 1) << 16);

/// Bits of a redirection entry.
mod entry {
    pub(super) const VECTOR: u64 = 0xff;
    pub(super) const DELIVERY_MODE: u64 = 0x7 << 8;
    pub(super) const LOGICAL: u64 = 1 << 11;
    pub(super) const DELIVERY_STATUS: u64 = 1 << 12;
    pub(super) const REMOTE_IRR: u64 = 1 << 14;
    pub(super) const LEVEL: u64 = 1 << 15;
    pub(super) const MASKED: u64 = 1 << 16;
    /// Software can't write these.
    pub(super) const READ_ONLY: u64 = DELIVERY_STATUS | REMOTE_IRR;
    pub(super) const LOWEST_PRIORITY: u64 = 1 << 8;
}

/// Bits of an MSI.
mod msi {
    pub(super) const ADDRESS: u64 = 0xfee0_0000;
    pub(super) const LOGICAL: u64 = 1 << 2;
    pub(super) const REDIRECTION_HINT: u64 = 1 << 3;
    pub(super) const ASSERT: u64 = 1 << 14;
    pub(super) const LEVEL: u64 = 1 << 15;
}

/// Memory-mapped registers.
mod register {
    pub(super) const SELECT: u64 = 0x00;
    pub(super) const WINDOW: u64 = 0x10;
    pub(super) const EOI: u64 = 0x40;
}

/// State of the I/O APIC.
#[derive(Debug)]
pub(super) struct Ioapic {
    select: u8,
    id: u32,
    entries: [u64; PINS],
    /// Lines that are asserted (level-triggered devices).
    asserted: u32,
    outgoing: Vec<Msi>,
}

impl Ioapic {
    pub(super) fn new() -> Self {
        Self {
            select: 0,
            id: 0,
            entries: [entry::MASKED; PINS],
            asserted: 0,
            outgoing: Vec::new(),
        }
    }

    pub(super) fn read(&self, offset: u64) -> u32 {
        match offset {
            register::SELECT => u32::from(self.select),
            register::WINDOW => self.read_register(),
            _ => 0,
        }
    }

    pub(super) fn write(&mut self, offset: u64, value: u32) {
        match offset {
            register::SELECT => self.select = value as u8,
            register::WINDOW => self.write_register(value),
            register::EOI => self.end_of_interrupt(value as u8),
            _ => {}
        }
    }

    fn read_register(&self) -> u32 {
        match self.select {
            // Id and arbitration id.
            0 | 2 => self.id,
            1 => VERSION,
            select => match self.pin(select) {
                Some((pin, false)) => self.entries[pin] as u32,
                Some((pin, true)) => (self.entries[pin] >> 32) as u32,
                None => 0,
            },
        }
    }

    fn write_register(&mut self, value: u32) {
        let value = u64::from(value);
        match (self.select, self.pin(self.select)) {
            (0, _) => self.id = value as u32 & 0x0f00_0000,
            (_, Some((pin, false))) => {
                let old = self.entries[pin];
                let kept = (old & !0xffff_ffff) | (old & entry::READ_ONLY);
                let mut new = kept | (value & !entry::READ_ONLY & 0x1_ffff);
                if new & entry::LEVEL == 0 {
                    // An edge-triggered pin has no remote IRR: this is how kernels without an EOI
                    // register clear it.
                    new &= !entry::REMOTE_IRR;
                }
                self.entries[pin] = new;
                self.deliver(pin, false);
            }
            (_, Some((pin, true))) => {
                self.entries[pin] = (self.entries[pin] & 0xffff_ffff) | value << 32;
            }
            _ => {}
        }
    }

    /// Pin of a redirection register, and whether it is the upper half.
    fn pin(&self, select: u8) -> Option<(usize, bool)> {
        let index = select.checked_sub(0x10)?;
        let pin = usize::from(index / 2);
        (pin < PINS).then_some((pin, index % 2 == 1))
    }

    /// An edge on a pin: the line goes up and down again. A masked pin ignores it (82093AA §3.2.4, interrupt mask).
    pub(super) fn pulse(&mut self, pin: u32) {
        self.deliver(pin as usize, true);
    }

    /// Sets the line of a level-triggered device.
    pub(super) fn set_line(&mut self, pin: u32, high: bool) {
        let bit = 1 << pin;
        if high == (self.asserted & bit != 0) {
            return;
        }
        self.asserted ^= bit;
        self.deliver(pin as usize, high);
    }

    /// Sets the lines of some pins, which are bits of `high`.
    pub(super) fn set_lines(&mut self, pins: Range<u32>, high: u32) {
        // Most accesses to devices change no line.
        let mask = (1 << pins.end) - (1 << pins.start);
        if (self.asserted ^ high) & mask != 0 {
            pins.for_each(|pin| self.set_line(pin, high >> pin & 1 != 0));
        }
    }

    /// The CPUs have finished this level-triggered vector; pins whose line is still up deliver
    /// again.
    pub(super) fn end_of_interrupt(&mut self, vector: u8) {
        for pin in 0..PINS {
            let value = self.entries[pin];
            if value & entry::REMOTE_IRR != 0 && value & entry::VECTOR == u64::from(vector) {
                self.entries[pin] &= !entry::REMOTE_IRR;
                self.deliver(pin, false);
            }
        }
    }

    /// Delivers what a pin has to deliver, `is_up` if its line has just gone up.
    fn deliver(&mut self, pin: usize, is_up: bool) {
        let value = self.entries[pin];
        let level = value & entry::LEVEL != 0;
        let is_due = match level {
            true => value & entry::REMOTE_IRR == 0 && (is_up || self.asserted & 1 << pin != 0),
            false => is_up,
        };
        if !is_due || value & entry::MASKED != 0 {
            return;
        }
        if level {
            self.entries[pin] |= entry::REMOTE_IRR;
        }
        self.outgoing.push(message(value));
    }

    /// Whether no message waits.
    pub(super) fn is_settled(&self) -> bool {
        self.outgoing.is_empty()
    }

    pub(super) fn take_msis(&mut self) -> Vec<Msi> {
        std::mem::take(&mut self.outgoing)
    }
}

/// The message of a redirection entry.
fn message(value: u64) -> Msi {
    let mut address = msi::ADDRESS | (value >> 56) << 12;
    if value & entry::LOGICAL != 0 {
        address |= msi::LOGICAL;
    }
    if value & entry::DELIVERY_MODE == entry::LOWEST_PRIORITY {
        address |= msi::REDIRECTION_HINT;
    }
    let mut data = value & (entry::VECTOR | entry::DELIVERY_MODE) | msi::ASSERT;
    if value & entry::LEVEL != 0 {
        data |= msi::LEVEL;
    }
    Msi { address, data }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redirect(ioapic: &mut Ioapic, pin: u8, value: u64) {
        ioapic.write(register::SELECT, u32::from(0x11 + 2 * pin));
        ioapic.write(register::WINDOW, (value >> 32) as u32);
        ioapic.write(register::SELECT, u32::from(0x10 + 2 * pin));
        ioapic.write(register::WINDOW, value as u32);
    }

    #[test]
    fn an_edge_becomes_one_message() {
        let mut ioapic = Ioapic::new();
        redirect(&mut ioapic, 4, 1 << 56 | 0x31);
        ioapic.pulse(4);
        assert_eq!(
            ioapic.take_msis(),
            [Msi {
                address: 0xfee0_1000,
                data: 0x4031
            }]
        );
        ioapic.pulse(4);
        ioapic.pulse(4);
        assert_eq!(ioapic.take_msis().len(), 2);
    }

    #[test]
    fn a_masked_edge_is_ignored_and_a_masked_level_waits() {
        let mut ioapic = Ioapic::new();
        ioapic.pulse(4);
        ioapic.set_line(5, true);
        redirect(&mut ioapic, 4, 0x31);
        redirect(&mut ioapic, 5, 0x32);
        assert!(ioapic.take_msis().is_empty());
        ioapic.pulse(4);
        assert_eq!(ioapic.take_msis().len(), 1);
        // A line that is still up when its level-triggered pin is unmasked has an interrupt to deliver.
        ioapic.set_line(9, true);
        redirect(&mut ioapic, 9, entry::LEVEL | 0x41);
        assert_eq!(ioapic.take_msis().len(), 1);
    }

    #[test]
    fn a_level_is_delivered_again_only_after_its_end() {
        let mut ioapic = Ioapic::new();
        redirect(&mut ioapic, 9, entry::LEVEL | 0x41);
        ioapic.set_line(9, true);
        let sent = ioapic.take_msis();
        assert_eq!(sent[0].data, 0xc041);
        ioapic.write(register::SELECT, 0x10 + 18);
        assert_ne!(ioapic.read(register::WINDOW) & 1 << 14, 0);
        ioapic.set_line(9, true);
        assert!(ioapic.take_msis().is_empty());
        ioapic.end_of_interrupt(0x41);
        assert_eq!(ioapic.take_msis().len(), 1, "the line is still up");
        ioapic.set_line(9, false);
        ioapic.end_of_interrupt(0x41);
        assert!(ioapic.take_msis().is_empty());
    }

    #[test]
    fn switching_to_edge_and_back_clears_remote_irr() {
        let mut ioapic = Ioapic::new();
        redirect(&mut ioapic, 9, entry::LEVEL | 0x41);
        ioapic.set_line(9, true);
        ioapic.set_line(9, false);
        ioapic.write(register::WINDOW, (entry::MASKED | 0x41) as u32);
        assert_eq!(ioapic.read(register::WINDOW) & 1 << 14, 0);
    }

    #[test]
    fn identification_and_read_only_bits() {
        let mut ioapic = Ioapic::new();
        ioapic.write(register::SELECT, 1);
        assert_eq!(ioapic.read(register::WINDOW), 0x0017_0020);
        redirect(&mut ioapic, 0, entry::READ_ONLY | entry::MASKED);
        assert_eq!(u64::from(ioapic.read(register::WINDOW)), entry::MASKED);
        ioapic.write(register::SELECT, 0xff);
        assert_eq!(ioapic.read(register::WINDOW), 0);
    }

    #[test]
    fn lowest_priority_and_logical_destinations() {
        let sent = message(0x03 << 56 | entry::LOGICAL | entry::LOWEST_PRIORITY | 0x55);
        assert_eq!(sent.address, 0xfee0_300c);
        assert_eq!(sent.data, 0x4155);
    }
}
