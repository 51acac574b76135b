//! Arithmetic with flags (APM vol. 3, "Instruction effects on RFLAGS").

use iced_x86::{ConditionCode, Mnemonic};
use x86_64::registers::rflags::RFlags;

use super::registers::{mask, sign_extend};

pub(super) const CF: u64 = RFlags::CARRY_FLAG.bits();
const PF: u64 = RFlags::PARITY_FLAG.bits();
const AF: u64 = RFlags::AUXILIARY_CARRY_FLAG.bits();
pub(super) const ZF: u64 = RFlags::ZERO_FLAG.bits();
const SF: u64 = RFlags::SIGN_FLAG.bits();
const OF: u64 = RFlags::OVERFLOW_FLAG.bits();
const ARITHMETIC: u64 = CF | PF | AF | ZF | SF | OF;

fn flag(bits: u64, is_set: bool) -> u64 {
    if is_set { bits } else { 0 }
}

/// Operations of two operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    Add,
    Adc,
    Sub,
    Sbb,
    And,
    Or,
    Xor,
}

/// Result and new flags of `a op b` on `size` bytes.
pub(super) fn binary(op: Op, a: u64, b: u64, size: u8, flags: u64) -> (u64, u64) {
    let mask = mask(size);
    let sign = mask ^ (mask >> 1);
    let (a, b) = (a & mask, b & mask);
    let carry = match op {
        Op::Adc | Op::Sbb => flags & CF,
        _ => 0,
    };
    let (result, carry_out, overflow) = match op {
        Op::Add | Op::Adc => {
            let wide = u128::from(a) + u128::from(b) + u128::from(carry);
            let result = wide as u64 & mask;
            (
                result,
                wide > u128::from(mask),
                (a ^ result) & (b ^ result) & sign != 0,
            )
        }
        Op::Sub | Op::Sbb => {
            let result = a.wrapping_sub(b).wrapping_sub(carry) & mask;
            let borrow = u128::from(a) < u128::from(b) + u128::from(carry);
            (result, borrow, (a ^ b) & (a ^ result) & sign != 0)
        }
        Op::And => (a & b, false, false),
        Op::Or => (a | b, false, false),
        Op::Xor => (a ^ b, false, false),
    };
    let half = match op {
        Op::Add | Op::Adc | Op::Sub | Op::Sbb => (a ^ b ^ result) & 0x10 != 0,
        Op::And | Op::Or | Op::Xor => false,
    };
    let new = flag(CF, carry_out) | flag(OF, overflow) | flag(AF, half);
    let kept = flags & !ARITHMETIC;
    (result, kept | new | of_result(result, size))
}

/// Computes as [`binary`] does, and keeps CF: INC and DEC.
pub(super) fn step(op: Op, a: u64, size: u8, flags: u64) -> (u64, u64) {
    let (result, new) = binary(op, a, 1, size, flags);
    (result, new & !CF | flags & CF)
}

/// Shifts and rotations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shift {
    /// SHL.
    Left,
    /// SHR.
    Right,
    /// SAR.
    Arithmetic,
    /// ROL.
    RotateLeft,
    /// ROR.
    RotateRight,
    /// RCL.
    CarryLeft,
    /// RCR.
    CarryRight,
}

fn count_mask(size: u8) -> u64 {
    if size == 8 { 63 } else { 31 }
}

/// The flags that tell of a result: ZF, SF and PF.
fn of_result(result: u64, size: u8) -> u64 {
    let sign = 1 << (8 * u32::from(size) - 1);
    flag(ZF, result == 0)
        | flag(SF, result & sign != 0)
        | flag(PF, (result as u8).count_ones().is_multiple_of(2))
}

/// Shifts or rotates a value of `size` bytes. Without a step no flag changes.
pub(super) fn shift(shift: Shift, a: u64, count: u64, size: u8, flags: u64) -> (u64, u64) {
    let (mask, top) = (mask(size), 8 * u32::from(size) - 1);
    let mut value = a & mask;
    let count = count & count_mask(size);
    if count == 0 {
        return (value, flags);
    }
    let mut carry = u64::from(flags & CF != 0);
    for _ in 0..count {
        let (first, last) = (value >> top & 1, value & 1);
        (value, carry) = match shift {
            Shift::Left => (value << 1 & mask, first),
            Shift::Right => (value >> 1, last),
            Shift::Arithmetic => (value >> 1 | first << top, last),
            Shift::RotateLeft => (value << 1 & mask | first, first),
            Shift::RotateRight => (value >> 1 | last << top, last),
            Shift::CarryLeft => (value << 1 & mask | carry, first),
            Shift::CarryRight => (value >> 1 | carry << top, last),
        };
    }
    // Of one step; after more it is not defined.
    let overflow = match shift {
        Shift::Left | Shift::RotateLeft | Shift::CarryLeft => value >> top & 1 ^ carry,
        Shift::Right => a >> top & 1,
        Shift::Arithmetic => 0,
        Shift::RotateRight | Shift::CarryRight => (value >> top ^ value >> (top - 1)) & 1,
    };
    let kept = match shift {
        Shift::Left | Shift::Right | Shift::Arithmetic => {
            flags & !ARITHMETIC | of_result(value, size)
        }
        _ => flags & !(CF | OF),
    };
    let overflow = flag(OF, overflow != 0);
    (value, kept | flag(CF, carry != 0) | overflow)
}

