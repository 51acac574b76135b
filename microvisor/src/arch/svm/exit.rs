//! What an exit of a guest's control block means, and where its instruction ends.

use super::vmcb::{ExitCode, Vmcb};
use crate::arch::hw::{Event, Exit, NestedFault, PortAccess};

const READ_DR: u32 = 0x20;
const WRITE_DR_LAST: u32 = 0x3f;
const EXCEPTION: u32 = 0x40;
const DEBUG: u32 = EXCEPTION + 1;
/// #TS, #NP, #SS, #GP and #PF, which are intercepted at a step over IRET.
const INVALID_TSS: u32 = EXCEPTION + 10;
const PAGE_FAULT: u32 = EXCEPTION + 14;
const ALIGNMENT_CHECK: u32 = EXCEPTION + 17;
const MACHINE_CHECK: u32 = EXCEPTION + 18;

/// The exit, and the instruction pointer after the instruction that made it.
pub(super) fn decode(vmcb: &Vmcb, has_next_rip: bool) -> (Exit, u64) {
    let code = vmcb.exit_code();
    let (info1, info2) = vmcb.exit_info();
    let exit = match code.0 {
        READ_DR..=WRITE_DR_LAST => Exit::DebugRegister,
        DEBUG => Exit::Exception(Event::DEBUG),
        INVALID_TSS..=PAGE_FAULT => {
            let vector = (code.0 - EXCEPTION) as u8;
            Exit::Exception(Event::exception(vector, info1 as u32))
        }
        // Its error code is always 0 (APM vol. 2 §8.2.17).
        ALIGNMENT_CHECK => Exit::Exception(Event::Exception(17, Some(0))),
        MACHINE_CHECK => Exit::MachineCheck,
        0x60 => Exit::Interrupt,
        0x61 => Exit::Nmi,
        0x63 => Exit::Init,
        0x64 => Exit::InterruptWindow,
        0x6f => Exit::PerformanceCounter,
        0x72 => Exit::Cpuid,
        0x74 => Exit::Return,
        0x76 | 0x89 => Exit::CacheFlush,
        0x78 => Exit::Halt,
        0x7b => return (port(info1), info2),
        0x7c => Exit::Msr {
            is_write: info1 & 1 != 0,
        },
        0x7f => Exit::Shutdown,
        0x81 => Exit::Hypercall,
        // RSM, MONITOR, MWAIT, RDPRU.
        0x73 | 0x8a..=0x8c | 0x8e => Exit::Forbidden,
        0x8d => Exit::Xsetbv,
        0x400 => Exit::NestedFault(nested_fault(vmcb, info1, info2)),
        u32::MAX => Exit::Refused,
        _ if code.is_svm_instruction() => Exit::Forbidden,
        other => Exit::Other(other),
    };
    let next = if has_next_rip && vmcb.next_rip() != 0 {
        vmcb.next_rip()
    } else {
        vmcb.rip().wrapping_add(length(code))
    };
    (exit, next)
}

/// Bytes of the instruction without prefixes, which no compiler puts there. A guest that does
/// continues in the middle of its own instruction.
const fn length(code: ExitCode) -> u64 {
    match code.0 {
        0x78 => 1,
        0x6f | 0x72 | 0x76 | 0x7c | 0x89 => 2,
        0x81 | 0x8d => 3,
        _ => 0,
    }
}

/// EXITINFO1 of IOIO (APM vol. 2 §15.10.2).
fn port(info: u64) -> Exit {
    Exit::Port(PortAccess {
        port: (info >> 16) as u16,
        size: (info >> 4 & 7) as u8,
        is_write: info & 1 == 0,
        string: info & 1 << 2 != 0,
        rep: info & 1 << 3 != 0,
    })
}

fn nested_fault(vmcb: &Vmcb, error_code: u64, address: u64) -> NestedFault {
    let (instruction, instruction_len) = vmcb.instruction();
    NestedFault {
        address,
        error_code,
        instruction,
        instruction_len,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_accesses_are_read_from_their_bits() {
        let out = PortAccess {
            port: 0x3f8,
            size: 1,
            is_write: true,
            string: false,
            rep: false,
        };
        assert_eq!(port(0x3f8 << 16 | 1 << 4), Exit::Port(out));
        let rep_insd = PortAccess {
            port: 0xffff,
            size: 4,
            is_write: false,
            string: true,
            rep: true,
        };
        assert_eq!(port(0xffff << 16 | 1 << 6 | 0b1101), Exit::Port(rep_insd));
    }
}
