//! Emulation of one instruction of a guest that touched a device's memory, or a string
//! instruction on a port.
//!
//! [`emulate`] fetches and decodes (iced-x86) at the guest's instruction pointer, moves the data
//! through a [`Space`], and changes the registers of an [`ExecutionState`]; or it answers with the
//! [`Fault`] that the guest gets. Here are integer instructions, the stack's PUSH and POP, moves of SSE, and strings: what
//! compilers use, and what test programs do. `docs/guests.md` lists them. The guest's page tables are walked in
//! `paging` for every access but the one that made the CPU stop, because a string's other end, or its next page, may be
//! anywhere.

mod alu;
mod decoded;
mod integer;
mod paging;
mod plain;
mod registers;
mod stack;
mod string;
#[cfg(test)]
mod tests;
mod vector;

use std::fmt;

use guest_proto::vcpu_page::ExecutionState;
use iced_x86::{DecoderError, Instruction, OpKind, Register};

pub use decoded::Decoded;

use paging::Access;
use registers::Registers;

/// The space that an instruction can reach: guest physical memory and ports.
pub trait Space {
    /// Fills `bytes` from RAM; false if there is none.
    fn read_ram(&mut self, gpa: u64, bytes: &mut [u8]) -> bool;
    /// Reads eight bytes of RAM at an address that is a multiple of eight; `None` if there is none.
    fn read_word(&mut self, gpa: u64) -> Option<u64>;
    /// Writes RAM; false if there is none.
    fn write_ram(&mut self, gpa: u64, bytes: &[u8]) -> bool;
    /// Reads 1 to 8 bytes of a device's memory.
    fn read_device(&mut self, gpa: u64, size: u8) -> u64;
    /// Writes 1 to 8 bytes of a device's memory.
    fn write_device(&mut self, gpa: u64, size: u8, value: u64);
    /// Reads a port.
    fn read_port(&mut self, port: u16, size: u8) -> u64;
    /// Writes a port.
    fn write_port(&mut self, port: u16, size: u8, value: u64);
    /// Returns the XMM registers, which most instructions don't use; `None` if they can't be had.
    fn vectors(&mut self) -> Option<[u128; 16]>;
    /// Sets the XMM registers.
    fn set_vectors(&mut self, vectors: &[u128; 16]);
}

/// The access that made the CPU stop at the instruction. The guest may have put another instruction there
/// since: that one gets no access that the CPU has not checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// An element of a string instruction on a port.
    Port {
        /// Number of the port.
        port: u16,
        /// Bytes.
        size: u8,
        /// OUTS.
        is_write: bool,
    },
    /// Memory that is not RAM.
    Memory {
        /// Guest physical address.
        gpa: u64,
        /// A write.
        is_write: bool,
    },
}

/// Error: an instruction was not completed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The guest gets a page fault.
    Page {
        /// Linear address.
        address: u64,
        /// Error code.
        code: u32,
    },
    /// The guest gets a divide error.
    Divide,
    /// The guest gets an undefined-opcode exception.
    UndefinedOpcode,
    /// The guest gets a general protection fault with error code 0.
    Protection,
    /// The instruction exists, but is not emulated.
    NotEmulated(Bytes),
    /// Guest page tables, or code, are not in RAM.
    NotInRam(u64),
    /// The instruction is not the one that made the CPU stop: the guest executes what is there now.
    Changed,
}

/// Instruction bytes, for messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bytes(Vec<u8>);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            let space = if i == 0 { "" } else { " " };
            write!(f, "{space}{byte:02x}")?;
        }
        Ok(())
    }
}

/// Bits of an address in its page.
const OFFSET: u64 = 0xfff;
/// Longest instruction.
const MAX_LENGTH: usize = 15;

