//! Properties of a partition. Root sets them before a virtual CPU runs; running virtual CPUs read them.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Properties of one partition. Written under its control lock.
#[derive(Debug)]
pub struct Properties {
    /// TSC at creation: the zero of the guest's TSC.
    tsc_zero: AtomicU64,
    tsc_khz: AtomicU64,
    x2apic: AtomicBool,
    started: AtomicBool,
}

impl Properties {
    /// Properties of no partition: [`Properties::reset`] comes before any use.
    pub const fn new() -> Self {
        Self {
            tsc_zero: AtomicU64::new(0),
            tsc_khz: AtomicU64::new(0),
            x2apic: AtomicBool::new(false),
            started: AtomicBool::new(false),
        }
    }

    /// Sets the properties of a partition that is made at `now_tsc`.
    pub fn reset(&self, now_tsc: u64) {
        self.tsc_zero.store(now_tsc, Ordering::Relaxed);
        self.tsc_khz.store(0, Ordering::Relaxed);
        self.x2apic.store(false, Ordering::Relaxed);
        self.started.store(false, Ordering::Relaxed);
    }

    /// Returns root's TSC at which the guest's was zero.
    pub fn tsc_zero(&self) -> u64 {
        self.tsc_zero.load(Ordering::Relaxed)
    }

    /// Returns the frequency of the TSC in kHz, or 0 if it was not set.
    pub fn tsc_khz(&self) -> u64 {
        self.tsc_khz.load(Ordering::Relaxed)
    }

    /// Sets the frequency of the TSC in kHz.
    pub fn set_tsc_khz(&self, khz: u64) {
        self.tsc_khz.store(khz, Ordering::Relaxed);
    }

    /// Returns whether vLAPICs start in x2APIC mode.
    pub fn x2apic(&self) -> bool {
        self.x2apic.load(Ordering::Relaxed)
    }

    /// Sets whether vLAPICs start in x2APIC mode.
    pub fn set_x2apic(&self, on: bool) {
        self.x2apic.store(on, Ordering::Relaxed);
    }

    /// Returns whether a virtual CPU has run. After that no property can be set.
    pub fn started(&self) -> bool {
        self.started.load(Ordering::Relaxed)
    }

    /// Notes that a virtual CPU runs.
    pub fn start(&self) {
        if !self.started() {
            self.started.store(true, Ordering::Relaxed);
        }
    }
}
