//! Device threads that wait until the user resumes the VM, because root can't carry out a request.

use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::event::{Event, wait_any};

/// The waiting threads of one VM.
#[derive(Debug)]
pub struct Stalls {
    state: Mutex<State>,
    /// Wakes the device thread, which stops the VM.
    wake: Arc<Event>,
}

#[derive(Debug, Default)]
struct State {
    reason: Option<String>,
    waiting: Vec<Arc<Event>>,
}

impl Stalls {
    /// Returns the state without waiting threads. A thread that begins to wait signals `wake`.
    pub fn new(wake: Arc<Event>) -> Self {
        Self {
            state: Mutex::default(),
            wake,
        }
    }

    /// Waits until the VM is resumed. Returns false if `stop` was signalled before.
    pub fn wait(&self, stop: &Event, reason: String) -> bool {
        let Ok(resumed) = Event::new().map(Arc::new) else {
            return false;
        };
        let mut state = self.state();
        state.waiting.push(Arc::clone(&resumed));
        state.reason = Some(reason);
        drop(state);
        self.wake.signal();
        wait_any(&[stop.as_fd(), resumed.as_fd()]) && !stop.is_signalled()
    }

    /// Takes the reason why a thread has begun to wait.
    pub fn take_reason(&self) -> Option<String> {
        self.state().reason.take()
    }

    /// Ends the wait of all threads, and forgets a reason that was not taken: a VM that is resumed must
    /// not stop for it.
    pub fn resume(&self) {
        let State { waiting, .. } = std::mem::take(&mut *self.state());
        for waiting in waiting {
            waiting.signal();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_waits_until_it_is_resumed_or_stopped() {
        let wake = Arc::new(Event::new().unwrap());
        let stalls = Stalls::new(Arc::clone(&wake));
        let stop = Event::new().unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| stalls.wait(&stop, "full".to_owned()));
            wait_any(&[wake.as_fd()]);
            wake.clear();
            assert_eq!(stalls.take_reason().as_deref(), Some("full"));
            assert_eq!(stalls.take_reason(), None);
            stalls.resume();
            assert!(waiting.join().unwrap());

            // The user resumes the VM before the device thread has stopped it.
            let waiting = scope.spawn(|| stalls.wait(&stop, "full".to_owned()));
            wait_any(&[wake.as_fd()]);
            wake.clear();
            stalls.resume();
            assert!(waiting.join().unwrap());
            assert_eq!(stalls.take_reason(), None, "no thread waits");

            let waiting = scope.spawn(|| stalls.wait(&stop, "full".to_owned()));
            wait_any(&[wake.as_fd()]);
            stop.signal();
            assert!(!waiting.join().unwrap());
        });
    }
}
