//! Arithmetic with flags (APM vol. 3, "Instruction effects on RFLAGS").

use super::registers::mask;

pub(super) const CF: u64 = 1 << 0;
const PF: u64 = 1 << 2;
const AF: u64 = 1 << 4;
pub(super) const ZF: u64 = 1 << 6;
const SF: u64 = 1 << 7;
const OF: u64 = 1 << 11;
const ARITHMETIC: u64 = CF | PF | AF | ZF | SF | OF;

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
    let mut new = flags & !ARITHMETIC;
    let mut set = |flag, on: bool| new |= if on { flag } else { 0 };
    set(CF, carry_out);
    set(OF, overflow);
    set(AF, half);
    set(ZF, result == 0);
    set(SF, result & sign != 0);
    set(PF, (result as u8).count_ones().is_multiple_of(2));
    (result, new)
}

/// As [`binary`], with CF kept: INC and DEC.
pub(super) fn step(op: Op, a: u64, size: u8, flags: u64) -> (u64, u64) {
    let (result, new) = binary(op, a, 1, size, flags);
    (result, new & !CF | flags & CF)
}
