//! MSI-X of a PCI function: the table, the pending bits, and the interrupts behind the vectors (PCI
//! 3.0 §6.8.2).
//!
//! Each vector is an [`Event`], which the driver of `/dev/microvisor` binds to the message in the
//! table: a signal delivers the interrupt without the worker. A masked vector is not bound. A
//! signal then stays in the event, which serves as the vector's pending bit, and is delivered when
//! the event is bound again.

use std::io;
use std::sync::Arc;

use guest_proto::driver::Msi;

use super::Effect;
use super::header::Header;
use crate::worker::event::Event;

/// ID of the capability.
const ID: u8 = 0x11;
/// Bytes of a table entry.
const ENTRY: usize = 16;
/// Bits of the message control register.
const FUNCTION_MASK: u32 = 1 << 14;
const ENABLE: u32 = 1 << 15;
/// Bit of an entry's vector control register.
const MASKED: u32 = 1;

/// Low halves of the addresses that are interrupts (APM vol. 2 §16.11).
const APIC: u32 = 0xfee0_0000;
const APIC_MASK: u32 = 0xfff0_0000;

/// A table entry: low and high half of the address, data, vector control.
type Entry = [u32; 4];

/// The MSI-X state of one function.
#[derive(Debug)]
pub struct Msix {
    entries: Vec<Entry>,
    events: Vec<Arc<Event>>,
    bound: Vec<Option<Msi>>,
    /// Offset of the message control register in configuration space.
    control: usize,
}

impl Msix {
    /// Adds the capability for `count` vectors to `header`. The table lies at offset `table` of BAR
    /// `bar`, the pending bits at offset `pending`.
    ///
    /// # Errors
    ///
    /// The process has no file descriptors left.
    pub fn new(
        header: &mut Header,
        count: u16,
        bar: u32,
        table: u32,
        pending: u32,
    ) -> io::Result<Self> {
        let mut body = Vec::from((count - 1).to_le_bytes());
        body.extend((table | bar).to_le_bytes());
        body.extend((pending | bar).to_le_bytes());
        let control = header.add_capability(ID, &body, &[0, 0xc0]);
        let count = usize::from(count);
        let event = |_| Event::new().map(Arc::new);
        Ok(Self {
            entries: vec![[0, 0, 0, MASKED]; count],
            events: (0..count).map(event).collect::<io::Result<_>>()?,
            bound: vec![None; count],
            control,
        })
    }

    /// Returns whether the function uses MSI-X instead of its pin.
    pub fn is_enabled(&self, header: &Header) -> bool {
        header.read(self.control, 2) & ENABLE != 0
    }

    /// Returns the number of vectors.
    pub fn vectors(&self) -> u16 {
        self.events.len() as u16
    }

    /// Returns the event of a vector.
    pub fn event(&self, vector: u16) -> Option<&Arc<Event>> {
        self.events.get(usize::from(vector))
    }

    /// Disables MSI-X and unbinds all vectors.
    pub fn disable(&mut self, header: &mut Header, effects: &mut Vec<Effect>) {
        header.write(self.control, 2, 0);
        self.update(header, effects);
    }

    /// Reads the table at offset `at`.
    pub fn read(&self, at: u32, size: u8) -> u64 {
        let word = |at: usize| {
            let entry = self.entries.get(at / ENTRY)?;
            Some(u64::from(entry[at % ENTRY / 4]))
        };
        let at = at as usize;
        match size {
            4 if at.is_multiple_of(4) => word(at).unwrap_or(0),
            8 if at.is_multiple_of(8) => word(at).unwrap_or(0) | word(at + 4).unwrap_or(0) << 32,
            // Other accesses are undefined (§6.8.2).
            _ => 0,
        }
    }

    /// Reads the pending bits at offset `at`.
    pub fn read_pending(&self, at: u32, size: u8) -> u64 {
        let first = at as usize * 8;
        (0..usize::from(size) * 8).fold(0, |bits, i| {
            let is_pending = self.bound.get(first + i).is_some_and(Option::is_none)
                && self.events.get(first + i).is_some_and(|e| e.is_signalled());
            bits | u64::from(is_pending) << i
        })
    }

    /// Writes the table at offset `at`.
    pub fn write(
        &mut self,
        header: &Header,
        at: u32,
        size: u8,
        value: u64,
        effects: &mut Vec<Effect>,
    ) {
        let at = at as usize;
        match size {
            4 if at.is_multiple_of(4) => self.put(at, value as u32),
            8 if at.is_multiple_of(8) => {
                self.put(at, value as u32);
                self.put(at + 4, (value >> 32) as u32);
            }
            _ => {}
        }
        self.bind(header, at / ENTRY, effects);
    }

    fn put(&mut self, at: usize, value: u32) {
        if let Some(entry) = self.entries.get_mut(at / ENTRY) {
            entry[at % ENTRY / 4] = value;
        }
    }

