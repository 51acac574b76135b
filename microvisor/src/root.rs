//! The root partition on one CPU: runs it, and answers the few exits that it has.

use core::sync::atomic::{AtomicU32, Ordering};

use crate::arch::hw::{Event, Exit, PortAccess};
use crate::arch::svm::{RootCpu, Start};
use crate::arch::{self, port, svm};
use crate::console;
use crate::hypercall::{self, Call};
use crate::machine::{Machine, MemoryTypes};
use crate::partition::run;
use crate::vcpu::msr::{GeneralProtection, write_efer};
use crate::{panic, trace};
use msr::Write;

mod a20;
mod cpuid;
mod msr;

/// Runs VM 0 on this CPU for good. RSI = `argument`: the Linux boot protocol's parameters.
pub fn run(machine: &Machine, mut cpu: RootCpu, start: &Start, argument: u64) -> ! {
    cpu.vmcb().start(start);
    cpu.registers.rsi = argument;
    join(machine, &mut cpu);
    serve(machine, cpu)
}

/// The same on a CPU that VM 0 has not started: until the CPU makes a hypercall it reaches only the pages
/// where it waits. Adds 1 to `held` once neither INIT nor an NMI can reach it outside of guest mode.
pub fn wait(
    machine: &Machine,
    mut cpu: RootCpu,
    start: &Start,
    argument: u64,
    held: &AtomicU32,
) -> ! {
    cpu.vmcb().start(start);
    cpu.registers.rsi = argument;
    cpu.set_nested_map(machine.memory.waiting);
    cpu.flush();
    cpu.hold_events();
    held.fetch_add(1, Ordering::Release);
    loop {
        match next_exit(machine, &mut cpu) {
            Exit::Hypercall => break,
            exit => answer(machine, &mut cpu, exit),
        }
    }
    cpu.skip();
    join(machine, &mut cpu);
    serve(machine, cpu)
}

/// Gives the CPU all that is root's.
fn join(machine: &Machine, cpu: &mut RootCpu) {
    cpu.set_nested_map(machine.memory.root.lock().top());
    cpu.flush();
    machine.memory.epochs.online(cpu.index());
}

fn serve(machine: &Machine, mut cpu: RootCpu) -> ! {
    loop {
        let exit = next_exit(machine, &mut cpu);
        answer(machine, &mut cpu, exit);
    }
}

/// Runs VM 0 until it exits.
fn next_exit(machine: &Machine, cpu: &mut RootCpu) -> Exit {
    let exit = cpu.enter();
    if panic::happened() {
        arch::halt();
    }
    trace::exit(cpu.index(), 0, cpu.index() as u8, cpu.vmcb().raw_exit());
    #[cfg(feature = "fault-injection")]
    crate::fault::after_exit();
    if let Some(counters) = machine.root_counters.get(cpu.index()) {
        counters.exit(exit.kind());
    }
    exit
}

fn answer(machine: &Machine, cpu: &mut RootCpu, exit: Exit) {
    match exit {
        Exit::Cpuid => answer_cpuid(cpu),
        Exit::Msr { is_write } => answer_msr(cpu, &machine.facts.types, is_write),
        Exit::Port(access) => answer_port(cpu, access),
        Exit::Hypercall => answer_hypercall(machine, cpu),
        // INVD would drop what the microvisor wrote, too.
        Exit::CacheFlush => {
            arch::write_back_caches();
            cpu.skip();
        }
        // What is protected does not exist for root.
        Exit::NestedFault(_) => cpu.vmcb().inject(Event::GENERAL_PROTECTION),
        // Another CPU of root's cannot reset this one from under the microvisor.
        Exit::Init => match cpu.consume_init() {
            Some(true) => cpu.vmcb().inject(Event::Nmi),
            Some(false) => {}
            None => stop(cpu),
        },
        Exit::Forbidden => cpu.vmcb().inject(Event::INVALID_OPCODE),
        // As without the microvisor: Linux resets the machine so, when all else fails.
        Exit::Shutdown => {
            console::last_words(format_args!(
                "microvisor: VM 0: triple fault on CPU {} at rip {:#x}; resetting the machine\n",
                cpu.index(),
                cpu.vmcb().rip(),
            ));
            arch::shut_down()
        }
        _ => stop(cpu),
    }
}

fn stop(cpu: &mut RootCpu) -> ! {
    let raw = cpu.vmcb().raw_exit();
    let (info1, info2) = raw.info;
    console::last_words(format_args!(
        "microvisor: VM 0 stopped on CPU {}: no answer to exit {:#x} ({info1:#x}, {info2:#x}) at rip {:#x}\n",
        arch::apic_id(),
        raw.code,
        raw.rip,
    ));
    arch::halt()
}

