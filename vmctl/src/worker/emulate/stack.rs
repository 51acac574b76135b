//! PUSH and POP, of which the operand or the stack is a device's memory.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::{Cpu, Fault, Space};

/// Index of RSP.
const RSP: usize = 4;

impl<S: Space> Cpu<'_, S> {
    /// Does the instruction; false if it is neither, or is POP of a segment register.
    pub(super) fn stack(&mut self, i: &Instruction) -> Result<bool, Fault> {
        let is_push = match i.mnemonic() {
            Mnemonic::Push => true,
            Mnemonic::Pop => false,
            _ => return Ok(false),
        };
        let change = i.stack_pointer_increment();
        let size = change.unsigned_abs() as u8;
        let mask = self.registers.stack_mask();
        let old = self.registers.state.gpr[RSP];
        let new = old & !mask | old.wrapping_add_signed(change.into()) & mask;
        if is_push {
            let Some(value) = self.operand(i, 0)? else {
                return Ok(false);
            };
            let to = self.registers.linear_stack(new & mask);
            self.store(to, size, value)?;
            self.registers.state.gpr[RSP] = new;
            return Ok(true);
        }
        let is_segment = i.op_kind(0) == OpKind::Register && i.op_register(0).is_segment_register();
        if is_segment {
            return Ok(false);
        }
        let from = self.registers.linear_stack(old & mask);
        let value = self.load(from, size)?;
        // An operand that is addressed by the stack pointer is addressed by the new one.
        self.registers.state.gpr[RSP] = new;
        let done = self.set_operand(i, 0, value);
        if !matches!(done, Ok(true)) {
            self.registers.state.gpr[RSP] = old;
        }
        done
    }
}
