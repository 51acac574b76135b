//! PCI functions of bus 0, by configuration mechanism #1 (PCI 3.0 §3.2.2.3.2). Firmware, or a hypervisor in its place,
//! has given them their addresses.

use test_kernel::cpu::write_port32;

use crate::cpu;

const ADDRESS: u16 = 0xcf8;
const DATA: u16 = 0xcfc;
const ENABLED: u32 = 1 << 31;
const SLOTS: u8 = 32;
/// Offsets in configuration space.
const COMMAND: u8 = 0x04;
const BARS: u8 = 0x10;
const CAPABILITIES: u8 = 0x34;
/// I/O ports, memory and bus mastering.
const COMMAND_ALL: u32 = 0b111;

/// Function 0 of a slot.
#[derive(Clone, Copy)]
pub struct Function(u8);

/// What a base address register leads to.
#[derive(Clone, Copy)]
pub enum Space {
    /// The first port.
    Port(u16),
    /// The first address.
    Memory(u64),
}

impl Function {
    /// Returns the first function with these IDs of vendor and device.
    pub fn find(vendor: u16, device: u16) -> Option<Self> {
        let wanted = u32::from(device) << 16 | u32::from(vendor);
        (0..SLOTS)
            .map(Self)
            .find(|function| function.read(0) == wanted)
    }

    /// Reads four bytes of configuration space.
    pub fn read(self, offset: u8) -> u32 {
        let address = ENABLED | u32::from(self.0) << 11 | u32::from(offset & !3);
        write_port32(ADDRESS, address);
        cpu::read_port32(DATA)
    }

    /// Writes four bytes of configuration space.
    pub fn write(self, offset: u8, value: u32) {
        self.read(offset);
        write_port32(DATA, value);
    }

    /// Lets the function decode its addresses and reach memory.
    pub fn enable(self) {
        self.write(COMMAND, self.read(COMMAND) & 0xffff | COMMAND_ALL);
    }

    /// Returns the offset of each capability with an ID.
    pub fn capabilities(self, id: u8) -> impl Iterator<Item = u8> {
        let next = |offset: u32| Some(offset as u8 & !3).filter(|offset| *offset != 0);
        let first = next(self.read(CAPABILITIES));
        core::iter::successors(first, move |at| next(self.read(*at) >> 8))
            .filter(move |at| self.read(*at) as u8 == id)
    }

    /// Returns what a base address register leads to. It lies below 4 GiB, which is all that this kernel maps.
    pub fn bar(self, index: u8) -> Space {
        const IS_PORT: u32 = 1;
        match self.read(BARS + 4 * index) {
            value if value & IS_PORT != 0 => Space::Port(value as u16 & !3),
            value => Space::Memory((value & !0xf).into()),
        }
    }
}
