//! Starts the other CPUs by INIT and start-up interrupts (SDM vol. 3 §9.4.4).

use core::sync::atomic::{AtomicU32, Ordering};

use super::low;
use crate::arch;
use crate::arch::memory::{self, BootMemory};
use crate::memory::Hpa;

const ICR: u64 = 0x300;
const ALL_BUT_SELF: u32 = 0b11 << 18;
const ASSERT: u32 = 1 << 14;
const INIT: u32 = 0b101 << 8;
const STARTUP: u32 = 0b110 << 8;

/// CPUs that wait in the mailbox.
static ARRIVED: AtomicU32 = AtomicU32::new(0);

/// Waits in the multiprocessor wakeup mailbox (ACPI 6.4 §5.2.12.19) until VM 0 wants this CPU;
/// where it is to begin. `None` if there is no mailbox, which cannot be.
pub(super) fn wait(apic_id: u32) -> Option<u64> {
    let map = memory::map();
    let command = map.atomic32(Hpa::new(low::MAILBOX))?;
    let wanted = map.atomic32(Hpa::new(low::MAILBOX + 4))?;
    let vector = map.atomic(Hpa::new(low::MAILBOX + 8))?;
    ARRIVED.fetch_add(1, Ordering::Release);
    loop {
        // The upper half of the command's word is reserved.
        if command.load(Ordering::Acquire) as u16 == 1 && wanted.load(Ordering::Relaxed) == apic_id
        {
            let vector = vector.load(Ordering::Relaxed);
            // Tells the waker that the command was taken.
            command.store(0, Ordering::Release);
            return Some(vector);
        }
        core::hint::spin_loop();
    }
}

/// Starts every other CPU of `expected`, this one included; how many run.
pub(super) fn start_others(memory: &mut BootMemory, trampoline: &[u8], expected: u32) -> u32 {
    if !memory.write(low::TRAMPOLINE, trampoline) {
        return 1;
    }
    memory.write_apic(ICR, ALL_BUT_SELF | ASSERT | INIT);
    pause();
    let page = (low::TRAMPOLINE >> 12) as u32;
    memory.write_apic(ICR, ALL_BUT_SELF | ASSERT | STARTUP | page);
    // A second or more for one that does not come; a machine that is emulated may be slow.
    let wanted = u64::from(expected.saturating_sub(1)).min(super::OTHERS);
    let arrived = || ARRIVED.load(Ordering::Acquire);
    for _ in 0..100 {
        if u64::from(arrived()) >= wanted {
            break;
        }
        pause();
    }
    arrived() + 1
}

/// Some 10 ms or more: the manual's wait after INIT.
fn pause() {
    /// Ticks of a 5 GHz TSC in 20 ms.
    const TICKS: u64 = 100_000_000;
    let end = arch::tsc().wrapping_add(TICKS);
    while (end.wrapping_sub(arch::tsc()) as i64) > 0 {
        core::hint::spin_loop();
    }
}
