//! The meaning of exit codes (APM vol. 2 appendix C), and the ends of the instructions that exit.

use super::vmcb::Vmcb;
use crate::arch::exit::{Event, Exit, NestedFault, PortAccess};
use crate::memory::Gpa;

const READ_DR: u32 = 0x20;
const WRITE_DR_LAST: u32 = 0x3f;
const EXCEPTION: u32 = 0x40;
const DEBUG: u32 = EXCEPTION + 1;
/// #TS, #NP, #SS, #GP and #PF, which are intercepted at a step over IRET.
const INVALID_TSS: u32 = EXCEPTION + 10;
const PAGE_FAULT: u32 = EXCEPTION + 14;
const ALIGNMENT_CHECK: u32 = EXCEPTION + 17;
const MACHINE_CHECK: u32 = EXCEPTION + 18;
const INTR: u32 = 0x60;
const NMI: u32 = 0x61;
const INIT: u32 = 0x63;
const VINTR: u32 = 0x64;
const RDPMC: u32 = 0x6f;
const CPUID: u32 = 0x72;
const RSM: u32 = 0x73;
const IRET: u32 = 0x74;
const INVD: u32 = 0x76;
const HLT: u32 = 0x78;
const INVLPGA: u32 = 0x7a;
const IOIO: u32 = 0x7b;
const MSR: u32 = 0x7c;
const SHUTDOWN: u32 = 0x7f;
const VMRUN: u32 = 0x80;
const VMMCALL: u32 = 0x81;
const VMLOAD: u32 = 0x82;
const SKINIT: u32 = 0x86;
const WBINVD: u32 = 0x89;
const MONITOR: u32 = 0x8a;
const MWAIT_ARMED: u32 = 0x8c;
const XSETBV: u32 = 0x8d;
const RDPRU: u32 = 0x8e;
const NPF: u32 = 0x400;
/// The CPU did not enter.
pub(super) const INVALID: u32 = u32::MAX;

/// Returns the exit.
pub(super) fn decode(vmcb: &Vmcb) -> Exit {
    let code = vmcb.exit_code();
    let (info1, _) = vmcb.exit_info();
    match code {
        READ_DR..=WRITE_DR_LAST => Exit::DebugRegister,
        DEBUG => Exit::Exception(Event::DEBUG),
        INVALID_TSS..=PAGE_FAULT => {
            let vector = (code - EXCEPTION) as u8;
            Exit::Exception(Event::exception(vector, info1 as u32))
        }
        // Its error code is always 0 (APM vol. 2 §8.2.17).
        ALIGNMENT_CHECK => Exit::Exception(Event::exception(17, 0)),
        MACHINE_CHECK => Exit::MachineCheck,
        INTR => Exit::Interrupt,
        NMI => Exit::Nmi,
        INIT => Exit::Init,
        VINTR => Exit::InterruptWindow,
        RDPMC => Exit::PerformanceCounter,
        CPUID => Exit::Cpuid,
        IRET => Exit::Return,
        INVD | WBINVD => Exit::CacheFlush,
        HLT => Exit::Halt,
        IOIO => port(info1),
        MSR => Exit::Msr {
            is_write: info1 & 1 != 0,
        },
        SHUTDOWN => Exit::Shutdown,
        VMMCALL => Exit::Hypercall,
        RSM | MONITOR..=MWAIT_ARMED | RDPRU | INVLPGA | VMRUN | VMLOAD..=SKINIT => Exit::Forbidden,
        XSETBV => Exit::Xsetbv,
        NPF => Exit::NestedFault,
        INVALID => Exit::Refused,
        other => Exit::Other(other),
    }
}

/// Returns the address after the instruction that made the last exit.
pub(super) fn next_rip(vmcb: &Vmcb, has_next_rip: bool) -> u64 {
    let (_, info2) = vmcb.exit_info();
    match (vmcb.exit_code(), vmcb.control.next_rip) {
        (IOIO, _) => info2,
        (_, next) if has_next_rip && next != 0 => next,
        (code, _) => vmcb.save.rip.wrapping_add(length(code)),
    }
}

/// Returns the length of the instruction without prefixes, which no compiler puts there. A guest that puts one there
/// continues in the middle of its own instruction.
const fn length(code: u32) -> u64 {
    match code {
        HLT => 1,
        RDPMC | CPUID | INVD | MSR | WBINVD => 2,
        VMMCALL | XSETBV => 3,
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

/// Returns the access of an exit for a nested fault.
pub(super) fn nested_fault(vmcb: &Vmcb) -> NestedFault {
    let (error_code, address) = vmcb.exit_info();
    let (instruction, instruction_len) = vmcb.instruction();
    NestedFault {
        address: Gpa::new(address),
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
