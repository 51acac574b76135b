//! The right to serve a queue, which passes on when its holder waits for root's devices.
//!
//! To give each request to another thread would cost as much as to carry it out from root's page
//! cache, and no call tells beforehand whether a write has to wait. So the thread that serves a
//! queue, its leader, carries short requests out by itself. A deputy looks once per [`TICK`] whether
//! the leader is still at the same request, and becomes the leader then. The deputy sleeps while
//! there are no requests.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Period at which a deputy looks at its leader.
const TICK: Duration = Duration::from_millis(1);
/// Bit of the leader's word: the leader is at work. The other bits count.
const AT_WORK: u64 = 1;
const ONE: u64 = 2;

/// The thread that leads, and its deputy.
#[derive(Debug, Default)]
pub(super) struct Lead {
    /// Changes whenever the leader begins or ends a piece of work, and when it is replaced.
    word: AtomicU64,
    /// There is a deputy, and it looks at the leader.
    is_watched: AtomicBool,
    deputy: Mutex<Deputy>,
    wake: Condvar,
}

#[derive(Debug, Default)]
struct Deputy {
    exists: bool,
    is_closed: bool,
}

impl Lead {
    /// Calls `act`, which may wait. Returns whether the caller still leads.
    ///
    /// `start_deputy` starts a thread that calls [`Self::watch`], and returns whether it did.
    pub(super) fn work(&self, start_deputy: impl FnOnce() -> bool, act: impl FnOnce()) -> bool {
        let begun = (self.word.load(Ordering::Relaxed) + ONE) | AT_WORK;
        // The deputy sets its flag before it reads the word: one of the two sees the other.
        self.word.store(begun, Ordering::SeqCst);
        if !self.is_watched.load(Ordering::SeqCst) {
            self.call_deputy(start_deputy);
        }
        act();
        let ended = begun - AT_WORK + ONE;
        self.word
            .compare_exchange(begun, ended, Ordering::SeqCst, Ordering::Relaxed)
            .is_ok()
    }

    fn call_deputy(&self, start_deputy: impl FnOnce() -> bool) {
        let mut deputy = self.deputy();
        if deputy.exists {
            self.wake.notify_one();
        } else {
            deputy.exists = start_deputy();
        }
        let exists = deputy.exists;
        self.is_watched.store(exists, Ordering::SeqCst);
    }

    /// Watches the leader. Returns true when the caller has become the leader, and false when the
    /// queue is no longer served.
    pub(super) fn watch(&self) -> bool {
        let mut seen = self.word.load(Ordering::SeqCst);
        let mut deputy = self.deputy();
        while !deputy.is_closed {
            let waited = self.wake.wait_timeout(deputy, TICK);
            deputy = waited.unwrap_or_else(PoisonError::into_inner).0;
            let word = self.word.load(Ordering::SeqCst);
            let is_stuck = word == seen && word & AT_WORK != 0;
            if is_stuck && self.replace(word) {
                deputy.exists = false;
                self.is_watched.store(false, Ordering::SeqCst);
                return true;
            }
            if word == seen && word & AT_WORK == 0 {
                self.is_watched.store(false, Ordering::SeqCst);
                while self.word.load(Ordering::SeqCst) == word && !deputy.is_closed {
                    deputy = self
                        .wake
                        .wait(deputy)
                        .unwrap_or_else(PoisonError::into_inner);
                }
                self.is_watched.store(true, Ordering::SeqCst);
            }
            seen = self.word.load(Ordering::SeqCst);
        }
        false
    }

    /// Takes the lead from a leader that is still at the work of `word`.
    fn replace(&self, word: u64) -> bool {
        let replaced = word - AT_WORK + ONE;
        self.word
            .compare_exchange(word, replaced, Ordering::SeqCst, Ordering::Relaxed)
            .is_ok()
    }

    /// Has the deputy end.
    pub(super) fn close(&self) {
        self.deputy().is_closed = true;
        self.wake.notify_all();
    }

    fn deputy(&self) -> MutexGuard<'_, Deputy> {
        self.deputy.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    #[test]
    fn a_leader_that_waits_is_replaced() {
        let lead = Lead::default();
        let (sender, receiver) = mpsc::channel();
        thread::scope(|scope| {
            let start_deputy = || {
                scope.spawn(|| sender.send(lead.watch()));
                true
            };
            // The work lasts until there is a new leader.
            let mut replaced = false;
            let leads = lead.work(start_deputy, || replaced = receiver.recv().unwrap());
            assert!(replaced && !leads);
            // The new leader needs a deputy of its own.
            let mut asked = false;
            let start_deputy = || {
                asked = true;
                false
            };
            assert!(lead.work(start_deputy, || {}));
            assert!(asked);
        });
    }

    #[test]
    fn a_deputy_sleeps_while_there_is_no_work_and_ends_with_the_service() {
        let lead = Lead::default();
        thread::scope(|scope| {
            let start_deputy = || {
                scope.spawn(|| assert!(!lead.watch()));
                true
            };
            assert!(lead.work(start_deputy, || {}));
            for _ in 0..3 {
                while lead.is_watched.load(Ordering::SeqCst) {
                    thread::yield_now();
                }
                assert!(lead.work(|| panic!("there is a deputy"), || {}));
                assert!(lead.is_watched.load(Ordering::SeqCst), "it is awake");
            }
            lead.close();
        });
    }
}
