//! The root partition on one CPU: runs VM 0, and answers its few exits.

use core::ops::Range;
use core::sync::atomic::{AtomicU32, Ordering};

use crate::arch::exit::{Event, Exit, PortAccess};
use crate::arch::hw::{Register, Root};
use crate::arch::{self, paging};
use crate::hypercall::{self, Call};
use crate::machine::{Machine, MemoryTypes};
use crate::memory::Frame;
use crate::panic;
use crate::partition::run;
use crate::trace::Trace;
use crate::vcpu::msr::write_efer;
use crate::{console, counters};
use msr::Write;

mod a20;
mod cpuid;
mod msr;

/// Runs VM 0 on the boot CPU for good. The other CPUs have left the start-up code, which lies at `startup`: this CPU
/// leaves it, too, and scrubs it. Root's map has its frames.
#[inline(never)]
pub fn run(machine: &Machine, mut cpu: Root, startup: Range<Frame>) -> ! {
    paging::enter();
    for number in startup.start.number()..startup.end.number() {
        machine.memory.map.zero(Frame::new(number));
    }
    join(machine, &mut cpu);
    serve(machine, cpu)
}

/// Runs VM 0 on a CPU that it has not started: until the CPU makes a hypercall it reaches only the pages
/// where it waits. Adds 1 to `held` once neither INIT nor an NMI can reach it outside of guest mode.
#[inline(never)]
pub fn wait(machine: &Machine, mut cpu: Root, held: &AtomicU32) -> ! {
    paging::enter();
    cpu.set_nested_map(machine.memory.waiting);
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

/// Gives the CPU root's whole memory.
fn join(machine: &Machine, cpu: &mut Root) {
    cpu.set_nested_map(machine.memory.root.lock().top());
    machine.memory.epochs.online(cpu.index());
}

fn serve(machine: &Machine, mut cpu: Root) -> ! {
    loop {
        let exit = next_exit(machine, &mut cpu);
        answer(machine, &mut cpu, exit);
    }
}

/// Runs VM 0 until it exits.
fn next_exit(machine: &Machine, cpu: &mut Root) -> Exit {
    let exit = cpu.enter();
    if panic::happened() {
        arch::halt();
    }
    Trace::new(cpu.index(), 0, cpu.index() as u8).exit(cpu.raw_exit());
    #[cfg(feature = "fault-injection")]
    crate::fault::after_exit();
    if let Some(counters) = machine.root_counters.get(cpu.index()) {
        counters.exit(counters::kind(exit));
    }
    exit
}

fn answer(machine: &Machine, cpu: &mut Root, exit: Exit) {
    match exit {
        Exit::Cpuid => answer_cpuid(machine, cpu),
        Exit::Msr { is_write } => answer_msr(cpu, &machine.facts.types, is_write),
        Exit::Port(access) => answer_port(cpu, access),
        Exit::Hypercall => answer_hypercall(machine, cpu),
        // INVD would drop what the microvisor wrote, too.
        Exit::CacheFlush => {
            arch::write_back_caches();
            cpu.skip();
        }
        // Protected memory does not exist for root.
        Exit::NestedFault => cpu.inject(Event::GENERAL_PROTECTION),
        // Another CPU of root's cannot reset this one from under the microvisor.
        Exit::Init => match cpu.consume_init() {
            Some(true) => cpu.inject(Event::Nmi),
            Some(false) => {}
            None => stop(cpu),
        },
        Exit::Forbidden => cpu.inject(Event::INVALID_OPCODE),
        // As without the microvisor: Linux resets the machine so, when all else fails.
        Exit::Shutdown => {
            console::last_words(format_args!(
                "microvisor: VM 0: triple fault on CPU {} at rip {:#x}; resetting the machine\n",
                cpu.index(),
                cpu.read(Register::Rip),
            ));
            arch::shut_down()
        }
        _ => stop(cpu),
    }
}

fn stop(cpu: &mut Root) -> ! {
    let raw = cpu.raw_exit();
    let (info1, info2) = raw.info;
    console::last_words(format_args!(
        "microvisor: VM 0 stopped on CPU {}: no answer to exit {:#x} ({info1:#x}, {info2:#x}) at rip {:#x}\n",
        arch::apic_id(),
        raw.code,
        raw.rip,
    ));
    arch::halt()
}

fn answer_cpuid(machine: &Machine, cpu: &mut Root) {
    let leaf = cpu.read(Register::Rax) as u32;
    let subleaf = cpu.read(Register::Rcx) as u32;
    let facts = cpuid::Facts {
        features: machine.facts.cpu.features,
        cr4: cpu.read(Register::Cr4),
    };
    let answer = cpuid::answer(leaf, subleaf, arch::cpuid(leaf, subleaf), &facts);
    cpu.write(Register::Rax, answer.eax.into());
    cpu.write(Register::Rbx, answer.ebx.into());
    cpu.write(Register::Rcx, answer.ecx.into());
    cpu.write(Register::Rdx, answer.edx.into());
    cpu.skip();
}

/// EFER is root's but for SVME; the registers of SVM read as absent.
#[inline(never)]
fn answer_msr(cpu: &mut Root, types: &MemoryTypes, is_write: bool) {
    const EFER: u32 = 0xc000_0080;
    let number = cpu.read(Register::Rcx) as u32;
    let value = cpu.read(Register::Rax) & 0xffff_ffff | cpu.read(Register::Rdx) << 32;
    let is_done = match (number, is_write) {
        (EFER, true) => write_efer(
            arch::root_efer(),
            cpu.read(Register::Efer),
            value,
            cpu.read(Register::Cr0),
        )
        .map(|value| cpu.write(Register::Efer, value))
        .is_ok(),
        (EFER, false) => {
            let value = cpu.read(Register::Efer);
            cpu.write(Register::Rax, value & 0xffff_ffff);
            cpu.write(Register::Rdx, value >> 32);
            true
        }
        (_, true) => match msr::write(number, value, types, arch::try_read_msr) {
            Write::Do(value) => cpu.write_msr(number, value),
            Write::Ignore => true,
            Write::Fault => {
                log::debug!("a write of register {number:#x} is refused: {value:#x}");
                false
            }
        },
        // Without SVM in CPUID none of the others exists.
        (_, false) => false,
    };
    if is_done {
        cpu.skip();
    } else {
        cpu.inject(Event::GENERAL_PROTECTION);
    }
}

/// A port of root's, whose writes go through the gate of address line 20, byte by byte.
fn answer_port(cpu: &mut Root, access: PortAccess) {
    if access.string {
        return cpu.inject(Event::GENERAL_PROTECTION);
    }
    let ports = (0..u16::from(access.size)).map(|n| access.port.wrapping_add(n));
    let rax = cpu.read(Register::Rax);
    if access.is_write {
        let mut gate = a20::GATE.lock();
        for (port, byte) in ports.zip(rax.to_le_bytes()) {
            if let Some(byte) = gate.write(port, byte) {
                arch::write_port(port, byte);
            }
        }
    } else {
        let mut bytes = [0; 8];
        for (port, byte) in ports.zip(&mut bytes) {
            *byte = arch::read_port(port);
        }
        let value = run::port_value(rax, u64::from_le_bytes(bytes), access.size);
        cpu.write(Register::Rax, value);
    }
    cpu.skip();
}

fn answer_hypercall(machine: &Machine, cpu: &mut Root) {
    let index = cpu.index();
    if let Some(counters) = machine.root_counters.get(index) {
        counters.run();
    }
    let args = [
        cpu.read(Register::Rdi),
        cpu.read(Register::Rsi),
        cpu.read(Register::Rdx),
        cpu.read(Register::R10),
        cpu.read(Register::R8),
    ];
    let call = Call {
        number: cpu.read(Register::Rax),
        args,
        cpl: cpu.cpl(),
    };
    let answer = hypercall::dispatch(machine, cpu.cpu(), arch::tsc(), &call);
    if answer.flush {
        cpu.flush();
    }
    cpu.write(Register::Rax, answer.status.raw() as u64);
    cpu.write(Register::Rdx, answer.value);
    cpu.skip();
    if cpu.cpu().take_machine_check() {
        cpu.inject(Event::MACHINE_CHECK);
    }
}
