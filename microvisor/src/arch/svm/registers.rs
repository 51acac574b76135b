//! Registers of a guest or of VM 0 by name, wherever the world switch keeps them.

use super::vmcb::Vmcb;
use crate::arch::hw::Register;

/// General registers that the control block does not hold.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Registers {
    pub(super) rbx: u64,
    pub(super) rcx: u64,
    pub(super) rdx: u64,
    pub(super) rsi: u64,
    pub(super) rdi: u64,
    pub(super) rbp: u64,
    /// R8 to R15.
    pub(super) r: [u64; 8],
}

/// Returns the general register with this number in instructions, 0 to 15.
pub(super) fn general<'a>(
    vmcb: &'a mut Vmcb,
    registers: &'a mut Registers,
    n: usize,
) -> Option<&'a mut u64> {
    Some(match n {
        0 => &mut vmcb.save.rax,
        1 => &mut registers.rcx,
        2 => &mut registers.rdx,
        3 => &mut registers.rbx,
        4 => &mut vmcb.save.rsp,
        5 => &mut registers.rbp,
        6 => &mut registers.rsi,
        7 => &mut registers.rdi,
        _ => registers.r.get_mut(n - 8)?,
    })
}

/// Returns all general registers, in the order of their numbers.
pub(super) fn all_general(vmcb: &Vmcb, registers: &Registers) -> [u64; 16] {
    let (save, [r8, r9, r10, r11, r12, r13, r14, r15]) = (&vmcb.save, registers.r);
    let Registers {
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rbp,
        ..
    } = *registers;
    [
        save.rax, rcx, rdx, rbx, save.rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15,
    ]
}

/// Reads a register that a control block or `registers` holds; the others read as 0.
#[inline]
pub(super) fn read(vmcb: &Vmcb, registers: &Registers, register: Register) -> u64 {
    let (control, save) = (&vmcb.control, &vmcb.save);
    match register {
        Register::Rax => save.rax,
        Register::Rcx => registers.rcx,
        Register::Rdx => registers.rdx,
        Register::Rbx => registers.rbx,
        Register::Rsi => registers.rsi,
        Register::Rdi => registers.rdi,
        Register::R8 => registers.r[0],
        Register::R10 => registers.r[2],
        Register::Rip => save.rip,
        Register::Cr0 => save.cr0,
        Register::Cr2 => save.cr2,
        Register::Cr4 => save.cr4,
        Register::Cr8 => vmcb.tpr(),
        Register::Efer => save.efer(),
        Register::Pat => save.g_pat,
        Register::TscOffset => control.tsc_offset,
        Register::Xcr0 | Register::SpecCtrl => 0,
    }
}

/// Writes a register that a control block or `registers` holds; nothing happens for the others.
#[inline]
pub(super) fn write(vmcb: &mut Vmcb, registers: &mut Registers, register: Register, value: u64) {
    let (control, save) = (&mut vmcb.control, &mut vmcb.save);
    match register {
        Register::Rax => save.rax = value,
        Register::Rcx => registers.rcx = value,
        Register::Rdx => registers.rdx = value,
        Register::Rbx => registers.rbx = value,
        Register::Rsi => registers.rsi = value,
        Register::Rdi => registers.rdi = value,
        Register::R8 => registers.r[0] = value,
        Register::R10 => registers.r[2] = value,
        Register::Rip => save.rip = value,
        Register::Cr0 => save.cr0 = value,
        Register::Cr2 => save.cr2 = value,
        Register::Cr4 => save.cr4 = value,
        Register::Cr8 => vmcb.set_tpr(value),
        Register::Efer => save.set_efer(value),
        Register::Pat => save.g_pat = value,
        Register::TscOffset => control.tsc_offset = value,
        Register::Xcr0 | Register::SpecCtrl => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn general_registers_have_one_order() {
        let (mut vmcb, mut registers) = (Vmcb::zeroed(), Registers::default());
        for n in 0..16 {
            *general(&mut vmcb, &mut registers, n).unwrap() = 100 + n as u64;
        }
        assert!(general(&mut vmcb, &mut registers, 16).is_none());
        let all = all_general(&vmcb, &registers);
        assert_eq!(all, core::array::from_fn(|n| 100 + n as u64));
        let named = [Register::Rax, Register::Rcx, Register::Rdx, Register::Rbx];
        let more = [
            (Register::Rsi, 6),
            (Register::Rdi, 7),
            (Register::R8, 8),
            (Register::R10, 10),
        ];
        for (register, n) in named.into_iter().zip(0..).chain(more) {
            assert_eq!(read(&vmcb, &registers, register), 100 + n);
        }
    }
}
