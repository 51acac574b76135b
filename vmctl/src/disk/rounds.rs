//! One action of many threads, carried out by one of them for all.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use super::IoError;

/// The rounds of an action: each serves all threads that came before it began.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct State {
    is_running: bool,
    /// The result of the round that has not begun.
    next: Arc<OnceLock<Result<(), IoError>>>,
}

impl Rounds {
    /// Returns the result of a whole call of `act`, by this thread or another one, that begins after
    /// this call. All threads of a round get its result: an error that the kernel reports once
    /// reaches all whom it concerns.
    pub(super) fn join(&self, act: impl FnOnce() -> Result<(), IoError>) -> Result<(), IoError> {
        let mut state = self.state();
        let mine = Arc::clone(&state.next);
        while state.is_running {
            state = self
                .ended
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
            if let Some(result) = mine.get() {
                return result.clone();
            }
        }
        state.is_running = true;
        state.next = Arc::default();
        drop(state);
        let result = act();
        let result = mine.get_or_init(|| result).clone();
        self.state().is_running = false;
        self.ended.notify_all();
        result
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    #[test]
    fn a_round_serves_those_that_came_before_it_began_and_no_others() {
        let rounds = Rounds::default();
        let calls = AtomicU32::new(0);
        let (begun, has_begun) = mpsc::channel();
        let (go, may_go) = mpsc::channel::<()>();
        thread::scope(|scope| {
            let first_round = &rounds;
            let first = scope.spawn(move || {
                first_round.join(|| {
                    begun.send(()).unwrap();
                    may_go.recv().unwrap();
                    Err(IoError::NoSpace)
                })
            });
            has_begun.recv().unwrap();
            let late: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        rounds.join(|| {
                            calls.fetch_add(1, Ordering::Relaxed);
                            Ok(())
                        })
                    })
                })
                .collect();
            // All of them hold the next round's result once they wait for it.
            while Arc::strong_count(&rounds.state().next) < 9 {
                thread::yield_now();
            }
            go.send(()).unwrap();
            assert!(matches!(first.join().unwrap(), Err(IoError::NoSpace)));
            for late in late {
                assert!(late.join().unwrap().is_ok(), "not the first round's result");
            }
        });
        assert_eq!(calls.load(Ordering::Relaxed), 1);
    }
}
