//! String instructions, on memory and ports.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::alu::{self, Op, ZF};
use super::paging::Access;
use super::registers::accumulator;
use super::{Cause, Cpu, Fault, Space};

/// Elements that one call does; the guest comes back for the rest, with interrupts in between.
const BATCH: usize = 1024;
/// Direction flag: downwards.
const DF: u64 = 1 << 10;

/// The progress of a string instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// The instruction is over.
    Done,
    /// The instruction is to be executed again from the registers as they are.
    Again,
}

/// Index and count registers of an address size.
struct Indices {
    source: Register,
    destination: Register,
    count: Register,
}

impl Indices {
    fn of(i: &Instruction) -> Option<Self> {
        let kinds = (0..i.op_count()).map(|n| i.op_kind(n));
        for kind in kinds {
            let registers = match kind {
                OpKind::MemorySegSI | OpKind::MemoryESDI => {
                    (Register::SI, Register::DI, Register::CX)
                }
                OpKind::MemorySegESI | OpKind::MemoryESEDI => {
                    (Register::ESI, Register::EDI, Register::ECX)
                }
                OpKind::MemorySegRSI | OpKind::MemoryESRDI => {
                    (Register::RSI, Register::RDI, Register::RCX)
                }
                _ => continue,
            };
            let (source, destination, count) = registers;
            return Some(Self {
                source,
                destination,
                count,
            });
        }
        None
    }
}

