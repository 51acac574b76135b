//! Plain moves between memory and a register: what drivers use for the registers of their devices. The CPU has translated and
//! checked the only address of such a move when it stopped there, so emulation needs neither the address nor page tables.

use guest_proto::vcpu_page::ExecutionState;
use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::registers::mask;
use super::{Cpu, OFFSET, Space};

/// A MOV between memory and a general register, or of a constant to memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plain {
    size: u8,
    other: Other,
    /// Indices of the registers that the address is the sum of, with a shift for each.
    terms: [Option<(u8, u8)>; 2],
    /// Index of the segment whose base the address has.
    segment: Option<u8>,
    displacement: u64,
}

/// The operand beside memory.
#[derive(Clone, Copy, Debug)]
enum Other {
    Load(Register),
    Store(Register),
    Constant(u64),
}

impl Plain {
    /// Returns what an instruction of `bits`-bit code does, if it is a plain move.
    pub(super) fn of(instruction: &Instruction, bits: u32) -> Option<Self> {
        if instruction.mnemonic() != Mnemonic::Mov {
            return None;
        }
        let memory = u32::from(instruction.op_kind(0) != OpKind::Memory);
        let size = instruction.memory_size().size() as u8;
        if instruction.op_kind(memory) != OpKind::Memory || !matches!(size, 1 | 2 | 4 | 8) {
            return None;
        }
        let register = instruction.op_register(1 - memory);
        let other = match instruction.op_kind(1 - memory) {
            OpKind::Register if !register.is_gpr() => return None,
            OpKind::Register if memory == 1 => Other::Load(register),
            OpKind::Register => Other::Store(register),
            _ => Other::Constant(instruction.try_immediate(1).ok()? & mask(size)),
        };
        let term = |register: Register, scale: u32| {
            let number = register.full_register().number() as u8;
            register.is_gpr().then_some((number, scale.ilog2() as u8))
        };
        let segment = instruction.memory_segment();
        let has_base = bits != 64 || matches!(segment, Register::FS | Register::GS);
        Some(Self {
            size,
            other,
            // The displacement of an address relative to the instruction is the whole address.
            terms: [
                term(instruction.memory_base(), 1),
                term(instruction.memory_index(), instruction.memory_index_scale()),
            ],
            segment: has_base.then(|| segment.number() as u8),
            displacement: instruction.memory_displacement64(),
        })
    }

    fn is_write(&self) -> bool {
        !matches!(self.other, Other::Load(_))
    }

    /// Returns the address's offset in its page, which no mode and no size of addresses changes.
    pub(super) fn offset(&self, state: &ExecutionState) -> u64 {
        let base = self
            .segment
            .map_or(0, |number| state.segment[usize::from(number)].base);
        let terms = self.terms.iter().flatten();
        let sum = terms.fold(self.displacement, |sum, &(number, shift)| {
            sum.wrapping_add(state.gpr[usize::from(number)] << shift)
        });
        sum.wrapping_add(base) & OFFSET
    }
}

impl<S: Space> Cpu<'_, S> {
    /// Does a plain move, if it is the access at which the CPU stopped, in one page. Returns false otherwise.
    pub(super) fn plain(&mut self, plain: &Plain) -> bool {
        let offset = plain.offset(self.registers.state);
        if offset + u64::from(plain.size) > OFFSET + 1 {
            return false;
        }
        let Some(gpa) = self.checked(offset, plain.is_write()) else {
            return false;
        };
        let value = match plain.other {
            Other::Load(register) => {
                let value = self.space.read_device(gpa, plain.size);
                return self.registers.set(register, value);
            }
            Other::Store(register) => self.registers.get(register).unwrap_or_default(),
            Other::Constant(value) => value,
        };
        self.space.write_device(gpa, plain.size, value);
        true
    }
}
