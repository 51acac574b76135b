//! What ran and what came of it.

use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use crate::Result;

/// Tests at once, at most: each has a machine of several GiB.
const AT_ONCE: usize = 4;

/// Counts, and says as it goes.
#[derive(Default)]
pub(super) struct Report {
    filter: Option<String>,
    passed: usize,
    failed: Vec<String>,
    skipped: usize,
}

impl Report {
    /// One of the tests that have `filter` in their name.
    pub(super) fn new(filter: Option<String>) -> Self {
        Self {
            filter,
            ..Self::default()
        }
    }

    /// The path of the host's tests to run, if only those are asked for.
    pub(super) fn host_filter(&self) -> Option<&str> {
        self.filter
            .as_deref()
            .filter(|filter| filter.contains("::"))
    }

    /// Whether a test of that name is asked for.
    pub(super) fn wants(&self, name: &str) -> bool {
        self.filter
            .as_ref()
            .is_none_or(|filter| name.contains(filter))
    }

    /// Whether one of several tests may be, whose names begin so.
    pub(super) fn wants_some_of(&self, start: &str) -> bool {
        let begins = |filter: &String| filter.starts_with(start);
        self.wants(start) || self.filter.as_ref().is_some_and(begins)
    }

    /// Runs a test, if it is asked for.
    pub(super) fn test(&mut self, name: &str, run: impl FnOnce() -> Result<()>) {
        if self.wants(name) {
            let start = Instant::now();
            let result = run();
            self.line(
                name,
                &result,
                &format!(" ({:.0} s)", start.elapsed().as_secs_f32()),
            );
        }
    }

    /// Runs tests side by side, as many as this machine has CPUs: an emulated one uses one of them.
    pub(super) fn tests_at_once<F>(&mut self, tests: impl Iterator<Item = (String, F)> + Send)
    where
        F: FnOnce() -> Result<()>,
    {
        let threads = thread::available_parallelism().map_or(1, |count| count.get().min(AT_ONCE));
        let next = Mutex::new(tests);
        let report = Mutex::new(self);
        let one_by_one = || {
            loop {
                let test = next.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some((name, run)) = test else { break };
                let start = Instant::now();
                let result = run();
                let time = format!(" ({:.0} s)", start.elapsed().as_secs_f32());
                let mut report = report.lock().unwrap_or_else(PoisonError::into_inner);
                report.line(&name, &result, &time);
            }
        };
        thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(one_by_one);
            }
        });
    }

    /// A test has run elsewhere.
    pub(super) fn record(&mut self, name: &str, result: &Result<()>) {
        if self.wants(name) {
            self.line(name, result, "");
        }
    }

    fn line(&mut self, name: &str, result: &Result<()>, time: &str) {
        match result {
            Ok(()) => {
                println!("ok - {name}{time}");
                self.passed += 1;
            }
            Err(why) => {
                println!("not ok - {name}: {why}");
                self.failed.push(name.to_owned());
            }
        }
    }

    /// A test is not run.
    pub(super) fn skip(&mut self, name: &str, why: &str) {
        if self.wants(name) {
            println!("skipped - {name}: {why}");
            self.skipped += 1;
        }
    }

    /// Tests that have spoken for themselves.
    pub(super) fn count(&mut self, passed: usize, failed: &[&str]) {
        self.passed += passed;
        self.failed
            .extend(failed.iter().map(|&name| name.to_owned()));
    }

    /// The last lines.
    pub(super) fn close(&self) -> Result<()> {
        let (passed, failed, skipped) = (self.passed, self.failed.len(), self.skipped);
        for name in &self.failed {
            println!("failed: {name}");
        }
        println!("{passed} passed, {failed} failed, {skipped} skipped");
        if failed > 0 {
            return Err(format!("{failed} tests failed"));
        }
        if passed + skipped == 0 {
            return Err("no test has that in its name".into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Report;

    #[test]
    fn only_what_is_asked_for_counts() {
        let mut report = Report::new(Some("disk".into()));
        report.test("disk: reads", || Ok(()));
        report.test("network", || Err("never run".into()));
        report.skip("disk: fills", "takes long");
        report.skip("network: fills", "takes long");
        assert_eq!((report.passed, report.skipped), (1, 1));
        assert!(report.close().is_ok());
        report.record("disk: writes", &Err("full".into()));
        assert!(report.close().is_err());
    }

    #[test]
    fn groups_are_found_by_more_and_by_less_than_their_names() {
        let wants = |filter: &str| Report::new(Some(filter.into())).wants_some_of("test kernel");
        assert!(wants("kernel") && wants("test kernel, 2 CPUs") && !wants("disk"));
        assert!(Report::new(None).wants_some_of("test kernel"));
    }

    #[test]
    fn tests_at_once_are_all_counted() {
        let mut report = Report::new(None);
        let tests = (0..20).map(|n| {
            let run = move || if n == 7 { Err("seven".into()) } else { Ok(()) };
            (format!("number {n}"), run)
        });
        report.tests_at_once(tests);
        assert_eq!(
            (report.passed, report.failed),
            (19, vec!["number 7".into()])
        );
    }

    #[test]
    fn nothing_is_not_a_success() {
        assert!(Report::new(Some("no such".into())).close().is_err());
    }
}