impl<S: Space> Cpu<'_, S> {
    /// Does the instruction; `None` if it is not one of these.
    pub(super) fn string(&mut self, i: &Instruction) -> Result<Option<Progress>, Fault> {
        let Some(indices) = Indices::of(i) else {
            return Ok(None);
        };
        let size = i.memory_size().size();
        if !matches!(size, 1 | 2 | 4 | 8) {
            return Ok(None);
        }
        let size = size as u8;
        let repeated = i.has_rep_prefix() || i.has_repne_prefix();
        for _ in 0..BATCH {
            if repeated && self.registers.get(indices.count) == Some(0) {
                return Ok(Some(Progress::Done));
            }
            if !self.element(i, size)? {
                return Ok(None);
            }
            self.step(i, &indices, size);
            if !repeated {
                return Ok(Some(Progress::Done));
            }
            let left = self
                .registers
                .get(indices.count)
                .unwrap_or(0)
                .wrapping_sub(1);
            self.registers.set(indices.count, left);
            if compares(i) {
                let equal = self.registers.state.rflags & ZF != 0;
                if equal == i.has_repne_prefix() {
                    return Ok(Some(Progress::Done));
                }
            }
        }
        let over = self.registers.get(indices.count) == Some(0);
        Ok(Some(if over {
            Progress::Done
        } else {
            Progress::Again
        }))
    }

    /// Moves one element; false if the instruction is not known.
    fn element(&mut self, i: &Instruction, size: u8) -> Result<bool, Fault> {
        let accumulator = accumulator(size);
        let port = self.registers.state.gpr[2] as u16;
        match i.mnemonic() {
            Mnemonic::Movsb | Mnemonic::Movsw | Mnemonic::Movsd | Mnemonic::Movsq => {
                let (to, from) = (self.address(i, 0)?, self.address(i, 1)?);
                let value = self.load(from, size)?;
                self.store(to, size, value)?;
            }
            Mnemonic::Stosb | Mnemonic::Stosw | Mnemonic::Stosd | Mnemonic::Stosq => {
                let to = self.address(i, 0)?;
                let value = self.registers.get(accumulator).unwrap_or(0);
                self.store(to, size, value)?;
            }
            Mnemonic::Lodsb | Mnemonic::Lodsw | Mnemonic::Lodsd | Mnemonic::Lodsq => {
                let from = self.address(i, 1)?;
                let value = self.load(from, size)?;
                self.registers.set(accumulator, value);
            }
            Mnemonic::Cmpsb | Mnemonic::Cmpsw | Mnemonic::Cmpsd | Mnemonic::Cmpsq => {
                let (first, second) = (self.address(i, 0)?, self.address(i, 1)?);
                let (a, b) = (self.load(first, size)?, self.load(second, size)?);
                self.compare(a, b, size);
            }
            Mnemonic::Scasb | Mnemonic::Scasw | Mnemonic::Scasd | Mnemonic::Scasq => {
                let at = self.address(i, 1)?;
                let b = self.load(at, size)?;
                let a = self.registers.get(accumulator).unwrap_or(0);
                self.compare(a, b, size);
            }
            Mnemonic::Insb | Mnemonic::Insw | Mnemonic::Insd => {
                self.reach_port(port, size, false)?;
                let to = self.address(i, 0)?;
                let value = self.space.read_port(port, size);
                self.store(to, size, value)?;
            }
            Mnemonic::Outsb | Mnemonic::Outsw | Mnemonic::Outsd => {
                self.reach_port(port, size, true)?;
                let from = self.address(i, 1)?;
                let value = self.load(from, size)?;
                self.space.write_port(port, size, value);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Checks an access to a port: it is the one that made the CPU stop, or one more of the same instruction; and
    /// the program may make it (APM vol. 2 §12.2.4 for the map, vol. 3 "INS" for when it counts).
    fn reach_port(&mut self, port: u16, size: u8, is_write: bool) -> Result<(), Fault> {
        match self.cause.take() {
            None => {}
            Some(cause)
                if cause
                    == (Cause::Port {
                        port,
                        size,
                        is_write,
                    }) => {}
            Some(_) => return Err(Fault::Changed),
        }
        if self.registers.may_use_ports() {
            return Ok(());
        }
        const AVAILABLE_32: u16 = 0x9;
        const BUSY_32: u16 = 0xb;
        /// Offset in a task state segment of the offset of its map of ports.
        const MAP: u64 = 102;
        let task = self.registers.state.tr;
        let limit = u64::from(task.limit);
        let is_wide = matches!(task.attributes & 0xf, AVAILABLE_32 | BUSY_32);
        if !is_wide || limit < MAP + 1 {
            return Err(Fault::Protection);
        }
        let pair = |cpu: &mut Self, at: u64| {
            let mut word = [0; 2];
            for (n, byte) in (0..).zip(&mut word) {
                let linear = cpu.registers.truncate(task.base.wrapping_add(at + n));
                cpu.read_linear(linear, core::slice::from_mut(byte), Access::SYSTEM)?;
            }
            Ok::<_, Fault>(u16::from_le_bytes(word))
        };
        let map = pair(self, MAP)?;
        // The CPU reads two bytes of the map always.
        let at = u64::from(map) + u64::from(port / 8);
        if at + 1 > limit {
            return Err(Fault::Protection);
        }
        let bits = pair(self, at)? >> (port % 8);
        match bits & ((1 << size) - 1) {
            0 => Ok(()),
            _ => Err(Fault::Protection),
        }
    }

    fn compare(&mut self, a: u64, b: u64, size: u8) {
        let flags = self.registers.state.rflags;
        self.registers.state.rflags = alu::binary(Op::Sub, a, b, size, flags).1;
    }

    /// Moves the index registers that the instruction uses.
    fn step(&mut self, i: &Instruction, indices: &Indices, size: u8) {
        let down = self.registers.state.rflags & DF != 0;
        for n in 0..i.op_count() {
            let register = match i.op_kind(n) {
                OpKind::MemorySegSI | OpKind::MemorySegESI | OpKind::MemorySegRSI => indices.source,
                OpKind::MemoryESDI | OpKind::MemoryESEDI | OpKind::MemoryESRDI => {
                    indices.destination
                }
                _ => continue,
            };
            let at = self.registers.get(register).unwrap_or(0);
            let next = if down {
                at.wrapping_sub(u64::from(size))
            } else {
                at.wrapping_add(u64::from(size))
            };
            self.registers.set(register, next);
        }
    }
}

fn compares(i: &Instruction) -> bool {
    matches!(
        i.mnemonic(),
        Mnemonic::Cmpsb
            | Mnemonic::Cmpsw
            | Mnemonic::Cmpsd
            | Mnemonic::Cmpsq
            | Mnemonic::Scasb
            | Mnemonic::Scasw
            | Mnemonic::Scasd
            | Mnemonic::Scasq
    )
}
