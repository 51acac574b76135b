//! Moves between memory and XMM registers, in SSE's encoding.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::{Cpu, Fault, Space};

/// The part of a register that an instruction moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// All of it, from or to any address.
    All,
    /// All of it, at an address that is a multiple of 16.
    Aligned,
    /// So many bytes from the lower end on; a load clears the rest.
    First(u8),
    /// The lower half; a load keeps the other one.
    Lower,
    /// The upper half; a load keeps the other one.
    Upper,
}

impl Part {
    fn of(mnemonic: Mnemonic) -> Option<Self> {
        Some(match mnemonic {
            Mnemonic::Movdqu | Mnemonic::Movups | Mnemonic::Movupd | Mnemonic::Lddqu => Self::All,
            Mnemonic::Movdqa
            | Mnemonic::Movaps
            | Mnemonic::Movapd
            | Mnemonic::Movntdq
            | Mnemonic::Movntps
            | Mnemonic::Movntpd
            | Mnemonic::Movntdqa => Self::Aligned,
            Mnemonic::Movd | Mnemonic::Movss => Self::First(4),
            Mnemonic::Movq | Mnemonic::Movsd => Self::First(8),
            Mnemonic::Movlps | Mnemonic::Movlpd => Self::Lower,
            Mnemonic::Movhps | Mnemonic::Movhpd => Self::Upper,
            _ => return None,
        })
    }

    fn size(self) -> u8 {
        match self {
            Self::All | Self::Aligned => 16,
            Self::First(size) => size,
            Self::Lower | Self::Upper => 8,
        }
    }

    /// The part of a register's value that is stored.
    fn take(self, value: u128) -> u128 {
        if self == Self::Upper {
            value >> 64
        } else {
            value
        }
    }

    /// The register's value after a load of `loaded`.
    fn put(self, old: u128, loaded: u128) -> u128 {
        const LOWER: u128 = u64::MAX as u128;
        match self {
            Self::All | Self::Aligned | Self::First(_) => loaded,
            Self::Lower => old & !LOWER | loaded,
            Self::Upper => old & LOWER | loaded << 64,
        }
    }
}

impl<S: Space> Cpu<'_, S> {
    /// Does the instruction; false if it is not one of these.
    pub(super) fn vector(&mut self, i: &Instruction) -> Result<bool, Fault> {
        let is_store = i.op_kind(0) == OpKind::Memory;
        let (memory, register) = if is_store { (0, 1) } else { (1, 0) };
        let (Some(part), OpKind::Memory, OpKind::Register) = (
            Part::of(i.mnemonic()),
            i.op_kind(memory),
            i.op_kind(register),
        ) else {
            return Ok(false);
        };
        let Some(number) = number_of(i.op_register(register)) else {
            return Ok(false);
        };
        if !self.may_use_vectors() {
            return Err(Fault::Changed);
        }
        let at = self.address(i, memory)?;
        if part == Part::Aligned && at % 16 != 0 {
            return Err(Fault::Protection);
        }
        let Some(mut vectors) = self.space.vectors() else {
            return Ok(false);
        };
        let value = &mut vectors[number];
        if is_store {
            self.store_wide(at, part.size(), part.take(*value))?;
        } else {
            *value = part.put(*value, self.load_wide(at, part.size())?);
            self.space.set_vectors(&vectors);
        }
        Ok(true)
    }

    /// Whether the CPU gives the program these registers. It has checked that before it stopped.
    fn may_use_vectors(&self) -> bool {
        const EMULATED_OR_SWITCHED: u64 = 1 << 2 | 1 << 3;
        const OSFXSR: u64 = 1 << 9;
        let state = &self.registers.state;
        state.cr0 & EMULATED_OR_SWITCHED == 0 && state.cr4 & OSFXSR != 0
    }
}

fn number_of(register: Register) -> Option<usize> {
    (register.is_xmm() && register.number() < 16).then_some(register.number())
}
