//! Configuration space of a PCI function: a type 0 header and its capabilities (PCI 3.0 §6.1, §6.7).
//!
//! [`Header`] knows which bits software can change, but not what a capability means: the
//! capability's owner looks at its bytes after each write.

/// Bytes of PCI configuration space. The extended space of PCI Express behind them reads as zeroes,
/// which is an empty list of extended capabilities.
pub const SIZE: usize = 256;
/// Base address registers (BARs) of a function.
pub const BARS: usize = 6;

/// Offsets in the header.
mod offset {
    pub(super) const VENDOR: usize = 0x00;
    pub(super) const DEVICE: usize = 0x02;
    pub(super) const COMMAND: usize = 0x04;
    pub(super) const STATUS: usize = 0x06;
    pub(super) const REVISION: usize = 0x08;
    pub(super) const PROGRAMMING: usize = 0x09;
    pub(super) const LINE_SIZE: usize = 0x0c;
    pub(super) const BAR: usize = 0x10;
    pub(super) const SUBSYSTEM_VENDOR: usize = 0x2c;
    pub(super) const SUBSYSTEM: usize = 0x2e;
    pub(super) const CAPABILITIES: usize = 0x34;
    pub(super) const INTERRUPT_LINE: usize = 0x3c;
    pub(super) const INTERRUPT_PIN: usize = 0x3d;
    pub(super) const END: usize = 0x40;
}

/// Bits of the command register that software can change.
mod command {
    pub(super) const IO: u16 = 1 << 0;
    pub(super) const MEMORY: u16 = 1 << 1;
    pub(super) const MASTER: u16 = 1 << 2;
    pub(super) const INTERRUPT_DISABLE: u16 = 1 << 10;
    pub(super) const WRITABLE: u16 = IO | MEMORY | MASTER | INTERRUPT_DISABLE;
}

/// Bits of the status register: an interrupt is pending; there is a list of capabilities.
const INTERRUPT_STATUS: u16 = 1 << 3;
const HAS_CAPABILITIES: u16 = 1 << 4;

/// IDs and class of a function.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// Vendor ID and device ID.
    pub device: (u16, u16),
    /// Vendor ID and device ID of the subsystem.
    pub subsystem: (u16, u16),
    /// Base class, subclass and programming interface.
    pub class: [u8; 3],
    /// Revision ID.
    pub revision: u8,
}

/// The address space of a BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// I/O ports.
    Io,
    /// Memory below 4 GiB.
    Memory,
}

/// A BAR.
#[derive(Clone, Copy, Debug)]
struct Bar {
    space: Space,
    /// A power of two.
    size: u32,
}

/// The configuration space of a function.
#[derive(Clone, Debug)]
pub struct Header {
    bytes: [u8; SIZE],
    writable: [u8; SIZE],
    bars: [Option<Bar>; BARS],
    /// Offset of the link that the next capability is entered in.
    last: usize,
    free: usize,
}

impl Header {
    /// Returns the header of a function without BARs and capabilities.
    pub fn new(identity: Identity) -> Self {
        let mut header = Self {
            bytes: [0; SIZE],
            writable: [0; SIZE],
            bars: [None; BARS],
            last: offset::CAPABILITIES,
            free: offset::END,
        };
        header.put16(offset::VENDOR, identity.device.0);
        header.put16(offset::DEVICE, identity.device.1);
        header.put16(offset::SUBSYSTEM_VENDOR, identity.subsystem.0);
        header.put16(offset::SUBSYSTEM, identity.subsystem.1);
        header.bytes[offset::REVISION] = identity.revision;
        let [class, subclass, programming] = identity.class;
        header.bytes[offset::PROGRAMMING..offset::LINE_SIZE].copy_from_slice(&[
            programming,
            subclass,
            class,
        ]);
        header.allow(offset::COMMAND, &command::WRITABLE.to_le_bytes());
        header.allow(offset::LINE_SIZE, &[0xff]);
        header.allow(offset::INTERRUPT_LINE, &[0xff]);
        header
    }

    /// Adds BAR `index` with `size` bytes, a power of two, at `address`.
    pub fn add_bar(&mut self, index: usize, space: Space, size: u32, address: u32) {
        let at = offset::BAR + 4 * index;
        let (flags, low) = match space {
            Space::Io => (1, 4),
            Space::Memory => (0, 16),
        };
        let size = size.next_power_of_two().max(low);
        self.bars[index] = Some(Bar { space, size });
        self.put32(at, address | flags);
        // The address bits below the size are fixed: software finds the size by them.
        self.allow(at, &(!(size - 1)).to_le_bytes());
        let enable = match space {
            Space::Io => command::IO,
            Space::Memory => command::MEMORY,
        };
        let command = self.get16(offset::COMMAND);
        self.put16(offset::COMMAND, command | enable);
    }

