//! Interrupt messages from ICR or an MSI to a set of virtual CPUs.

use super::Mode;

/// The effect of a message at its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Raises the vector.
    Fixed,
    /// Raises the vector at one of the targets.
    LowestPriority,
    /// Raises an NMI.
    Nmi,
    /// Resets the virtual CPU.
    Init,
    /// Starts a virtual CPU that waits for it at page `vector`.
    Startup,
}

impl Delivery {
    /// Bits 10:8 of ICR and of MSI data. SMI, ExtINT and reserved encodings have no meaning here.
    pub(super) fn from_bits(bits: u32) -> Option<Self> {
        match bits & 7 {
            0 => Some(Self::Fixed),
            1 => Some(Self::LowestPriority),
            4 => Some(Self::Nmi),
            5 => Some(Self::Init),
            6 => Some(Self::Startup),
            _ => None,
        }
    }

    /// Returns whether the message raises a vector.
    pub fn is_vector(self) -> bool {
        matches!(self, Self::Fixed | Self::LowestPriority)
    }
}

/// The target of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// The sender.
    Own,
    /// All APICs.
    All,
    /// All APICs but the sender's.
    Others,
    /// The APIC with this id.
    Physical(u32),
    /// A logical destination; `wide`: 32 bits, sent by an x2APIC.
    Logical {
        /// The destination.
        mask: u32,
        /// Whether it has 32 bits.
        wide: bool,
    },
}

/// An interrupt on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// Target.
    pub destination: Destination,
    /// Effect at the target.
    pub delivery: Delivery,
    /// Vector, or page of a SIPI.
    pub vector: u8,
    /// Whether the interrupt is level-triggered.
    pub level: bool,
}

/// The registers by which messages address an APIC, beside its id. They fit into 32 bits, so that a partition can
/// publish them in an atomic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Address(u32);

impl Address {
    const PRESENT: u32 = 1 << 8;
    const ENABLED: u32 = 1 << 9;
    const X2APIC: u32 = 1 << 10;
    const FLAT: u32 = 1 << 11;

    pub(super) fn new(mode: Mode, enabled: bool, ldr: u8, flat: bool) -> Self {
        let flag = |condition, bit| if condition { bit } else { 0 };
        Self(
            u32::from(ldr)
                | flag(mode != Mode::Disabled, Self::PRESENT)
                | flag(enabled, Self::ENABLED)
                | flag(mode == Mode::X2Apic, Self::X2APIC)
                | flag(flat, Self::FLAT),
        )
    }

    /// Returns the address as a number. 0 is an APIC that does not exist, or is disabled.
    pub const fn raw(self) -> u32 {
        self.0
    }

    /// Makes the address from the number of [`Address::raw`].
    pub const fn from_raw(raw: u32) -> Self {
        Self(raw)
    }

    fn has(self, bit: u32) -> bool {
        self.0 & bit != 0
    }

    fn matches(self, id: u8, destination: Destination) -> bool {
        match destination {
            Destination::Own | Destination::All | Destination::Others => true,
            Destination::Physical(wanted) => wanted == u32::from(id),
            Destination::Logical {
                mask: u32::MAX,
                wide: true,
            }
            | Destination::Logical {
                mask: 0xff,
                wide: false,
            } => true,
            Destination::Logical { mask, .. } if self.has(Self::X2APIC) => {
                mask >> 16 == u32::from(id >> 4) && mask & 1 << (id & 15) != 0
            }
            // An xAPIC compares 8 bits.
            Destination::Logical { mask: 0x100.., .. } => false,
            Destination::Logical { mask, .. } if self.has(Self::FLAT) => mask & self.0 & 0xff != 0,
            Destination::Logical { mask, .. } => {
                let cluster = mask >> 4;
                (cluster == 15 || cluster == self.0 >> 4 & 15) && mask & self.0 & 15 != 0
            }
        }
    }
}

