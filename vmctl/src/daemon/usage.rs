//! CPU use lately, from two samples some seconds apart.

use std::collections::BTreeMap;

/// Ticks used so far, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Sample {
    /// Milliseconds since boot.
    pub(super) at_ms: u64,
    /// All CPUs, all processes.
    pub(super) busy: u64,
    /// Workers by process id.
    pub(super) workers: BTreeMap<u32, u64>,
}

/// Samples, the last but one old enough to compare with.
#[derive(Debug, Default)]
pub(super) struct Usage {
    base: Sample,
    latest: Sample,
}

/// Samples closer than this say nothing: a tick is 10 ms.
const WINDOW_MS: u64 = 1000;

impl Usage {
    /// Takes a sample in.
    pub(super) fn add(&mut self, sample: Sample) {
        if self.base.at_ms == 0 || self.latest.at_ms >= self.base.at_ms + WINDOW_MS {
            self.base = std::mem::replace(&mut self.latest, sample);
            if self.base.at_ms == 0 {
                self.base = self.latest.clone();
            }
        } else {
            self.latest = sample;
        }
    }

    /// Per cent of one CPU that a worker used; one that is new used all it has in the window.
    pub(super) fn worker(&self, pid: u32, ticks_per_second: u64) -> f32 {
        let ticks = |sample: &Sample| sample.workers.get(&pid).copied().unwrap_or(0);
        self.percent(
            ticks(&self.latest).saturating_sub(ticks(&self.base)),
            ticks_per_second,
        )
    }

    /// Per cent of one CPU that everything else used.
    pub(super) fn root(&self, ticks_per_second: u64) -> f32 {
        let busy = self.latest.busy.saturating_sub(self.base.busy);
        let guests: u64 = self
            .latest
            .workers
            .iter()
            .map(|(pid, &ticks)| {
                ticks.saturating_sub(self.base.workers.get(pid).copied().unwrap_or(0))
            })
            .sum();
        self.percent(busy.saturating_sub(guests), ticks_per_second)
    }

    fn percent(&self, ticks: u64, ticks_per_second: u64) -> f32 {
        let elapsed_ms = self.latest.at_ms.saturating_sub(self.base.at_ms);
        if elapsed_ms == 0 || ticks_per_second == 0 {
            return 0.0;
        }
        let per_mille = ticks.saturating_mul(1_000_000) / (ticks_per_second * elapsed_ms);
        per_mille as f32 / 10.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(at_ms: u64, busy: u64, workers: &[(u32, u64)]) -> Sample {
        Sample {
            at_ms,
            busy,
            workers: workers.iter().copied().collect(),
        }
    }

    #[test]
    fn compares_with_a_sample_at_least_a_second_old() {
        let mut usage = Usage::default();
        assert_eq!(usage.worker(7, 100), 0.0);
        usage.add(sample(1000, 1000, &[]));
        assert_eq!((usage.worker(7, 100), usage.root(100)), (0.0, 0.0));
        usage.add(sample(3000, 1300, &[(7, 200)]));
        assert_eq!((usage.worker(7, 100), usage.root(100)), (100.0, 50.0));
        // Soon after: the base moves up to 3000, and too short a window keeps extending.
        usage.add(sample(3100, 1310, &[(7, 205)]));
        usage.add(sample(3500, 1350, &[(7, 225)]));
        assert_eq!(usage.worker(7, 100), 50.0);
    }
}