fn answer_cpuid(cpu: &mut RootCpu) {
    let (leaf, subleaf) = (cpu.vmcb().rax() as u32, cpu.registers.rcx as u32);
    let facts = cpuid::Facts {
        features: features(),
        cr4: cpu.vmcb().cr4(),
    };
    let answer = cpuid::answer(leaf, subleaf, arch::cpuid(leaf, subleaf), &facts);
    cpu.vmcb().set_rax(answer.eax.into());
    cpu.registers.rbx = answer.ebx.into();
    cpu.registers.rcx = answer.ecx.into();
    cpu.registers.rdx = answer.edx.into();
    cpu.skip();
}

/// `cpuid::features`, from what SVM has here.
pub fn features() -> u32 {
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
fn answer_msr(cpu: &mut RootCpu, types: &MemoryTypes, is_write: bool) {
    const EFER: u32 = 0xc000_0080;
    /// Bits of EFER that root may set besides AutoIBRS: SCE, LME, LMA, NXE, FFXSR, TCE. Others are SVM's or
    /// new.
    const EFER_ALLOWED: u64 = 0xcd01;
    let msr = cpu.registers.rcx as u32;
    let value = cpu.vmcb().rax() & 0xffff_ffff | cpu.registers.rdx << 32;
    match (msr, is_write) {
        (EFER, true) => {
            let vmcb = cpu.vmcb();
            let allowed = EFER_ALLOWED | svm::automatic_ibrs();
            match write_efer(allowed, vmcb.efer(), value, vmcb.cr0()) {
                Ok(value) => vmcb.set_efer(value),
                Err(GeneralProtection) => return vmcb.inject(Event::GENERAL_PROTECTION),
            }
        }
        (EFER, false) => {
            let value = cpu.vmcb().efer();
            cpu.vmcb().set_rax(value & 0xffff_ffff);
            cpu.registers.rdx = value >> 32;
        }
        (_, true) => match msr::write(msr, value, types, arch::try_read_msr) {
            Write::Do(value) => {
                if !cpu.write_msr(msr, value) {
                    return cpu.vmcb().inject(Event::GENERAL_PROTECTION);
                }
            }
            Write::Ignore => {}
            Write::Fault => return cpu.vmcb().inject(Event::GENERAL_PROTECTION),
        },
        // Without SVM in CPUID none of the others exists.
        (_, false) => return cpu.vmcb().inject(Event::GENERAL_PROTECTION),
    }
    cpu.skip();
}

/// A port of root's, whose writes go through the gate of address line 20, byte by byte.
fn answer_port(cpu: &mut RootCpu, access: PortAccess) {
    if access.string {
        return cpu.vmcb().inject(Event::GENERAL_PROTECTION);
    }
    let ports = (0..u16::from(access.size)).map(|n| access.port.wrapping_add(n));
    let rax = cpu.vmcb().rax();
    if access.is_write {
        let mut gate = a20::GATE.lock();
        for (port, byte) in ports.zip(rax.to_le_bytes()) {
            if let Some(byte) = gate.write(port, byte) {
                port::write_u8(port, byte);
            }
        }
    } else {
        let mut bytes = [0; 8];
        for (port, byte) in ports.zip(&mut bytes) {
            *byte = port::read_u8(port);
        }
        let value = run::port_value(rax, u64::from_le_bytes(bytes), access.size);
        cpu.vmcb().set_rax(value);
    }
    cpu.skip();
}

fn answer_hypercall(machine: &Machine, cpu: &mut RootCpu) {
    let index = cpu.index();
    if let Some(counters) = machine.root_counters.get(index) {
        counters.run();
    }
    let registers = &cpu.registers;
    let args = [
        registers.rdi,
        registers.rsi,
        registers.rdx,
        registers.r[2],
        registers.r[0],
    ];
    let call = Call {
        number: cpu.vmcb().rax(),
        args,
        cpl: cpu.vmcb().cpl(),
    };
    let answer = hypercall::dispatch(machine, &mut cpu.cpu, arch::tsc(), &call);
    if answer.flush {
        cpu.flush();
    }
    cpu.vmcb().set_rax(answer.status.raw() as u64);
    cpu.registers.rdx = answer.value;
    cpu.skip();
    if cpu.cpu.take_machine_check() {
        cpu.vmcb().inject(Event::MACHINE_CHECK);
    }
}
