//! Starts the other CPUs by INIT and start-up interrupts (SDM vol. 3 §9.4.4).

use core::sync::atomic::{AtomicU32, Ordering};

use super::{Image, low};
use crate::arch::{self, memory};

const ICR: u64 = 0x300;
const ALL_BUT_SELF: u32 = 0b11 << 18;
const ASSERT: u32 = 1 << 14;
const INIT: u32 = 0b101 << 8;
const STARTUP: u32 = 0b110 << 8;

/// CPUs that wait in the mailbox.
static ARRIVED: AtomicU32 = AtomicU32::new(0);

/// A CPU waits.
pub(super) fn arrived() {
    ARRIVED.fetch_add(1, Ordering::Release);
}

/// Starts every other CPU; how many CPUs run, this one included.
pub(super) fn start_others(image: &Image) -> u32 {
    let trampoline = memory::bytes(image.trampoline, image.trampoline_end - image.trampoline);
    if !trampoline.is_some_and(|code| memory::write(low::TRAMPOLINE, code)) {
        return 1;
    }
    memory::write_apic(ICR, ALL_BUT_SELF | ASSERT | INIT);
    pause();
    let page = (low::TRAMPOLINE >> 12) as u32;
    memory::write_apic(ICR, ALL_BUT_SELF | ASSERT | STARTUP | page);
    // Nothing says how many there are but the MADT, which may list CPUs that are disabled: the
    // count is what has come when none came for a while.
    let mut seen = 0;
    loop {
        pause();
        let now = ARRIVED.load(Ordering::Acquire);
        if now == seen || u64::from(now) == super::OTHERS {
            return now + 1;
        }
        seen = now;
    }
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
