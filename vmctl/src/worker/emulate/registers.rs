//! The guest's registers by their iced-x86 names, and what its mode means for addresses.

use guest_proto::vcpu_page::ExecutionState;
use iced_x86::Register;
use x86_64::registers::control::{Cr0Flags, EferFlags};
use x86_64::registers::rflags::RFlags;

const CR0_PE: u64 = Cr0Flags::PROTECTED_MODE_ENABLE.bits();
const CR0_PG: u64 = Cr0Flags::PAGING.bits();
const EFER_LMA: u64 = EferFlags::LONG_MODE_ACTIVE.bits();
const RFLAGS_VM: u64 = RFlags::VIRTUAL_8086_MODE.bits();
/// Bits of `Segment::attributes`.
const SEGMENT_LONG: u16 = 1 << 9;
const SEGMENT_BIG: u16 = 1 << 10;

/// Index of CS and SS in `ExecutionState::segment`.
const CS: usize = 1;
const SS: usize = 2;

/// A state, seen as registers.
pub(super) struct Registers<'a> {
    pub(super) state: &'a mut ExecutionState,
}

impl<'a> Registers<'a> {
    pub(super) fn new(state: &'a mut ExecutionState) -> Self {
        Self { state }
    }

    /// Size of code: 16, 32 or 64.
    pub(super) fn bits(&self) -> u32 {
        let attributes = self.state.segment[CS].attributes;
        let real = self.state.cr0 & CR0_PE == 0 || self.state.rflags & RFLAGS_VM != 0;
        if real {
            16
        } else if self.state.efer & EFER_LMA != 0 && attributes & SEGMENT_LONG != 0 {
            64
        } else if attributes & SEGMENT_BIG != 0 {
            32
        } else {
            16
        }
    }

    /// Whether linear addresses are translated.
    pub(super) fn has_paging(&self) -> bool {
        self.state.cr0 & CR0_PG != 0
    }

    /// Whether the guest's program is in ring 3.
    pub(super) fn is_user(&self) -> bool {
        self.privilege() == 3
    }

    /// The program's ring: the privilege of SS is the CPU's.
    pub(super) fn privilege(&self) -> u16 {
        self.state.segment[SS].attributes >> 5 & 3
    }

    /// The bits of the stack pointer that the stack uses.
    pub(super) fn stack_mask(&self) -> u64 {
        match self.bits() {
            64 => mask(8),
            _ if self.state.segment[SS].attributes & SEGMENT_BIG != 0 => mask(4),
            _ => mask(2),
        }
    }

    /// Linear address of a place in the stack.
    pub(super) fn linear_stack(&self, pointer: u64) -> u64 {
        let base = match self.bits() {
            64 => 0,
            _ => self.state.segment[SS].base,
        };
        self.truncate(base.wrapping_add(pointer))
    }

    /// Whether the program may use every port: its privilege is IOPL's or a higher one, outside of virtual-8086
    /// mode.
    pub(super) fn may_use_ports(&self) -> bool {
        const IOPL_SHIFT: u32 = 12;
        let privilege = u64::from(self.privilege());
        let rflags = self.state.rflags;
        self.state.cr0 & CR0_PE == 0
            || rflags & RFLAGS_VM == 0 && privilege <= rflags >> IOPL_SHIFT & 3
    }

    pub(super) fn linear_rip(&self) -> u64 {
        let base = match self.bits() {
            64 => 0,
            _ => self.state.segment[CS].base,
        };
        self.truncate(base.wrapping_add(self.state.rip))
    }

    /// A linear address as wide as the mode has them.
    pub(super) fn truncate(&self, address: u64) -> u64 {
        match self.bits() {
            64 => address,
            _ => address & 0xffff_ffff,
        }
    }

    /// Goes to the next instruction.
    pub(super) fn advance(&mut self, next: u64) {
        self.state.rip = match self.bits() {
            64 => next,
            32 => next & 0xffff_ffff,
            _ => next & 0xffff,
        };
    }

    /// Value of a general register, or the selector in a segment register.
    pub(super) fn get(&self, register: Register) -> Option<u64> {
        if register.is_segment_register() {
            return Some(u64::from(self.state.segment[register.number()].selector));
        }
        if !register.is_gpr() {
            return None;
        }
        let full = self.state.gpr[register.full_register().number()];
        Some(match register {
            Register::AH | Register::CH | Register::DH | Register::BH => full >> 8 & 0xff,
            _ => full & mask(register.size() as u8),
        })
    }

    /// Sets a general register; false for others.
    pub(super) fn set(&mut self, register: Register, value: u64) -> bool {
        if !register.is_gpr() {
            return false;
        }
        let full = &mut self.state.gpr[register.full_register().number()];
        *full = match (register, register.size()) {
            (Register::AH | Register::CH | Register::DH | Register::BH, _) => {
                *full & !0xff00 | (value & 0xff) << 8
            }
            // A 32-bit result clears the upper half.
            (_, 4) => value & mask(4),
            (_, size) => *full & !mask(size as u8) | value & mask(size as u8),
        };
        true
    }

    /// Returns the value that a register adds to a linear address: of a segment register, its base.
    pub(super) fn for_address(&self, register: Register) -> Option<u64> {
        if register.is_segment_register() {
            let flat = self.bits() == 64 && !matches!(register, Register::FS | Register::GS);
            return Some(if flat {
                0
            } else {
                self.state.segment[register.number()].base
            });
        }
        self.get(register)
    }
}

/// The accumulator of `size` bytes.
pub(super) fn accumulator(size: u8) -> Register {
    match size {
        1 => Register::AL,
        2 => Register::AX,
        4 => Register::EAX,
        _ => Register::RAX,
    }
}

/// The upper half of a product of two values of `size` bytes, and of what is divided.
pub(super) fn upper_accumulator(size: u8) -> Register {
    match size {
        1 => Register::AH,
        2 => Register::DX,
        4 => Register::EDX,
        _ => Register::RDX,
    }
}

/// The bits of a value of `size` bytes.
pub(super) fn mask(size: u8) -> u64 {
    u64::MAX >> (64 - 8 * u32::from(size))
}

/// `value` of `size` bytes, sign-extended.
pub(super) fn sign_extend(value: u64, size: u8) -> u64 {
    let shift = 64 - 8 * u32::from(size);
    ((value << shift).cast_signed() >> shift).cast_unsigned()
}
