//! The requests of one queue that threads carry out, and how old they are.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::request::Request;

/// The requests that are carried out. Each of them has an answer once: from the thread that carries
/// it out, or from the one that gives it up.
#[derive(Debug)]
pub(super) struct Flights {
    timeout: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    flights: BTreeMap<Id, Flight>,
    next: Id,
}

#[derive(Debug)]
struct Flight {
    request: Arc<Request>,
    since: Instant,
    /// When the request is late, or late again. `None` while root is not what it waits for.
    due: Option<Instant>,
    was_late: bool,
    is_given_up: bool,
}

/// A request that is carried out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Id(u64);

/// A request that root has not carried out in time.
#[derive(Debug)]
pub(super) struct Late {
    pub(super) id: Id,
    pub(super) request: Arc<Request>,
    pub(super) age: Duration,
    /// The request was not late before.
    pub(super) is_first: bool,
}

/// The end of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ended {
    pub(super) was_late: bool,
    /// The driver has its answer already.
    pub(super) is_given_up: bool,
}

impl Flights {
    /// Returns no requests. Each one will be late after `timeout`.
    pub(super) fn new(timeout: Duration) -> Self {
        Self {
            timeout,
            state: Mutex::default(),
        }
    }

    /// Counts a request's age from now on.
    pub(super) fn begin(&self, request: &Arc<Request>) -> Id {
        let now = Instant::now();
        let flight = Flight {
            request: Arc::clone(request),
            since: now,
            due: Some(now + self.timeout),
            was_late: false,
            is_given_up: false,
        };
        let mut state = self.state();
        let id = state.next;
        state.next = Id(id.0 + 1);
        state.flights.insert(id, flight);
        id
    }

    /// Does not count the time until [`Self::go_on`]. Returns false if the request was given up.
    pub(super) fn hold(&self, id: Id) -> bool {
        let mut state = self.state();
        let flight = state.flights.get_mut(&id);
        flight.is_none_or(|flight| {
            flight.due = None;
            !flight.is_given_up
        })
    }

    /// Counts a request's age anew.
    pub(super) fn go_on(&self, id: Id) {
        if let Some(flight) = self.state().flights.get_mut(&id) {
            flight.since = Instant::now();
            flight.due = Some(flight.since + self.timeout);
        }
    }

    /// Forgets a request that has ended.
    pub(super) fn end(&self, id: Id) -> Ended {
        let flight = self.state().flights.remove(&id);
        Ended {
            was_late: flight.as_ref().is_some_and(|flight| flight.was_late),
            is_given_up: flight.is_some_and(|flight| flight.is_given_up),
        }
    }

    /// Gives a request up. Returns false if there is no need any more.
    pub(super) fn give_up(&self, id: Id) -> bool {
        let mut state = self.state();
        let flight = state.flights.get_mut(&id);
        flight.is_some_and(|flight| {
            let is_late = flight.due.take().is_some();
            flight.is_given_up |= is_late;
            is_late
        })
    }

    /// Returns the requests that are late, and when the next one will be.
    pub(super) fn late(&self, now: Instant) -> (Vec<Late>, Option<Instant>) {
        let mut late = Vec::new();
        let mut next = None;
        for (&id, flight) in &mut self.state().flights {
            let Some(due) = &mut flight.due else { continue };
            if *due <= now {
                *due = now + self.timeout;
                late.push(Late {
                    id,
                    request: Arc::clone(&flight.request),
                    age: now - flight.since,
                    is_first: !flight.was_late,
                });
                flight.was_late = true;
            }
            next = next.min(Some(*due)).or(Some(*due));
        }
        (late, next)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Display for Late {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let age = self.age.as_secs_f64();
        write!(f, "{} has had no answer for {age:.1} s", self.request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::virtio::block::request::Operation;
    use crate::worker::virtio::buffers::Buffers;

    const TIMEOUT: Duration = Duration::from_secs(30);

    fn flights() -> (Flights, Id) {
        let flights = Flights::new(TIMEOUT);
        let id = flights.begin(&Arc::new(Request {
            head: 0,
            operation: Ok(Operation::Flush),
            status: Buffers::default(),
        }));
        (flights, id)
    }

    #[test]
    fn a_request_is_late_each_time_that_the_timeout_has_passed() {
        let (flights, id) = flights();
        let start = Instant::now();
        assert!(flights.late(start).0.is_empty());
        let (late, next) = flights.late(start + TIMEOUT);
        assert_eq!(late[0].to_string(), "a flush has had no answer for 30.0 s");
        assert!(late[0].is_first);
        assert_eq!(next, Some(start + 2 * TIMEOUT));
        assert!(flights.late(start + TIMEOUT).0.is_empty());
        let (late, _) = flights.late(start + 2 * TIMEOUT);
        assert_eq!(late[0].to_string(), "a flush has had no answer for 60.0 s");
        assert!(!late[0].is_first);
        let ended = flights.end(id);
        assert!(ended.was_late && !ended.is_given_up);
        assert_eq!(flights.late(start + 3 * TIMEOUT).1, None);
    }

    #[test]
    fn a_request_that_waits_for_the_user_is_not_late() {
        let (flights, id) = flights();
        assert!(flights.hold(id));
        let much_later = Instant::now() + 10 * TIMEOUT;
        assert!(flights.late(much_later).0.is_empty());
        assert!(!flights.give_up(id));
        flights.go_on(id);
        assert_eq!(flights.late(much_later).0.len(), 1);
    }

    #[test]
    fn a_request_is_answered_once() {
        let (flights, id) = flights();
        assert!(flights.give_up(id));
        assert!(!flights.give_up(id));
        assert!(!flights.hold(id), "its data must not reach the guest");
        assert!(flights.end(id).is_given_up);
        assert!(!flights.give_up(id), "it has ended");
    }
}