impl Message {
    /// Makes the message of a write to ICR. `wide` tells that `destination` has 32 bits. Returns `None` if the write
    /// sends nothing: it de-asserts an INIT, or asks for a delivery mode that does not exist.
    pub(super) fn from_icr(low: u32, destination: u32, wide: bool) -> Option<Self> {
        let delivery = Delivery::from_bits(low >> 8)?;
        let asserted = low & 1 << 14 != 0;
        let level = low & 1 << 15 != 0;
        if delivery == Delivery::Init && level && !asserted {
            return None;
        }
        let destination = match low >> 18 & 3 {
            1 => Destination::Own,
            2 => Destination::All,
            3 => Destination::Others,
            _ => Self::destination(destination, low & 1 << 11 != 0, wide),
        };
        // SDM vol. 3 table 11-3: no processor resets or starts itself.
        let own = matches!(destination, Destination::Own | Destination::All);
        if own && matches!(delivery, Delivery::Init | Delivery::Startup) {
            return None;
        }
        // Interprocessor interrupts are edge-triggered whatever ICR says.
        Some(Self {
            destination,
            delivery,
            vector: low as u8,
            level: false,
        })
    }

    /// Makes the message of an MSI, or of an IOAPIC's line in the same form. Returns `None` if it delivers nothing here.
    pub fn from_msi(address: u64, data: u64) -> Option<Self> {
        let delivery = Delivery::from_bits(data as u32 >> 8)?;
        let logical = address & 1 << 2 != 0;
        let hint = address & 1 << 3 != 0;
        Some(Self {
            destination: Self::destination((address >> 12) as u32 & 0xff, logical, false),
            // The redirection hint asks for one of a logical set (SDM vol. 3 §11.11.1).
            delivery: match delivery {
                Delivery::Fixed if hint && logical => Delivery::LowestPriority,
                other => other,
            },
            vector: data as u8,
            level: data & 1 << 15 != 0 && delivery.is_vector(),
        })
    }

    fn destination(value: u32, logical: bool, wide: bool) -> Destination {
        match (logical, value) {
            (true, mask) => Destination::Logical { mask, wide },
            (false, u32::MAX) => Destination::All,
            (false, 0xff) if !wide => Destination::All,
            (false, id) => Destination::Physical(id),
        }
    }

    /// Returns the virtual CPUs of the set `present` that take this message from `sender`, less those whose
    /// APIC refuses it. A message of lowest priority has one target, chosen by its vector, so that interrupts
    /// spread and each one stays at its virtual CPU.
    pub fn targets(
        &self,
        sender: Option<u8>,
        present: u64,
        address: impl Fn(u8) -> Address,
    ) -> u64 {
        let mine = sender.map_or(0, |id| 1_u64.checked_shl(id.into()).unwrap_or(0));
        let candidates = match self.destination {
            Destination::Own => present & mine,
            Destination::Others => present & !mine,
            // The common case needs no look at the others.
            Destination::Physical(id) => present & 1_u64.checked_shl(id).unwrap_or(0),
            Destination::All | Destination::Logical { .. } => present,
        };
        let needed = if self.delivery.is_vector() {
            Address::ENABLED
        } else {
            Address::PRESENT
        };
        let mut targets = 0;
        let mut left = candidates;
        while left != 0 {
            let id = left.trailing_zeros() as u8;
            left &= left - 1;
            let other = address(id);
            if other.has(needed) && other.matches(id, self.destination) {
                targets |= 1 << id;
            }
        }
        if self.delivery == Delivery::LowestPriority {
            self.choose(targets)
        } else {
            targets
        }
    }

    fn choose(&self, targets: u64) -> u64 {
        let count = targets.count_ones();
        if count <= 1 {
            return targets;
        }
        let mut left = targets;
        for _ in 0..u32::from(self.vector) % count {
            left &= left - 1;
        }
        left & left.wrapping_neg()
    }
}
