//! Starts the other CPUs by INIT and start-up interrupts (SDM vol. 3 §9.4.4). They wait for VM 0 in guest
//! mode.
//!
//! VM 0 can send INIT and start-up interrupts to every CPU. A CPU that waits in the microvisor with GIF = 1
//! would obey them, and run VM 0's code outside of guest mode. So every CPU is on its way into guest mode
//! before the boot CPU enters VM 0, and polls the multiprocessor wakeup mailbox (ACPI 6.4 §5.2.12.19) as a CPU
//! of VM 0's, in memory of VM 0's. When the mailbox calls it, it makes a hypercall, and gets the rest of VM 0's
//! memory.

use core::sync::atomic::{AtomicU32, Ordering};

use guest_proto::limits::MAX_CPUS;

use super::memory::BootMemory;
use super::{Error, low};
use crate::arch;
use crate::arch::boot::descriptors::interrupt_gate;

const ICR: u64 = 0x300;
const ALL_BUT_SELF: u32 = 0b11 << 18;
const ASSERT: u32 = 1 << 14;
const INIT: u32 = 0b101 << 8;
const STARTUP: u32 = 0b110 << 8;

/// Code that boot copies into low memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Code {
    /// Real-mode code where another CPU starts.
    pub(super) trampoline: &'static [u8],
    /// 64-bit code of a CPU that waits for VM 0: an NMI handler, and at [`WAIT_LOOP`] the loop, which finds
    /// the APIC ID of its CPU in RSI.
    pub(super) wait: &'static [u8],
    /// Other CPUs that have executed `trampoline`.
    pub(super) started: &'static AtomicU32,
}

/// Offset of the loop in [`Code::wait`].
pub(super) const WAIT_LOOP: u64 = 16;

/// Starts every other CPU. Returns how many CPUs run. `listed` is the MADT's count, which includes this CPU.
///
/// A CPU that does not start now would obey VM 0's start-up interrupts later, so it is a reason not to boot.
pub(super) fn start_others(
    memory: &mut BootMemory,
    code: &Code,
    listed: u32,
) -> Result<u32, Error> {
    if u64::from(listed) > MAX_CPUS {
        return Err(Error::TooManyCpus(listed));
    }
    /// VM 0's first code segment.
    const CODE: u16 = 0x10;
    let [gate, rest] = interrupt_gate(low::WAIT.as_u64(), CODE, 0).map(u64::to_le_bytes);
    let written = memory.write(low::TRAMPOLINE, code.trampoline)
        && memory.zero(low::IDT, 4096)
        && memory.write(low::IDT.offset(NMI_GATE), &gate)
        && memory.write(low::IDT.offset(NMI_GATE + 8), &rest)
        && memory.write(low::WAIT, code.wait);
    if !written {
        return Err(Error::NoLowMemory);
    }
    memory.write_apic(ICR, ALL_BUT_SELF | ASSERT | INIT);
    pause(SHORT);
    let page = low::TRAMPOLINE.frame().number() as u32;
    memory.write_apic(ICR, ALL_BUT_SELF | ASSERT | STARTUP | page);
    let running = || code.started.load(Ordering::Acquire) + 1;
    let all = eventually(|| running() >= listed);
    // The interrupts reach every CPU, also one that the MADT does not list.
    pause(SHORT);
    let running = running();
    if u64::from(running) > MAX_CPUS {
        return Err(Error::TooManyCpus(running));
    }
    if !all {
        return Err(Error::MissingCpus { running, listed });
    }
    Ok(running)
}

/// Count of the other CPUs that neither INIT nor an NMI reaches outside of guest mode.
pub(super) static HELD: AtomicU32 = AtomicU32::new(0);

/// Waits until VM 0 cannot reach any other CPU outside of guest mode.
pub(super) fn wait_for_others(cpus: u32) -> Result<(), Error> {
    let running = || HELD.load(Ordering::Acquire) + 1;
    if eventually(|| running() == cpus) {
        return Ok(());
    }
    Err(Error::MissingCpus {
        running: running(),
        listed: cpus,
    })
}

/// Ticks of a 5 GHz TSC in two seconds: an emulated machine may be slow.
const LONG: u64 = 10_000_000_000;
/// Ticks of a 5 GHz TSC in 200 µs. CPUs with SVM and nested paging need no time between INIT and start-up interrupt (Linux,
/// `smp_set_init_udelay`), and begin with the trampoline within microseconds.
const SHORT: u64 = 1_000_000;

/// Returns whether `done` becomes true within two seconds or more.
fn eventually(done: impl Fn() -> bool) -> bool {
    let start = arch::tsc();
    loop {
        let is_over = arch::tsc().wrapping_sub(start) > LONG;
        if done() {
            return true;
        }
        if is_over {
            return false;
        }
        core::hint::spin_loop();
    }
}

/// Waits for so many ticks of the time-stamp counter.
fn pause(ticks: u64) {
    let start = arch::tsc();
    while arch::tsc().wrapping_sub(start) < ticks {
        core::hint::spin_loop();
    }
}

/// Offset of the gate of vector 2 in an interrupt descriptor table.
const NMI_GATE: u64 = 2 * 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_cpus_are_refused_before_one_is_started() {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let code = Code {
            trampoline: &[],
            wait: &[],
            started: &STARTED,
        };
        let mut memory = BootMemory::fake(0x1000);
        let most = MAX_CPUS as u32;
        assert_eq!(
            start_others(&mut memory, &code, most + 1),
            Err(Error::TooManyCpus(most + 1))
        );
    }
}
