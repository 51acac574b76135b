//! TLB epochs: they tell when every CPU has forgotten a translation.
//!
//! The microvisor sends no interrupts, so it cannot make another CPU flush. Instead each CPU
//! flushes on its way back into VM 0 and notes the epoch that it has seen. A translation that left a nested map
//! before epoch `e` began is in no TLB once all CPUs have passed `e`. A CPU in the middle
//! of a hypercall has not passed, so an epoch also outlasts each access that the microvisor makes
//! on behalf of a call.

use core::sync::atomic::{AtomicU64, Ordering};

use guest_proto::limits::MAX_CPUS;

const CPUS: usize = MAX_CPUS as usize;

/// The machine's epoch, and each CPU's.
#[derive(Debug)]
pub struct Epochs {
    current: AtomicU64,
    online: AtomicU64,
    passed: [AtomicU64; CPUS],
}

impl Epochs {
    /// Epoch 1, with no CPU online.
    pub const fn new() -> Self {
        Self {
            current: AtomicU64::new(1),
            online: AtomicU64::new(0),
            passed: [const { AtomicU64::new(0) }; CPUS],
        }
    }

    /// Counts a CPU from here on. It is about to enter VM 0 with root's nested map for the first time, and with an
    /// empty TLB.
    pub fn online(&self, cpu: usize) {
        if let Some(passed) = self.passed.get(cpu) {
            passed.store(self.current.load(Ordering::SeqCst), Ordering::SeqCst);
            self.online.fetch_or(1 << cpu, Ordering::SeqCst);
        }
    }

    /// Begins a new epoch after the caller changed a nested map, and returns it.
    pub fn advance(&self) -> u64 {
        self.current.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// Notes that a CPU, which has no access of the microvisor's under way, goes back into VM 0. Returns whether it
    /// must flush VM 0's translations in the same entry.
    #[must_use]
    pub fn pass(&self, cpu: usize) -> bool {
        let current = self.current.load(Ordering::SeqCst);
        self.passed
            .get(cpu)
            .is_some_and(|passed| passed.swap(current, Ordering::SeqCst) != current)
    }

    /// Returns the current epoch.
    #[cfg(test)]
    pub(crate) fn current(&self) -> u64 {
        self.current.load(Ordering::SeqCst)
    }

    /// Returns the epoch that every CPU has passed.
    pub fn passed_by_all(&self) -> u64 {
        self.passed_by(self.online.load(Ordering::SeqCst))
    }

    /// Returns the epoch that every CPU has passed, if `cpu` passes the current one now.
    pub fn passed_with(&self, cpu: usize) -> u64 {
        let online = self.online.load(Ordering::SeqCst);
        self.passed_by(online & !1_u64.checked_shl(cpu as u32).unwrap_or(0))
    }

    fn passed_by(&self, cpus: u64) -> u64 {
        let current = self.current.load(Ordering::SeqCst);
        self.passed
            .iter()
            .enumerate()
            .filter(|(cpu, _)| cpus & (1 << cpu) != 0)
            .map(|(_, passed)| passed.load(Ordering::SeqCst))
            .fold(current, u64::min)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_is_over_when_the_last_cpu_has_passed() {
        let epochs = Epochs::new();
        epochs.online(0);
        epochs.online(3);
        let e = epochs.advance();
        assert!(epochs.passed_by_all() < e);
        assert!(epochs.pass(0), "the first pass must flush");
        assert!(!epochs.pass(0), "nothing changed since");
        assert!(epochs.passed_by_all() < e);
        assert_eq!(epochs.passed_with(3), e);
        assert!(epochs.pass(3));
        assert_eq!(epochs.passed_by_all(), e);
    }

    #[test]
    fn a_cpu_that_is_not_online_holds_nothing_up() {
        let epochs = Epochs::new();
        epochs.online(0);
        let e = epochs.advance();
        assert!(epochs.pass(0));
        assert_eq!(epochs.passed_by_all(), e);
        epochs.online(1);
        assert_eq!(epochs.passed_by_all(), e);
    }

    #[test]
    fn a_cpu_number_out_of_range_is_ignored() {
        let epochs = Epochs::new();
        epochs.online(CPUS);
        assert!(!epochs.pass(CPUS));
        assert_eq!(epochs.passed_by_all(), 1);
    }
}