/// SHLD and SHRD: shifts bits of `b` into `a`.
pub(super) fn double_shift(
    is_left: bool,
    a: u64,
    b: u64,
    count: u64,
    size: u8,
    flags: u64,
) -> (u64, u64) {
    let (mask, bits) = (mask(size), 8 * u32::from(size));
    let (a, b) = (a & mask, b & mask);
    let count = count & count_mask(size);
    if count == 0 {
        return (a, flags);
    }
    let (high, low) = if is_left { (a, b) } else { (b, a) };
    let mut wide = u128::from(high) << bits | u128::from(low);
    let mut carry = 0;
    for _ in 0..count {
        if is_left {
            carry = (wide >> (2 * bits - 1) & 1) as u64;
            wide <<= 1;
        } else {
            carry = (wide & 1) as u64;
            wide >>= 1;
        }
    }
    let result = if is_left { wide >> bits } else { wide } as u64 & mask;
    let overflow = (result ^ a) >> (bits - 1) & 1;
    let kept = flags & !ARITHMETIC | of_result(result, size);
    let overflow = flag(OF, overflow != 0);
    (result, kept | flag(CF, carry != 0) | overflow)
}

/// The product of two values of `size` bytes: its lower half, its upper half, and flags.
pub(super) fn multiply(is_signed: bool, a: u64, b: u64, size: u8, flags: u64) -> (u64, u64, u64) {
    let bits = 8 * u32::from(size);
    let (product, overflow) = if is_signed {
        let wide = |value| i128::from(sign_extend(value, size).cast_signed());
        let product = wide(a) * wide(b);
        let low = sign_extend(product as u64 & mask(size), size).cast_signed();
        (product.cast_unsigned(), product != i128::from(low))
    } else {
        let product = u128::from(a & mask(size)) * u128::from(b & mask(size));
        (product, product >> bits != 0)
    };
    let (low, high) = (
        product as u64 & mask(size),
        (product >> bits) as u64 & mask(size),
    );
    let kept = flags & !(CF | OF);
    (low, high, kept | flag(CF | OF, overflow))
}

/// Divides a value of twice `size` bytes, low half first. Returns the quotient and the remainder; `None` for a divide error.
pub(super) fn divide(
    is_signed: bool,
    [low, high]: [u64; 2],
    by: u64,
    size: u8,
) -> Option<(u64, u64)> {
    let bits = 8 * u32::from(size);
    let wide = u128::from(high & mask(size)) << bits | u128::from(low & mask(size));
    if is_signed {
        let spare = 128 - 2 * bits;
        let dividend = wide.cast_signed() << spare >> spare;
        let by = i128::from(sign_extend(by, size).cast_signed());
        let quotient = dividend.checked_div(by)?;
        let fits =
            quotient == i128::from(sign_extend(quotient as u64 & mask(size), size).cast_signed());
        let remainder = dividend.checked_rem(by)?;
        return fits.then_some((quotient as u64 & mask(size), remainder as u64 & mask(size)));
    }
    let by = u128::from(by & mask(size));
    let quotient = wide.checked_div(by)?;
    let fits = quotient <= u128::from(mask(size));
    fits.then_some((quotient as u64, (wide % by) as u64))
}

/// Finds or counts the bits of `source`; no result for BSF and BSR where there is none.
pub(super) fn count(mnemonic: Mnemonic, source: u64, size: u8, flags: u64) -> (Option<u64>, u64) {
    let bits = 8 * u32::from(size);
    let source = source & mask(size);
    let leading = source.leading_zeros() - (64 - bits);
    let trailing = source.trailing_zeros().min(bits);
    let is_none = source == 0;
    let result = match mnemonic {
        Mnemonic::Bsf | Mnemonic::Tzcnt => trailing,
        Mnemonic::Bsr => (bits - 1).wrapping_sub(leading),
        Mnemonic::Lzcnt => leading,
        _ => source.count_ones(),
    };
    let (has_result, carry, is_zero) = match mnemonic {
        Mnemonic::Bsf | Mnemonic::Bsr => (!is_none, false, is_none),
        Mnemonic::Tzcnt | Mnemonic::Lzcnt => (true, is_none, result == 0),
        _ => (true, false, is_none),
    };
    let flags = flags & !ARITHMETIC | flag(CF, carry) | flag(ZF, is_zero);
    (has_result.then_some(result.into()), flags)
}

/// Whether the flags are as a condition says.
pub(super) fn holds(condition: ConditionCode, flags: u64) -> bool {
    let is = |flag| flags & flag != 0;
    let less = is(SF) != is(OF);
    match condition {
        ConditionCode::o => is(OF),
        ConditionCode::no => !is(OF),
        ConditionCode::b => is(CF),
        ConditionCode::ae => !is(CF),
        ConditionCode::e => is(ZF),
        ConditionCode::ne => !is(ZF),
        ConditionCode::be => is(CF) || is(ZF),
        ConditionCode::a => !is(CF) && !is(ZF),
        ConditionCode::s => is(SF),
        ConditionCode::ns => !is(SF),
        ConditionCode::p => is(PF),
        ConditionCode::np => !is(PF),
        ConditionCode::l => less,
        ConditionCode::ge => !less,
        ConditionCode::le => is(ZF) || less,
        ConditionCode::g => !is(ZF) && !less,
        ConditionCode::None => false,
    }
}