/// Emulates the instruction at the guest's instruction pointer, which stopped for `cause`. `decoded` has
/// those that the virtual CPU has executed before, `known` are its bytes, if the CPU gave them. On a fault `state` may have the progress of a string instruction, as on the CPU.
///
/// # Errors
///
/// Fails with the exception that the guest gets instead, or the reason why it can't go on.
pub fn emulate(
    state: &mut ExecutionState,
    space: &mut impl Space,
    decoded: &mut Decoded,
    known: &[u8],
    cause: Cause,
) -> Result<(), Fault> {
    let mut cpu = Cpu {
        registers: Registers::new(state),
        space,
        cause: Some(cause),
        has_one_operand: false,
    };
    let (bytes, length) = cpu.fetch(known)?;
    let bits = cpu.registers.bits();
    let rip = cpu.registers.state.rip;
    let entry = match decoded.decode(bits, rip, &bytes, length) {
        Ok(entry) => entry,
        // All bytes that could be had are not an instruction.
        Err(DecoderError::NoMoreBytes) if length < MAX_LENGTH => {
            return Err(cpu.fetch_fault(length));
        }
        Err(_) => return Err(Fault::UndefinedOpcode),
    };
    let instruction = &entry.instruction;
    if entry.plain.as_ref().is_some_and(|plain| cpu.plain(plain)) {
        cpu.registers.advance(instruction.next_ip());
        return Ok(());
    }
    let not_emulated = || Fault::NotEmulated(Bytes(bytes[..instruction.len()].to_vec()));
    let done = if instruction.is_string_instruction() {
        cpu.string(instruction)?
    } else {
        cpu.has_one_operand = !instruction.is_stack_instruction();
        let is_known = cpu.integer(instruction)?
            || cpu.wide_exchange(instruction)?
            || cpu.stack(instruction)?
            || cpu.vector(instruction)?;
        is_known.then_some(string::Progress::Done)
    };
    match done {
        Some(string::Progress::Done) => {
            cpu.registers.advance(instruction.next_ip());
            Ok(())
        }
        Some(string::Progress::Again) => Ok(()),
        None => Err(not_emulated()),
    }
}

/// Whether a program of the guest runs, in ring 3, and not its kernel.
pub fn is_user(state: &mut ExecutionState) -> bool {
    Registers::new(state).is_user()
}

/// A guest physical address, and what is known about it.
#[derive(Clone, Copy)]
enum Place {
    /// The CPU has found no RAM there.
    Device(u64),
    /// RAM or a device.
    Unknown(u64),
}

impl Place {
    fn gpa(self) -> u64 {
        let (Self::Device(gpa) | Self::Unknown(gpa)) = self;
        gpa
    }

    fn may_be_ram(self) -> bool {
        matches!(self, Self::Unknown(_))
    }
}

/// The guest's registers and what they reach.
struct Cpu<'a, S> {
    registers: Registers<'a>,
    space: &'a mut S,
    /// The access at which the CPU stopped; `None` once the instruction has reached it.
    cause: Option<Cause>,
    /// The instruction accesses memory at one place.
    has_one_operand: bool,
}

