//! Integer instructions with a memory operand.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::alu::{self, CF, Op, ZF};
use super::registers::{mask, sign_extend};
use super::{Cpu, Fault, Space};
use iced_x86::Register;

impl<S: Space> Cpu<'_, S> {
    /// Does the instruction; false if it is not one of these.
    pub(super) fn integer(&mut self, i: &Instruction) -> Result<bool, Fault> {
        let Some(size) = Self::size(i, 0) else {
            return Ok(false);
        };
        let flags = self.registers.state.rflags;
        let binary = match i.mnemonic() {
            Mnemonic::Add => Some(Op::Add),
            Mnemonic::Adc => Some(Op::Adc),
            Mnemonic::Sub => Some(Op::Sub),
            Mnemonic::Sbb => Some(Op::Sbb),
            Mnemonic::And => Some(Op::And),
            Mnemonic::Or => Some(Op::Or),
            Mnemonic::Xor => Some(Op::Xor),
            _ => None,
        };
        if let Some(op) = binary {
            let (Some(a), Some(b)) = (self.operand(i, 0)?, self.operand(i, 1)?) else {
                return Ok(false);
            };
            let (result, flags) = alu::binary(op, a, b, size, flags);
            return self.finish(i, result, flags);
        }
        match i.mnemonic() {
            Mnemonic::Mov | Mnemonic::Movnti => self.extend(i, |value, _| value),
            Mnemonic::Movzx => self.extend(i, |value, size| value & mask(size)),
            Mnemonic::Movsx | Mnemonic::Movsxd => self.extend(i, sign_extend),
            Mnemonic::Cmp | Mnemonic::Test => {
                let (Some(a), Some(b)) = (self.operand(i, 0)?, self.operand(i, 1)?) else {
                    return Ok(false);
                };
                let op = if i.mnemonic() == Mnemonic::Cmp {
                    Op::Sub
                } else {
                    Op::And
                };
                self.registers.state.rflags = alu::binary(op, a, b, size, flags).1;
                Ok(true)
            }
            Mnemonic::Inc | Mnemonic::Dec | Mnemonic::Not | Mnemonic::Neg => self.unary(i, size),
            Mnemonic::Xchg => {
                let (Some(a), Some(b)) = (self.operand(i, 0)?, self.operand(i, 1)?) else {
                    return Ok(false);
                };
                // Memory, which may fault, first; it is either operand.
                let memory_last = u32::from(i.op_kind(0) != OpKind::Memory);
                let values = [b, a];
                let other = 1 - memory_last;
                Ok(
                    self.set_operand(i, memory_last, values[memory_last as usize])?
                        && self.set_operand(i, other, values[other as usize])?,
                )
            }
            Mnemonic::Xadd => {
                let (Some(a), Some(b)) = (self.operand(i, 0)?, self.operand(i, 1)?) else {
                    return Ok(false);
                };
                let (sum, flags) = alu::binary(Op::Add, a, b, size, flags);
                Ok(self.finish(i, sum, flags)? && self.set_operand(i, 1, a)?)
            }
            Mnemonic::Cmpxchg => self.compare_exchange(i, size),
            Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc => self.bit(i, size),
            _ => Ok(false),
        }
    }

    /// Operand 0 = `extension` of operand 1 and its size.
    fn extend(
        &mut self,
        i: &Instruction,
        extension: impl Fn(u64, u8) -> u64,
    ) -> Result<bool, Fault> {
        let Some(value) = self.operand(i, 1)? else {
            return Ok(false);
        };
        let size = Self::size(i, 1).unwrap_or(8);
        self.set_operand(i, 0, extension(value, size))
    }

    fn finish(&mut self, i: &Instruction, result: u64, flags: u64) -> Result<bool, Fault> {
        let done = self.set_operand(i, 0, result)?;
        if done {
            self.registers.state.rflags = flags;
        }
        Ok(done)
    }

    fn unary(&mut self, i: &Instruction, size: u8) -> Result<bool, Fault> {
        let flags = self.registers.state.rflags;
        let Some(a) = self.operand(i, 0)? else {
            return Ok(false);
        };
        let (result, flags) = match i.mnemonic() {
            Mnemonic::Inc => alu::step(Op::Add, a, size, flags),
            Mnemonic::Dec => alu::step(Op::Sub, a, size, flags),
            Mnemonic::Not => (!a, flags),
            _ => alu::binary(Op::Sub, 0, a, size, flags),
        };
        self.finish(i, result, flags)
    }

    fn compare_exchange(&mut self, i: &Instruction, size: u8) -> Result<bool, Fault> {
        let accumulator = match size {
            1 => Register::AL,
            2 => Register::AX,
            4 => Register::EAX,
            _ => Register::RAX,
        };
        let (Some(old), Some(new), Some(expected)) = (
            self.operand(i, 0)?,
            self.operand(i, 1)?,
            self.registers.get(accumulator),
        ) else {
            return Ok(false);
        };
        let flags = self.registers.state.rflags;
        let (_, flags) = alu::binary(Op::Sub, expected, old, size, flags);
        if flags & ZF != 0 {
            return self.finish(i, new, flags);
        }
        // The CPU writes either way, and the old value goes to the accumulator.
        Ok(self.finish(i, old, flags)? && self.registers.set(accumulator, old))
    }

    /// Bit tests. A register as the bit's number reaches beyond the operand, signed.
    fn bit(&mut self, i: &Instruction, size: u8) -> Result<bool, Fault> {
        if i.op_kind(0) != OpKind::Memory {
            return Ok(false);
        }
        let Some(index) = self.operand(i, 1)? else {
            return Ok(false);
        };
        let bits = 8 * u64::from(size);
        let mut at = self.address(i, 0)?;
        if i.op_kind(1) == OpKind::Register {
            let index = sign_extend(index, size).cast_signed();
            let words = index.div_euclid(bits as i64);
            let bytes = words.wrapping_mul(i64::from(size));
            at = self.registers.truncate(at.wrapping_add_signed(bytes));
        }
        let bit = 1 << (index % bits);
        let value = self.load(at, size)?;
        let new = match i.mnemonic() {
            Mnemonic::Bts => value | bit,
            Mnemonic::Btr => value & !bit,
            Mnemonic::Btc => value ^ bit,
            _ => value,
        };
        if i.mnemonic() != Mnemonic::Bt {
            self.store(at, size, new)?;
        }
        let flags = &mut self.registers.state.rflags;
        *flags = *flags & !CF | if value & bit != 0 { CF } else { 0 };
        Ok(true)
    }
}
