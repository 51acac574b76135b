//! The root partition on one CPU: runs it, and answers the few exits that it has.

use guest_proto::hypercall::Hypercall;
use guest_proto::{ABI_VERSION, Status, cpuid};

use crate::arch::svm::{Event, ExitCode, RootCpu, Start};
use crate::arch::{self, svm};
use crate::console;

/// Runs VM 0 on this CPU for good. RSI = `argument`: the Linux boot protocol's parameters.
pub fn run(mut cpu: RootCpu, start: &Start, argument: u64) -> ! {
    cpu.vmcb().start(start);
    cpu.registers.rsi = argument;
    loop {
        match cpu.enter() {
            ExitCode::CPUID => answer_cpuid(&mut cpu),
            ExitCode::MSR => answer_msr(&mut cpu),
            ExitCode::VMMCALL => answer_hypercall(&mut cpu),
            // What is protected does not exist for root.
            ExitCode::NESTED_FAULT => cpu.vmcb().inject(Event::GeneralProtection),
            // Held: another CPU of root's cannot reset this one from under the microvisor.
            ExitCode::INIT => {}
            code if code.is_svm_instruction() => cpu.vmcb().inject(Event::InvalidOpcode),
            code => stop(&mut cpu, code),
        }
    }
}

fn stop(cpu: &mut RootCpu, code: ExitCode) -> ! {
    let (info1, info2) = cpu.vmcb().exit_info();
    let rip = cpu.vmcb().rip();
    let why = match code {
        ExitCode::SHUTDOWN => "triple fault",
        _ => "exit without an answer",
    };
    console::print(format_args!(
        "microvisor: VM 0 stopped on CPU {}: {why}, exit {:#x} ({info1:#x}, {info2:#x}) at rip {rip:#x}\n",
        arch::apic_id(),
        code.0,
    ));
    arch::halt()
}

/// The CPU's own answer, less SVM, plus the microvisor's leaves.
fn answer_cpuid(cpu: &mut RootCpu) {
    const OSXSAVE: u32 = 1 << 27;
    const CR4_OSXSAVE: u64 = 1 << 18;
    const OSPKE: u32 = 1 << 4;
    const CR4_PKE: u64 = 1 << 22;
    const SVM: u32 = 1 << 2;
    let (leaf, subleaf) = (cpu.vmcb().rax() as u32, cpu.registers.rcx as u32);
    let cr4 = cpu.vmcb().cr4();
    let mut answer = arch::cpuid(leaf, subleaf);
    let follow = |word: &mut u32, bit: u32, enabled: bool| {
        *word = if enabled { *word | bit } else { *word & !bit };
    };
    match leaf {
        // These two bits repeat root's own CR4, not the microvisor's.
        1 => follow(&mut answer.ecx, OSXSAVE, cr4 & CR4_OSXSAVE != 0),
        7 if subleaf == 0 => follow(&mut answer.ecx, OSPKE, cr4 & CR4_PKE != 0),
        0x8000_0001 => answer.ecx &= !SVM,
        0x8000_000a => {
            (answer.eax, answer.ebx, answer.ecx, answer.edx) = (0, 0, 0, 0);
        }
        cpuid::leaf::ROOT_BASE => {
            let word = |n: usize| {
                cpuid::SIGNATURE[4 * n..4 * n + 4]
                    .iter()
                    .rev()
                    .fold(0, |word, byte| word << 8 | u32::from(*byte))
            };
            answer.eax = cpuid::leaf::ROOT_BASE + 1;
            (answer.ebx, answer.ecx, answer.edx) = (word(0), word(1), word(2));
        }
        _ if leaf == cpuid::leaf::ROOT_BASE + 1 => {
            answer.eax = ABI_VERSION;
            answer.ebx = features();
            (answer.ecx, answer.edx) = (0, 0);
        }
        _ => {}
    }
    cpu.vmcb().set_rax(answer.eax.into());
    cpu.registers.rbx = answer.ebx.into();
    cpu.registers.rcx = answer.ecx.into();
    cpu.registers.rdx = answer.edx.into();
    cpu.vmcb().advance(2);
}

/// `cpuid::features`, from what SVM has here.
fn features() -> u32 {
    use guest_proto::cpuid::features as ours;
    // Bits of CPUID 8000_000A EDX (APM vol. 3 §E.4.9).
    let map = [
        (0, ours::NESTED_PAGING),
        (3, ours::NEXT_RIP),
        (4, ours::TSC_SCALING),
        (5, ours::CLEAN_BITS),
        (6, ours::FLUSH_BY_ASID),
        (7, ours::DECODE_ASSISTS),
    ];
    let edx = svm::supported().map_or(0, |(_, features)| features);
    map.iter()
        .filter(|(bit, _)| edx & 1 << bit != 0)
        .fold(0, |set, (_, feature)| set | feature)
}

/// EFER is root's but for SVME; the registers of SVM read as absent.
fn answer_msr(cpu: &mut RootCpu) {
    const EFER: u32 = 0xc000_0080;
    /// Bits of EFER that root may set: SCE, LME, LMA, NXE, FFXSR, TCE. Others are SVM's or new.
    const EFER_ALLOWED: u64 = 0xcd01;
    let is_write = cpu.vmcb().exit_info().0 & 1 != 0;
    let msr = cpu.registers.rcx as u32;
    let value = cpu.vmcb().rax() & 0xffff_ffff | cpu.registers.rdx << 32;
    match (msr, is_write) {
        (EFER, true) if value & !EFER_ALLOWED == 0 => cpu.vmcb().set_efer(value),
        (EFER, false) => {
            let value = cpu.vmcb().efer();
            cpu.vmcb().set_rax(value & 0xffff_ffff);
            cpu.registers.rdx = value >> 32;
        }
        // Without SVM in CPUID none of the others exists.
        _ => {
            cpu.vmcb().inject(Event::GeneralProtection);
            return;
        }
    }
    cpu.vmcb().advance(2);
}

fn answer_hypercall(cpu: &mut RootCpu) {
    let (status, value) = if cpu.vmcb().cpl() != 0 {
        (Status::NotPermitted, 0)
    } else {
        let registers = &cpu.registers;
        let arguments = [
            registers.rdi,
            registers.rsi,
            registers.rdx,
            registers.r[2],
            registers.r[0],
        ];
        hypercall(cpu.vmcb().rax(), arguments)
    };
    cpu.vmcb().set_rax(status.raw() as u64);
    cpu.registers.rdx = value;
    cpu.vmcb().advance(3);
}

/// The calls that need nothing but the microvisor itself.
fn hypercall(number: u64, arguments: [u64; 5]) -> (Status, u64) {
    match Hypercall::from_raw(number) {
        Some(Hypercall::AbiVersion) if arguments == [0; 5] => (Status::Ok, ABI_VERSION.into()),
        Some(Hypercall::AbiVersion) => (Status::InvalidArgument, 0),
        Some(_) => (Status::NotSupported, 0),
        None => (Status::UnknownCall, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_numbers_and_reserved_arguments_are_named() {
        assert_eq!(hypercall(1, [0; 5]), (Status::Ok, ABI_VERSION.into()));
        assert_eq!(hypercall(1, [0, 0, 0, 0, 1]).0, Status::InvalidArgument);
        assert_eq!(hypercall(0xdead, [0; 5]).0, Status::UnknownCall);
    }
}