impl<S: Space> Cpu<'_, S> {
    /// Returns instruction bytes and their number: up to 15, fewer if the next page can't be fetched.
    fn fetch(&mut self, known: &[u8]) -> Result<([u8; MAX_LENGTH], usize), Fault> {
        if let Some(known) = known.first_chunk() {
            return Ok((*known, MAX_LENGTH));
        }
        let at = self.registers.linear_rip();
        let mut bytes = [0; MAX_LENGTH];
        let first = MAX_LENGTH.min(0x1000 - (at as usize & 0xfff));
        self.read_linear(at, &mut bytes[..first], Access::FETCH)?;
        if first < MAX_LENGTH {
            let rest = self.registers.truncate(at.wrapping_add(first as u64));
            if self
                .read_linear(rest, &mut bytes[first..], Access::FETCH)
                .is_err()
            {
                return Ok((bytes, first));
            }
        }
        Ok((bytes, MAX_LENGTH))
    }

    /// The fault of the page behind `have` bytes, which an instruction needed.
    fn fetch_fault(&mut self, have: usize) -> Fault {
        let at = self.registers.linear_rip().wrapping_add(have as u64);
        let at = self.registers.truncate(at);
        match self.read_linear(at, &mut [0], Access::FETCH) {
            Err(fault) => fault,
            Ok(()) => Fault::UndefinedOpcode,
        }
    }

    /// Reads RAM at a linear address; code has no business elsewhere.
    fn read_linear(&mut self, at: u64, bytes: &mut [u8], access: Access) -> Result<(), Fault> {
        let gpa = paging::translate(&self.registers, self.space, at, access)?;
        if self.space.read_ram(gpa, bytes) {
            Ok(())
        } else {
            Err(Fault::NotInRam(gpa))
        }
    }

    /// Returns the place of a linear address. The CPU has translated and checked the address of the access that made it
    /// stop. An instruction with one operand in memory, which is at the same offset in its page, makes that access.
    fn translate(&mut self, linear: u64, access: Access) -> Result<Place, Fault> {
        match self.checked(linear & OFFSET, access.is_write()) {
            Some(gpa) if self.has_one_operand => Ok(Place::Device(gpa)),
            _ => paging::translate(&self.registers, self.space, linear, access).map(Place::Unknown),
        }
    }

    /// Returns the guest physical address of the access at which the CPU stopped, if that one is at this offset in its page,
    /// and as much as this one. Returns nothing without paging, where the address is at hand.
    fn checked(&self, offset: u64, is_write: bool) -> Option<u64> {
        match self.cause {
            Some(Cause::Memory { gpa, is_write: was })
                if gpa & OFFSET == offset && was >= is_write && self.registers.has_paging() =>
            {
                Some(gpa)
            }
            _ => None,
        }
    }

    /// Checks the first access of the instruction to a device's memory: it is the one that made the CPU stop.
    fn reach_device(&mut self, at: u64, write: bool) -> Result<(), Fault> {
        match self.cause.take() {
            None => Ok(()),
            // An instruction that changes memory reads it first.
            Some(Cause::Memory { gpa, is_write })
                if gpa & !OFFSET == at & !OFFSET && is_write >= write =>
            {
                Ok(())
            }
            Some(_) => Err(Fault::Changed),
        }
    }

    /// Reads 1 to 8 bytes at a linear address, wherever they are.
    fn load(&mut self, at: u64, size: u8) -> Result<u64, Fault> {
        Ok(self.load_wide(at, size)? as u64)
    }

    /// Writes 1 to 8 bytes at a linear address. Nothing is written if any part of it faults.
    fn store(&mut self, at: u64, size: u8, value: u64) -> Result<(), Fault> {
        self.store_wide(at, size, value.into())
    }

    /// Reads 1 to 16 bytes at a linear address; from a device, 8 at a time.
    fn load_wide(&mut self, at: u64, size: u8) -> Result<u128, Fault> {
        let mut value = [0; 16];
        let mut done = 0;
        for (from, part) in parts(at, size) {
            let from = self.registers.truncate(from);
            let place = self.translate(from, Access::READ)?;
            let into = &mut value[done..done + usize::from(part)];
            let gpa = place.gpa();
            if !place.may_be_ram() || !self.space.read_ram(gpa, into) {
                self.reach_device(gpa, false)?;
                for (gpa, bytes) in (gpa..).step_by(8).zip(into.chunks_mut(8)) {
                    let word = self.space.read_device(gpa, bytes.len() as u8).to_le_bytes();
                    bytes.copy_from_slice(&word[..bytes.len()]);
                }
            }
            done += usize::from(part);
        }
        Ok(u128::from_le_bytes(value))
    }

    /// Writes 1 to 16 bytes at a linear address, as [`Self::store`]; to a device, 8 at a time.
    fn store_wide(&mut self, at: u64, size: u8, value: u128) -> Result<(), Fault> {
        let mut places = [(Place::Unknown(0), 0); 2];
        let mut count = 0;
        for (to, part) in parts(at, size) {
            let to = self.registers.truncate(to);
            places[count] = (self.translate(to, Access::WRITE)?, part);
            count += 1;
        }
        let mut bytes = &value.to_le_bytes()[..];
        for &(place, part) in &places[..count] {
            let (now, rest) = bytes.split_at(usize::from(part));
            let gpa = place.gpa();
            if !place.may_be_ram() || !self.space.write_ram(gpa, now) {
                self.reach_device(gpa, true)?;
                for (gpa, bytes) in (gpa..).step_by(8).zip(now.chunks(8)) {
                    let mut word = [0; 8];
                    word[..bytes.len()].copy_from_slice(bytes);
                    let word = u64::from_le_bytes(word);
                    self.space.write_device(gpa, bytes.len() as u8, word);
                }
            }
            bytes = rest;
        }
        Ok(())
    }

    /// Linear address of a memory operand.
    fn address(&self, instruction: &Instruction, operand: u32) -> Result<u64, Fault> {
        let address = instruction
            .virtual_address(operand, 0, |register, _, _| {
                self.registers.for_address(register)
            })
            .ok_or(Fault::UndefinedOpcode)?;
        Ok(self.registers.truncate(address))
    }

    /// Size of an operand in bytes; `None` for what is no integer operand.
    fn size(instruction: &Instruction, operand: u32) -> Option<u8> {
        let size = match instruction.op_kind(operand) {
            OpKind::Register => match instruction.op_register(operand) {
                register if register.is_gpr() => register.size(),
                Register::CR8 => return None,
                register if register.is_segment_register() => 2,
                _ => return None,
            },
            OpKind::Memory
            | OpKind::MemorySegSI
            | OpKind::MemorySegESI
            | OpKind::MemorySegRSI
            | OpKind::MemorySegDI
            | OpKind::MemorySegEDI
            | OpKind::MemorySegRDI
            | OpKind::MemoryESDI
            | OpKind::MemoryESEDI
            | OpKind::MemoryESRDI => instruction.memory_size().size(),
            _ => return None,
        };
        matches!(size, 1 | 2 | 4 | 8).then_some(size as u8)
    }

    /// Value of an operand that has [`Self::size`], or an immediate.
    fn operand(&mut self, instruction: &Instruction, operand: u32) -> Result<Option<u64>, Fault> {
        Ok(match instruction.op_kind(operand) {
            OpKind::Register => self.registers.get(instruction.op_register(operand)),
            OpKind::Memory => match Self::size(instruction, operand) {
                Some(size) => {
                    let at = self.address(instruction, operand)?;
                    Some(self.load(at, size)?)
                }
                None => None,
            },
            _ => instruction.try_immediate(operand).ok(),
        })
    }

    /// Sets an operand that has [`Self::size`]; false if it can't be set.
    fn set_operand(
        &mut self,
        instruction: &Instruction,
        operand: u32,
        value: u64,
    ) -> Result<bool, Fault> {
        Ok(match instruction.op_kind(operand) {
            OpKind::Register => self.registers.set(instruction.op_register(operand), value),
            OpKind::Memory => match Self::size(instruction, operand) {
                Some(size) => {
                    let at = self.address(instruction, operand)?;
                    self.store(at, size, value)?;
                    true
                }
                None => false,
            },
            _ => false,
        })
    }
}

/// The parts of an access that lie in one page each: at most two.
fn parts(at: u64, size: u8) -> impl Iterator<Item = (u64, u8)> {
    let room = 0x1000 - (at & 0xfff);
    let first = u64::from(size).min(room) as u8;
    [
        (at, first),
        (at.wrapping_add(u64::from(first)), size - first),
    ]
    .into_iter()
    .filter(|&(_, part)| part > 0)
}
