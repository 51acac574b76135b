//! Threads that carry out the requests of one queue, because each of them may wait for root's
//! devices.
//!
//! A thread takes one request after the other, so that a burst of short requests costs one wakeup
//! and not one per request. Before it carries a request out, it wakes one more thread if there are
//! more requests; as that thread does the same, all of them wait at once if they have to wait.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, Scope};
use std::time::Duration;

/// Threads of one disk at most: requests that wait at once. A queue has one nevertheless if the
/// disk's other queues have all of them.
const MAX_THREADS: usize = 64;
/// A thread that had nothing to do for this long ends.
const IDLE: Duration = Duration::from_secs(10);

/// The number of threads that a disk has.
#[derive(Clone, Debug, Default)]
pub(super) struct Count(Arc<AtomicUsize>);

/// The threads of one queue, and the jobs that wait for them.
#[derive(Debug)]
pub(super) struct Crew<J> {
    state: Mutex<State<J>>,
    wake: Condvar,
    count: Count,
    name: String,
}

#[derive(Debug)]
struct State<J> {
    jobs: VecDeque<J>,
    threads: usize,
    idle: usize,
    /// A thread was started or woken and has not yet looked for a job: no need of another.
    is_coming: bool,
    is_closed: bool,
}

impl<J: Send> Crew<J> {
    /// Returns a crew without threads. They will have the name `name`.
    pub(super) fn new(name: String, count: Count) -> Self {
        Self {
            state: Mutex::new(State {
                jobs: VecDeque::new(),
                threads: 0,
                idle: 0,
                is_coming: false,
                is_closed: false,
            }),
            wake: Condvar::new(),
            count,
            name,
        }
    }

    /// Gives the job to a thread, which calls `work` with it. Returns the job if there is no thread
    /// and none can be started.
    pub(super) fn give<'scope, W>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        work: &'scope W,
        job: J,
    ) -> Option<J>
    where
        W: Fn(J) + Sync,
    {
        let mut state = self.state();
        state.jobs.push_back(job);
        self.call_thread(&mut state, scope, work);
        match state.threads {
            0 => state.jobs.pop_back(),
            _ => None,
        }
    }

    /// Has the threads end when they have carried out all jobs.
    pub(super) fn close(&self) {
        self.state().is_closed = true;
        self.wake.notify_all();
    }

    /// Wakes or starts a thread unless one is coming.
    fn call_thread<'scope, W>(
        &'scope self,
        state: &mut State<J>,
        scope: &'scope Scope<'scope, '_>,
        work: &'scope W,
    ) where
        W: Fn(J) + Sync,
    {
        if state.is_coming {
            return;
        }
        if state.idle > 0 {
            state.is_coming = true;
            self.wake.notify_one();
        } else if self
            .count
            .spawn(state.threads == 0, &self.name, scope, move || {
                self.run(scope, work);
            })
        {
            // If there can't be one more, those that there are have more to do.
            state.threads += 1;
            state.is_coming = true;
        }
    }

    fn run<'scope, W>(&'scope self, scope: &'scope Scope<'scope, '_>, work: &'scope W)
    where
        W: Fn(J) + Sync,
    {
        let mut state = self.state();
        state.is_coming = false;
        loop {
            if let Some(job) = state.jobs.pop_front() {
                if !state.jobs.is_empty() {
                    self.call_thread(&mut state, scope, work);
                }
                drop(state);
                work(job);
                state = self.state();
            } else if state.is_closed {
                break;
            } else {
                state.idle += 1;
                let waited = self.wake.wait_timeout(state, IDLE);
                let (woken, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
                state = woken;
                state.idle -= 1;
                // The wakeup and the timeout may have met.
                state.is_coming = false;
                if timeout.timed_out() && state.jobs.is_empty() {
                    break;
                }
            }
        }
        state.threads -= 1;
    }

    fn state(&self) -> MutexGuard<'_, State<J>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Count {
    /// Starts a thread if there may be one more or `anyway`. Returns whether it did.
    pub(super) fn spawn<'scope>(
        &self,
        anyway: bool,
        name: &str,
        scope: &'scope Scope<'scope, '_>,
        body: impl FnOnce() + Send + 'scope,
    ) -> bool {
        if !self.take(anyway) {
            return false;
        }
        let count = self.clone();
        let thread = Builder::new().name(name.to_owned());
        let started = thread.spawn_scoped(scope, move || {
            body();
            count.put_back();
        });
        if started.is_err() {
            self.put_back();
        }
        started.is_ok()
    }

    /// Counts one more thread, if there may be one or `anyway`.
    fn take(&self, anyway: bool) -> bool {
        let one_more = |count| (anyway || count < MAX_THREADS).then_some(count + 1);
        let updated = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more);
        updated.is_ok()
    }

    /// Counts one thread less.
    fn put_back(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Barrier, mpsc};
    use std::thread;

    use super::*;

    #[test]
    fn as_many_jobs_wait_at_once_as_a_disk_may_have_threads() {
        let together = Barrier::new(MAX_THREADS);
        let crew = Crew::new("crew".to_owned(), Count::default());
        let work = |()| {
            together.wait();
        };
        thread::scope(|scope| {
            for () in [(); 2 * MAX_THREADS] {
                assert!(crew.give(scope, &work, ()).is_none());
            }
            crew.close();
        });
        assert_eq!(crew.state().threads, 0);
        assert_eq!(crew.count.0.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn one_thread_does_what_comes_one_after_the_other() {
        let crew = Crew::new("crew".to_owned(), Count::default());
        let (sender, receiver) = mpsc::channel();
        let work = |n: u32| sender.send((n, thread::current().id())).unwrap();
        thread::scope(|scope| {
            let mut ids = Vec::new();
            for n in 0..10 {
                assert!(crew.give(scope, &work, n).is_none());
                let (done, id) = receiver.recv().unwrap();
                assert_eq!(done, n);
                ids.push(id);
                while crew.state().idle == 0 {
                    thread::yield_now();
                }
            }
            ids.dedup();
            assert_eq!(ids.len(), 1);
            crew.close();
        });
    }

    #[test]
    fn a_queue_has_a_thread_although_the_disk_has_all() {
        let count = Count::default();
        while count.take(false) {}
        let crew = Crew::new("crew".to_owned(), count);
        let (sender, receiver) = mpsc::channel();
        let work = |()| sender.send(()).unwrap();
        thread::scope(|scope| {
            assert!(crew.give(scope, &work, ()).is_none());
            receiver.recv().unwrap();
            crew.close();
        });
    }
}
