//! Instructions that were decoded before: the drivers of a guest reach their devices by few instructions, again and
//! again.

use iced_x86::{Decoder, DecoderError, DecoderOptions, Instruction};

use super::MAX_LENGTH;
use super::plain::Plain;

/// Instructions that are kept, each at a place that its address gives.
const KEPT: usize = 16;

/// The instructions that one virtual CPU's emulation has decoded lately.
#[derive(Debug, Default)]
pub struct Decoded([Entry; KEPT]);

/// An instruction, and all that decoding depends on. The default is none: no code has 0 bits.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Entry {
    bits: u32,
    rip: u64,
    bytes: [u8; MAX_LENGTH],
    /// The number of bytes that could be had. The others are zeros, and may be others the next time.
    length: usize,
    pub(super) instruction: Instruction,
    /// The instruction as a plain move, if it is one.
    pub(super) plain: Option<Plain>,
}

impl Decoded {
    /// Decodes the first `length` of `bytes`, which are at `rip` in code of `bits` bits.
    ///
    /// # Errors
    ///
    /// The decoder's.
    pub(super) fn decode(
        &mut self,
        bits: u32,
        rip: u64,
        bytes: &[u8; MAX_LENGTH],
        length: usize,
    ) -> Result<&Entry, DecoderError> {
        let place = &mut self.0[(rip ^ rip >> 4) as usize % KEPT];
        let known = (place.bits, place.rip, place.length, &place.bytes);
        if known != (bits, rip, length, bytes) {
            *place = Entry::decode(bits, rip, bytes, length)?;
        }
        Ok(place)
    }
}

impl Entry {
    fn decode(
        bits: u32,
        rip: u64,
        bytes: &[u8; MAX_LENGTH],
        length: usize,
    ) -> Result<Self, DecoderError> {
        let mut decoder = Decoder::with_ip(bits, &bytes[..length], rip, DecoderOptions::NONE);
        let instruction = decoder.decode();
        match decoder.last_error() {
            DecoderError::None => Ok(Self {
                bits,
                rip,
                bytes: *bytes,
                length,
                instruction,
                plain: Plain::of(&instruction, bits),
            }),
            error => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::Mnemonic;

    #[test]
    fn other_bytes_bits_or_addresses_are_other_instructions() {
        let mut decoded = Decoded::default();
        let mut decode = |bits, rip, first: &[u8], length| {
            let mut bytes = [0x90; MAX_LENGTH];
            bytes[..first.len()].copy_from_slice(first);
            let instruction = decoded.decode(bits, rip, &bytes, length)?.instruction;
            Ok((instruction.mnemonic(), instruction.next_ip()))
        };
        for _ in 0..2 {
            assert_eq!(
                decode(64, 0x1000, &[0x8b, 0x03], 15),
                Ok((Mnemonic::Mov, 0x1002))
            );
            assert_eq!(
                decode(64, 0x1000, &[0x0b, 0x03], 15),
                Ok((Mnemonic::Or, 0x1002))
            );
            // Of the same place: 0x48 is a prefix in 64-bit code alone.
            assert_eq!(
                decode(64, 0x1100, &[0x48, 0x8b, 0x03], 15),
                Ok((Mnemonic::Mov, 0x1103))
            );
            assert_eq!(
                decode(32, 0x1100, &[0x48, 0x8b, 0x03], 15),
                Ok((Mnemonic::Dec, 0x1101))
            );
            assert_eq!(
                decode(64, 0x1000, &[0x8b], 1),
                Err(DecoderError::NoMoreBytes)
            );
        }
    }
}
