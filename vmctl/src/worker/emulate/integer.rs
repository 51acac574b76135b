//! Integer instructions with a memory operand.

use iced_x86::{ConditionCode, FlowControl, Instruction, Mnemonic, OpKind, Register};

use super::alu::{self, CF, Op, Shift, ZF};
use super::registers::{accumulator, mask, sign_extend, upper_accumulator};
use super::{Cpu, Fault, Space};

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
            Mnemonic::Movbe => self.extend(i, |value, size| {
                value.swap_bytes() >> (64 - 8 * u32::from(size))
            }),
            Mnemonic::Bsf
            | Mnemonic::Bsr
            | Mnemonic::Tzcnt
            | Mnemonic::Lzcnt
            | Mnemonic::Popcnt => self.count(i, size),
            Mnemonic::Imul if i.op_count() > 1 => self.multiply(i, size),
            Mnemonic::Imul | Mnemonic::Mul | Mnemonic::Idiv | Mnemonic::Div => {
                self.multiply_accumulator(i, size)
            }
            Mnemonic::Shld | Mnemonic::Shrd => self.double_shift(i, size),
            Mnemonic::Smsw | Mnemonic::Sldt | Mnemonic::Str => self.system_word(i),
            _ => match (shift_of(i.mnemonic()), i.condition_code()) {
                (Some(shift), _) => self.shift(i, shift, size),
                (None, ConditionCode::None) => Ok(false),
                (None, condition) => self.conditional(i, condition),
            },
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
        let accumulator = accumulator(size);
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

    /// Finds or counts bits.
    fn count(&mut self, i: &Instruction, size: u8) -> Result<bool, Fault> {
        let Some(source) = self.operand(i, 1)? else {
            return Ok(false);
        };
        let flags = self.registers.state.rflags;
        let (result, flags) = alu::count(i.mnemonic(), source, size, flags);
        self.registers.state.rflags = flags;
        result.map_or(Ok(true), |result| self.set_operand(i, 0, result))
    }

    /// IMUL with two or three operands.
    fn multiply(&mut self, i: &Instruction, size: u8) -> Result<bool, Fault> {
        let last = i.op_count() - 1;
        let (Some(a), Some(b)) = (self.operand(i, last - 1)?, self.operand(i, last)?) else {
            return Ok(false);
        };
        let flags = self.registers.state.rflags;
        let (low, _, flags) = alu::multiply(true, a, b, size, flags);
        self.finish(i, low, flags)
    }

    /// Multiplication of the accumulator, and division of it with its upper half.
    fn multiply_accumulator(&mut self, i: &Instruction, size: u8) -> Result<bool, Fault> {
        let (lower, upper) = (accumulator(size), upper_accumulator(size));
        let (Some(operand), Some(low), Some(high)) = (
            self.operand(i, 0)?,
            self.registers.get(lower),
            self.registers.get(upper),
        ) else {
            return Ok(false);
        };
        let is_signed = matches!(i.mnemonic(), Mnemonic::Imul | Mnemonic::Idiv);
        let (low, high) = if matches!(i.mnemonic(), Mnemonic::Imul | Mnemonic::Mul) {
            let flags = self.registers.state.rflags;
            let (low, high, flags) = alu::multiply(is_signed, low, operand, size, flags);
            self.registers.state.rflags = flags;
            (low, high)
        } else {
            alu::divide(is_signed, [low, high], operand, size).ok_or(Fault::Divide)?
        };
        Ok(self.registers.set(lower, low) && self.registers.set(upper, high))
    }

    fn shift(&mut self, i: &Instruction, shift: Shift, size: u8) -> Result<bool, Fault> {
        let (Some(a), Some(count)) = (self.operand(i, 0)?, self.operand(i, 1)?) else {
            return Ok(false);
        };
        let flags = self.registers.state.rflags;
        let (result, flags) = alu::shift(shift, a, count, size, flags);
        self.finish(i, result, flags)
    }

    fn double_shift(&mut self, i: &Instruction, size: u8) -> Result<bool, Fault> {
        let (Some(a), Some(b), Some(count)) = (
            self.operand(i, 0)?,
            self.operand(i, 1)?,
            self.operand(i, 2)?,
        ) else {
            return Ok(false);
        };
        let flags = self.registers.state.rflags;
        let is_left = i.mnemonic() == Mnemonic::Shld;
        let (result, flags) = alu::double_shift(is_left, a, b, count, size, flags);
        self.finish(i, result, flags)
    }

    /// A word that says how the CPU is set up. With UMIP no program may read it.
    fn system_word(&mut self, i: &Instruction) -> Result<bool, Fault> {
        const UMIP: u64 = 1 << 11;
        let state = &self.registers.state;
        let word = match i.mnemonic() {
            Mnemonic::Smsw => state.cr0 & 0xffff,
            Mnemonic::Sldt => state.ldtr.selector.into(),
            _ => state.tr.selector.into(),
        };
        if state.cr4 & UMIP != 0 && self.registers.privilege() != 0 {
            return Err(Fault::Protection);
        }
        self.set_operand(i, 0, word)
    }

    /// SETcc and CMOVcc.
    fn conditional(&mut self, i: &Instruction, condition: ConditionCode) -> Result<bool, Fault> {
        let holds = alu::holds(condition, self.registers.state.rflags);
        match i.op_count() {
            1 if i.flow_control() == FlowControl::Next => self.set_operand(i, 0, holds.into()),
            2 => {
                // The CPU reads the source in any case, and clears the upper half of a 32-bit register.
                let (Some(old), Some(new)) = (self.operand(i, 0)?, self.operand(i, 1)?) else {
                    return Ok(false);
                };
                self.set_operand(i, 0, if holds { new } else { old })
            }
            _ => Ok(false),
        }
    }

    /// CMPXCHG8B and CMPXCHG16B; false if it is neither.
    pub(super) fn wide_exchange(&mut self, i: &Instruction) -> Result<bool, Fault> {
        let half: u8 = match i.mnemonic() {
            Mnemonic::Cmpxchg8b => 4,
            Mnemonic::Cmpxchg16b => 8,
            _ => return Ok(false),
        };
        let at = self.address(i, 0)?;
        if half == 8 && at % 16 != 0 {
            return Err(Fault::Protection);
        }
        let (low, high) = (accumulator(half), upper_accumulator(half));
        let [new_low, new_high] = match half {
            4 => [Register::EBX, Register::ECX],
            _ => [Register::RBX, Register::RCX],
        };
        let bits = 8 * u32::from(half);
        let pair = |low, high| {
            let word = |register| self.registers.get(register).map(u128::from);
            Some(word(low)? | word(high)? << bits)
        };
        let (Some(expected), Some(new)) = (pair(low, high), pair(new_low, new_high)) else {
            return Ok(false);
        };
        let old = self.load_wide(at, 2 * half)?;
        let is_equal = old == expected;
        // The CPU writes either way.
        self.store_wide(at, 2 * half, if is_equal { new } else { old })?;
        let flags = &mut self.registers.state.rflags;
        *flags = *flags & !ZF | if is_equal { ZF } else { 0 };
        if is_equal {
            return Ok(true);
        }
        let (old_low, old_high) = (old as u64, (old >> bits) as u64);
        Ok(self.registers.set(low, old_low) && self.registers.set(high, old_high))
    }
}

fn shift_of(mnemonic: Mnemonic) -> Option<Shift> {
    Some(match mnemonic {
        Mnemonic::Shl | Mnemonic::Sal => Shift::Left,
        Mnemonic::Shr => Shift::Right,
        Mnemonic::Sar => Shift::Arithmetic,
        Mnemonic::Rol => Shift::RotateLeft,
        Mnemonic::Ror => Shift::RotateRight,
        Mnemonic::Rcl => Shift::CarryLeft,
        Mnemonic::Rcr => Shift::CarryRight,
        _ => return None,
    })
}