    /// Follows the message control register, which may have been written.
    pub fn update(&mut self, header: &Header, effects: &mut Vec<Effect>) {
        for vector in 0..self.entries.len() {
            self.bind(header, vector, effects);
        }
    }

    /// Binds a vector to its message, or unbinds it while it is masked or its message is no
    /// interrupt.
    fn bind(&mut self, header: &Header, vector: usize, effects: &mut Vec<Effect>) {
        let control = header.read(self.control, 2);
        let (Some(entry), Some(bound), Some(event)) = (
            self.entries.get(vector),
            self.bound.get_mut(vector),
            self.events.get(vector),
        ) else {
            return;
        };
        let [low, high, data, mask] = *entry;
        let delivers = control & (ENABLE | FUNCTION_MASK) == ENABLE && mask & MASKED == 0;
        let is_interrupt = low & APIC_MASK == APIC && high == 0;
        let wanted = (delivers && is_interrupt).then(|| Msi {
            address: u64::from(low),
            data: u64::from(data),
        });
        if wanted == *bound {
            return;
        }
        *bound = wanted;
        let event = Arc::clone(event);
        effects.push(match wanted {
            Some(msi) => Effect::BindInterrupt(event, msi),
            None => Effect::UnbindInterrupt(event),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::header::Identity;
    use super::*;

    fn msix() -> (Header, Msix) {
        let mut header = Header::new(Identity {
            device: (1, 2),
            subsystem: (0, 0),
            class: [0; 3],
            revision: 0,
        });
        let msix = Msix::new(&mut header, 2, 0, 0x3000, 0x3800).unwrap();
        (header, msix)
    }

    /// The vectors that were bound and unbound, with their message's data.
    fn taken(msix: &Msix, effects: &mut Vec<Effect>) -> Vec<(usize, Option<u64>)> {
        let index = |event: &Arc<Event>| {
            let same = |other: &Arc<Event>| Arc::ptr_eq(other, event);
            msix.events.iter().position(same).unwrap()
        };
        let taken = effects.drain(..).map(|effect| match effect {
            Effect::BindInterrupt(event, msi) => (index(&event), Some(msi.data)),
            Effect::UnbindInterrupt(event) => (index(&event), None),
            other => panic!("{other:?}"),
        });
        taken.collect()
    }

    fn enable(header: &mut Header, msix: &mut Msix, control: u32, effects: &mut Vec<Effect>) {
        header.write(msix.control, 2, control);
        msix.update(header, effects);
    }

    #[test]
    fn a_vector_is_bound_while_nothing_masks_it() {
        let (mut header, mut msix) = msix();
        let mut effects = Vec::new();
        for (at, value) in [(16, 0xfee0_1000), (20, 0), (24, 0x31), (28, 0)] {
            msix.write(&header, at, 4, value, &mut effects);
        }
        assert_eq!(taken(&msix, &mut effects), [], "MSI-X is not enabled");
        enable(&mut header, &mut msix, ENABLE, &mut effects);
        assert_eq!(taken(&msix, &mut effects), [(1, Some(0x31))]);
        msix.write(&header, 24, 4, 0x32, &mut effects);
        assert_eq!(taken(&msix, &mut effects), [(1, Some(0x32))]);
        enable(&mut header, &mut msix, ENABLE | FUNCTION_MASK, &mut effects);
        assert_eq!(taken(&msix, &mut effects), [(1, None)]);
        enable(&mut header, &mut msix, ENABLE, &mut effects);
        assert_eq!(taken(&msix, &mut effects), [(1, Some(0x32))]);
        msix.write(&header, 28, 4, 1, &mut effects);
        assert_eq!(taken(&msix, &mut effects), [(1, None)]);
        msix.write(&header, 28, 4, 0, &mut effects);
        msix.write(&header, 16, 4, 0x1000, &mut effects);
        let bound = [(1, Some(0x32)), (1, None)];
        assert_eq!(taken(&msix, &mut effects), bound, "a message to RAM");
    }

    #[test]
    fn a_masked_vector_that_is_signalled_is_pending() {
        let (_, msix) = msix();
        assert_eq!(msix.read_pending(0, 8), 0);
        msix.events[1].signal();
        assert_eq!(msix.read_pending(0, 8), 2);
        assert_eq!(msix.read_pending(8, 8), 0);
    }

    #[test]
    fn the_table_is_read_as_written_and_ends() {
        let (header, mut msix) = msix();
        let mut effects = Vec::new();
        msix.write(&header, 0, 8, 0x1_2345_6789, &mut effects);
        assert_eq!((msix.read(0, 4), msix.read(4, 4)), (0x2345_6789, 1));
        assert_eq!(msix.read(0, 8), 0x1_2345_6789);
        assert_eq!(msix.read(12, 4), 1, "masked after a reset");
        msix.write(&header, 32, 4, 7, &mut effects);
        assert_eq!(msix.read(32, 4), 0);
        msix.write(&header, 2, 4, 7, &mut effects);
        assert_eq!(msix.read(0, 8), 0x1_2345_6789);
    }
}
