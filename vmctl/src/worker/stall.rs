//! News of the devices' threads for the device thread: root can't carry out a request, or not in
//! time.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::event::{Event, wait_any};

/// The requests of one VM that root has not carried out.
#[derive(Debug)]
pub struct Stalls {
    state: Mutex<State>,
    /// Wakes the device thread.
    wake: Arc<Event>,
}

#[derive(Debug, Default)]
struct State {
    news: VecDeque<News>,
    waiting: Vec<Arc<Event>>,
    /// Requests that are late, less those that have ended: the end of one may be told first.
    late: isize,
}

/// Work for the device thread. Reasons name the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// Stop the VM until the user resumes it.
    Pause(String),
    /// Show that a request is late.
    Late(String),
    /// Show that no request is late any more.
    OnTime,
    /// End the VM.
    Kill(String),
}

impl Stalls {
    /// Returns the state without requests. News signal `wake`.
    pub fn new(wake: Arc<Event>) -> Self {
        Self {
            state: Mutex::default(),
            wake,
        }
    }

    /// Stops the VM and waits until it is resumed. Returns false if `stop` was signalled before.
    pub fn wait(&self, stop: &Event, reason: String) -> bool {
        let Ok(resumed) = Event::new().map(Arc::new) else {
            return false;
        };
        let mut state = self.state();
        state.waiting.push(Arc::clone(&resumed));
        self.tell(state, News::Pause(reason));
        wait_any(&[stop.as_fd(), resumed.as_fd()], None) && !stop.is_signalled()
    }

    /// Stops the VM. The caller does not wait.
    pub fn pause(&self, reason: String) {
        self.tell(self.state(), News::Pause(reason));
    }

    /// Ends the VM.
    pub fn kill(&self, reason: String) {
        self.tell(self.state(), News::Kill(reason));
    }

    /// Says that a request is late. `is_first` is false when the same request was late already.
    pub fn late(&self, reason: String, is_first: bool) {
        let mut state = self.state();
        state.late += isize::from(is_first);
        let news = match state.late > 0 {
            true => News::Late(reason),
            false => News::OnTime,
        };
        self.tell(state, news);
    }

    /// Says that a request that was late has ended.
    pub fn ended(&self) {
        let mut state = self.state();
        state.late -= 1;
        if state.late <= 0 {
            self.tell(state, News::OnTime);
        }
    }

    /// Takes the oldest news.
    pub fn take_news(&self) -> Option<News> {
        self.state().news.pop_front()
    }

    /// Ends the wait of all threads, and forgets the reasons to stop the VM that were not taken: a VM
    /// that is resumed must not stop for them.
    pub fn resume(&self) {
        let mut state = self.state();
        state.news.retain(|news| !matches!(news, News::Pause(_)));
        for waiting in state.waiting.drain(..) {
            waiting.signal();
        }
    }

    fn tell(&self, mut state: MutexGuard<'_, State>, news: News) {
        state.news.push_back(news);
        drop(state);
        self.wake.signal();
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
            wait_any(&[wake.as_fd()], None);
            wake.clear();
            assert_eq!(stalls.take_news(), Some(News::Pause("full".to_owned())));
            assert_eq!(stalls.take_news(), None);
            stalls.resume();
            assert!(waiting.join().unwrap());

            // The user resumes the VM before the device thread has stopped it.
            let waiting = scope.spawn(|| stalls.wait(&stop, "full".to_owned()));
            wait_any(&[wake.as_fd()], None);
            wake.clear();
            stalls.resume();
            assert!(waiting.join().unwrap());
            assert_eq!(stalls.take_news(), None, "no thread waits");

            let waiting = scope.spawn(|| stalls.wait(&stop, "full".to_owned()));
            wait_any(&[wake.as_fd()], None);
            stop.signal();
            assert!(!waiting.join().unwrap());
        });
    }

    #[test]
    fn requests_are_on_time_when_the_last_one_that_was_late_has_ended() {
        let stalls = Stalls::new(Arc::new(Event::new().unwrap()));
        let late = |reason: &str| Some(News::Late(reason.to_owned()));
        stalls.late("a".to_owned(), true);
        stalls.late("b".to_owned(), true);
        stalls.late("b again".to_owned(), false);
        stalls.ended();
        for news in [late("a"), late("b"), late("b again"), None] {
            assert_eq!(stalls.take_news(), news);
        }
        stalls.resume();
        stalls.ended();
        assert_eq!(stalls.take_news(), Some(News::OnTime));
        // The end of the request is told first.
        stalls.ended();
        stalls.late("c".to_owned(), true);
        assert_eq!(stalls.take_news(), Some(News::OnTime));
        assert_eq!(stalls.take_news(), Some(News::OnTime));
    }
}
