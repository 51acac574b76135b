//! The gate at which virtual CPU threads wait while their VM is held, and learn that the VM has ended.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

const HELD: u8 = 0;
const OPEN: u8 = 1;
const OVER: u8 = 2;

/// Closed at first. Whoever closes it kicks the virtual CPUs afterwards, so that those that run
/// come here.
#[derive(Debug, Default)]
pub(super) struct Gate {
    state: AtomicU8,
    /// Threads that wait here, or have left for ever.
    waiting: Mutex<usize>,
    changed: Condvar,
}

impl Gate {
    /// Waits while the VM is held; false if it is over, and the thread ends.
    pub(super) fn pass(&self) -> bool {
        match self.state.load(Ordering::Acquire) {
            OPEN => true,
            _ => self.wait(),
        }
    }

    #[cold]
    fn wait(&self) -> bool {
        let mut waiting = self.lock();
        *waiting += 1;
        self.changed.notify_all();
        loop {
            match self.state.load(Ordering::Acquire) {
                HELD => {
                    waiting = self
                        .changed
                        .wait(waiting)
                        .unwrap_or_else(PoisonError::into_inner);
                }
                OPEN => {
                    *waiting -= 1;
                    return true;
                }
                // From here on the thread counts as waiting for ever.
                _ => return false,
            }
        }
    }

    /// Lets everybody pass.
    pub(super) fn open(&self) {
        self.set(OPEN);
    }

    /// Lets nobody pass.
    pub(super) fn close(&self) {
        self.set(HELD);
    }

    /// Sends everybody away for ever.
    pub(super) fn end(&self) {
        self.set(OVER);
    }

    /// Whether the VM is over.
    pub(super) fn is_over(&self) -> bool {
        self.state.load(Ordering::Acquire) == OVER
    }

    fn set(&self, state: u8) {
        let _guard = self.lock();
        // The end is for ever, whoever else wants something at the same time.
        if self.state.load(Ordering::Acquire) != OVER {
            self.state.store(state, Ordering::Release);
        }
        self.changed.notify_all();
    }

    /// Waits until `threads` threads wait here or have left; false if that takes longer than
    /// `timeout`.
    pub(super) fn await_all(&self, threads: usize, timeout: Duration) -> bool {
        let until = Instant::now() + timeout;
        let mut waiting = self.lock();
        while *waiting < threads {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            waiting = self
                .changed
                .wait_timeout(waiting, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        true
    }

    fn lock(&self) -> MutexGuard<'_, usize> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    const TIMEOUT: Duration = Duration::from_secs(10);

    #[test]
    fn threads_are_held_go_on_and_end() {
        let gate = Gate::default();
        let turns = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while gate.pass() {
                        turns.fetch_add(1, Ordering::Relaxed);
                        std::thread::yield_now();
                    }
                });
            }
            assert!(gate.await_all(2, TIMEOUT));
            assert_eq!(turns.load(Ordering::Relaxed), 0);
            gate.open();
            while turns.load(Ordering::Relaxed) < 10 {
                std::thread::yield_now();
            }
            gate.close();
            assert!(gate.await_all(2, TIMEOUT));
            let held = turns.load(Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(5));
            assert_eq!(turns.load(Ordering::Relaxed), held);
            gate.end();
            gate.open();
            assert!(gate.is_over());
        });
        assert!(gate.await_all(2, TIMEOUT), "those that left count");
    }

    #[test]
    fn a_thread_that_does_not_come_is_not_waited_for_for_ever() {
        let gate = Gate::default();
        assert!(!gate.await_all(1, Duration::from_millis(1)));
    }
}
