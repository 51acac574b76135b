//! Accesses to where no device is: mistakes of the guest, or its search for devices.

use std::fmt;

/// Places that are reported; each once, so that a guest can't fill the log.
const MAX_PLACES: usize = 32;

/// Ports at which every PC kernel looks for what PCs had: DMA, 8259, 8254, 8042, POST codes, the
/// other serial ports, PCI.
const EXPECTED: &[std::ops::RangeInclusive<u64>] = &[
    0x00..=0x1f,
    0x20..=0x21,
    0x40..=0x43,
    0x60..=0x61,
    0x64..=0x64,
    0x80..=0x8f,
    0xa0..=0xa1,
    0xc0..=0xdf,
    0xed..=0xed,
    0x2e8..=0x2ef,
    0x2f8..=0x2ff,
    0x3e8..=0x3ef,
    0x4d0..=0x4d1,
    0xcf8..=0xcff,
];

/// An access to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stray {
    /// Of ports, not memory.
    pub(super) port: bool,
    pub(super) address: u64,
    pub(super) write: bool,
}

impl fmt::Display for Stray {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let space = if self.port { "port" } else { "address" };
        let access = if self.write { "write to" } else { "read of" };
        write!(
            f,
            "{access} {space} {:#x}, where no device is",
            self.address
        )
    }
}

/// Those of one VM.
#[derive(Debug, Default)]
pub(super) struct Strays {
    seen: Vec<Stray>,
    fresh: Vec<Stray>,
    pub(super) count: u64,
}

impl Strays {
    pub(super) fn note(&mut self, stray: Stray) {
        self.count += 1;
        let expected = stray.port && EXPECTED.iter().any(|ports| ports.contains(&stray.address));
        if !expected && self.seen.len() < MAX_PLACES && !self.seen.contains(&stray) {
            self.seen.push(stray);
            self.fresh.push(stray);
        }
    }

    /// Whether none waits to be taken.
    pub(super) fn is_settled(&self) -> bool {
        self.fresh.is_empty()
    }

    pub(super) fn take(&mut self) -> Vec<Stray> {
        std::mem::take(&mut self.fresh)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_place_is_reported_once_and_not_too_many() {
        let mut strays = Strays::default();
        let stray = |address| Stray {
            port: true,
            address,
            write: false,
        };
        strays.note(stray(0x1234));
        strays.note(stray(0x1234));
        strays.note(stray(0x80));
        let text: Vec<_> = strays.take().iter().map(ToString::to_string).collect();
        assert_eq!(text, ["read of port 0x1234, where no device is"]);
        for address in 0x2000..0x3000 {
            strays.note(stray(address));
        }
        assert_eq!(strays.take().len(), MAX_PLACES - 1);
        assert_eq!(strays.count, 3 + 0x1000);
    }
}
