//! The brake for guests that reboot as soon as they run.

use serde::{Deserialize, Serialize};

/// A guest that reboots earlier than this after its start reboots quickly.
const QUICK_MS: u64 = 10_000;
/// Quick reboots in a row that do not wait: an installer's, say.
const FREE: u32 = 3;
/// The first wait after those; each next one is twice as long, up to the longest.
const FIRST_WAIT_MS: u64 = 1000;
const LONGEST_WAIT_MS: u64 = 60_000;

/// Counts quick reboots in a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Brake {
    quick: u32,
}

impl Brake {
    /// The guest has rebooted after running for `lived_ms`. Returns how long the next boot waits.
    pub(crate) fn rebooted(&mut self, lived_ms: u64) -> u64 {
        if lived_ms >= QUICK_MS {
            self.quick = 0;
            return 0;
        }
        self.quick = self.quick.saturating_add(1);
        match self.quick.checked_sub(FREE + 1) {
            None => 0,
            Some(doublings) => FIRST_WAIT_MS
                .checked_shl(doublings)
                .filter(|&wait| doublings < 32 && wait < LONGEST_WAIT_MS)
                .unwrap_or(LONGEST_WAIT_MS),
        }
    }

    /// Says how often the guest has rebooted, if that is worth a word.
    pub(crate) fn describe(&self) -> Option<String> {
        (self.quick > 1).then(|| {
            let seconds = QUICK_MS / 1000;
            let times = self.quick;
            format!("guest rebooted {times} times in a row within {seconds} s of its start")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quick_reboots_wait_longer_each_time() {
        let mut brake = Brake::default();
        let waits: Vec<_> = (0..12).map(|_| brake.rebooted(50)).collect();
        assert_eq!(
            waits,
            [
                0, 0, 0, 1000, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000, 60_000
            ]
        );
        let text = brake.describe().unwrap();
        assert!(
            text.starts_with("guest rebooted 12 times in a row"),
            "{text}"
        );
        for _ in 0..100 {
            assert_eq!(brake.rebooted(0), LONGEST_WAIT_MS);
        }
        assert_eq!(brake.rebooted(QUICK_MS), 0);
        assert_eq!(brake.describe(), None);
        assert_eq!(brake.rebooted(QUICK_MS - 1), 0);
    }
}