    /// Adds a capability with `body` behind its ID and link. Software can change the bits in
    /// `writable`. Returns the offset of the body.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> usize {
        let at = self.free;
        self.bytes[self.last] = at as u8;
        self.bytes[at] = id;
        self.bytes[at + 2..at + 2 + body.len()].copy_from_slice(body);
        self.allow(at + 2, writable);
        self.last = at + 1;
        self.free = (at + 2 + body.len()).next_multiple_of(4);
        let status = self.get16(offset::STATUS);
        self.put16(offset::STATUS, status | HAS_CAPABILITIES);
        at + 2
    }

    /// Gives the function the interrupt pin INTA.
    pub fn add_pin(&mut self) {
        self.bytes[offset::INTERRUPT_PIN] = 1;
    }

    /// Returns whether the function may assert its interrupt pin.
    pub fn allows_pin(&self) -> bool {
        self.get16(offset::COMMAND) & command::INTERRUPT_DISABLE == 0
    }

    /// Sets the bit that says whether an interrupt is pending.
    pub fn set_interrupt_status(&mut self, is_pending: bool) {
        let status = self.get16(offset::STATUS) & !INTERRUPT_STATUS;
        let bit = if is_pending { INTERRUPT_STATUS } else { 0 };
        self.put16(offset::STATUS, status | bit);
    }

    /// Reads `size` bytes at offset `at`.
    pub fn read(&self, at: usize, size: u8) -> u32 {
        let byte = |i: u8| self.bytes.get(at + usize::from(i)).copied().unwrap_or(0);
        (0..size.min(4))
            .rev()
            .fold(0, |value, i| value << 8 | u32::from(byte(i)))
    }

    /// Writes `size` bytes at offset `at`.
    pub fn write(&mut self, at: usize, size: u8, value: u32) {
        for (i, new) in (0..usize::from(size)).zip(value.to_le_bytes()) {
            if let (Some(byte), Some(mask)) =
                (self.bytes.get_mut(at + i), self.writable.get(at + i))
            {
                *byte = *byte & !mask | new & mask;
            }
        }
    }

    /// Returns address space, base and size of a BAR, or `None` while it is disabled.
    pub fn bar(&self, index: usize) -> Option<(Space, u64, u32)> {
        let bar = self.bars.get(index).copied().flatten()?;
        let enable = match bar.space {
            Space::Io => command::IO,
            Space::Memory => command::MEMORY,
        };
        if self.get16(offset::COMMAND) & enable == 0 {
            return None;
        }
        let address = self.read(offset::BAR + 4 * index, 4) & !(bar.size - 1);
        // Software that probes the size sets all address bits for a moment.
        let probing = address == !(bar.size - 1);
        (!probing).then_some((bar.space, u64::from(address), bar.size))
    }

    /// Returns the BAR that `address` lies in, and the offset in it.
    pub fn decode(&self, space: Space, address: u64) -> Option<(usize, u32)> {
        (0..BARS).find_map(|index| {
            let (found, base, size) = self.bar(index)?;
            let at = address.checked_sub(base)?;
            (found == space && at < u64::from(size)).then_some((index, at as u32))
        })
    }

    fn allow(&mut self, at: usize, mask: &[u8]) {
        self.writable[at..at + mask.len()].copy_from_slice(mask);
    }

    fn get16(&self, at: usize) -> u16 {
        self.read(at, 2) as u16
    }

    fn put16(&mut self, at: usize, value: u16) {
        self.bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }

    fn put32(&mut self, at: usize, value: u32) {
        self.bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        let mut header = Header::new(Identity {
            device: (0x1af4, 0x1042),
            subsystem: (0x1af4, 0x1042),
            class: [1, 0, 2],
            revision: 1,
        });
        header.add_bar(0, Space::Memory, 0x4000, 0xc000_0000);
        header.add_bar(1, Space::Io, 8, 0xc100);
        header
    }

    #[test]
    fn identity_and_class_stand_where_software_looks() {
        let header = header();
        assert_eq!(header.read(0, 4), 0x1042_1af4);
        assert_eq!(header.read(8, 4), 0x0100_0201);
        assert_eq!(header.read(0x2c, 4), 0x1042_1af4);
        assert_eq!(header.read(0x100, 4), 0, "no extended capabilities");
    }

    #[test]
    fn what_is_fixed_cannot_be_written() {
        let mut header = header();
        header.write(0, 4, 0);
        header.write(4, 4, u32::MAX);
        assert_eq!(header.read(0, 4), 0x1042_1af4);
        assert_eq!(header.read(4, 4), 0x0407);
    }

    #[test]
    fn a_size_is_found_by_writing_ones() {
        let mut header = header();
        header.write(0x10, 4, u32::MAX);
        header.write(0x14, 4, u32::MAX);
        assert_eq!(header.read(0x10, 4), 0xffff_c000);
        assert_eq!(header.read(0x14, 4), 0xffff_fff9);
        assert_eq!(header.bar(0), None, "while it is being sized");
        header.write(0x18, 4, u32::MAX);
        assert_eq!(header.read(0x18, 4), 0, "there is no third");
    }

    #[test]
    fn addresses_are_found_where_they_were_moved_to() {
        let mut header = header();
        let at = |header: &Header, address| header.decode(Space::Memory, address);
        assert_eq!(at(&header, 0xc000_3fff), Some((0, 0x3fff)));
        assert_eq!(at(&header, 0xc000_4000), None);
        header.write(0x10, 4, 0xd000_0000);
        assert_eq!(at(&header, 0xc000_0000), None);
        assert_eq!(at(&header, 0xd000_0010), Some((0, 0x10)));
        assert_eq!(header.decode(Space::Io, 0xc107), Some((1, 7)));
        header.write(4, 2, 1);
        assert_eq!(at(&header, 0xd000_0010), None, "memory is not enabled");
    }

    #[test]
    fn capabilities_form_a_list() {
        let mut header = header();
        let first = header.add_capability(0x11, &[0; 10], &[0, 0xc0]);
        let second = header.add_capability(9, &[1, 2, 3], &[]);
        assert_eq!(header.read(6, 2) & 0x10, 0x10);
        assert_eq!(header.read(0x34, 1), first as u32 - 2);
        assert_eq!(header.read(first - 2, 2), (second as u32 - 2) << 8 | 0x11);
        assert_eq!(header.read(second - 2, 4), 0x0201_0009);
        header.write(first, 2, 0xffff);
        assert_eq!(header.read(first, 2), 0xc000);
    }
}
