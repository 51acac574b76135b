//! Requests of users that a VM has not carried out yet. A request belongs to the VM: it stays when the VM's worker exits and
//! another worker starts.

use serde::{Deserialize, Serialize};

/// Milliseconds after the last press of the power button in which a guest may still power off on request.
const END_EXPIRES_MS: u64 = 120_000;

/// Requests that stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Asked {
    /// The guest shall power off.
    pub(crate) end: Option<EndRequest>,
    /// The virtual CPUs shall be held.
    pub(crate) pause: bool,
}

/// A request to power off. Times are milliseconds of the boot clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EndRequest {
    /// Time of the first request.
    pub(crate) asked_ms: u64,
    /// Time of the last request.
    last_ms: u64,
    /// The power button was pressed for it.
    pub(crate) is_pressed: bool,
    /// The VM is started again when the guest has powered off.
    pub(crate) starts_again: bool,
}

impl Asked {
    /// Notes that the guest shall power off, and perhaps be started again.
    pub(crate) fn ask_end(&mut self, starts_again: bool, is_pressed: bool, now_ms: u64) {
        let same = self.end.filter(|end| end.starts_again == starts_again);
        self.end = Some(EndRequest {
            asked_ms: same.map_or(now_ms, |end| end.asked_ms),
            last_ms: now_ms,
            is_pressed,
            starts_again,
        });
    }

    /// Forgets a request that the guest has not heeded for long. Returns whether there was one.
    pub(crate) fn expire(&mut self, now_ms: u64) -> bool {
        let is_over = self.expires_ms().is_some_and(|at| at <= now_ms);
        if is_over {
            self.end = None;
        }
        is_over
    }

    /// When [`Self::expire`] forgets something.
    pub(crate) fn expires_ms(&self) -> Option<u64> {
        Some(self.end?.last_ms + END_EXPIRES_MS)
    }
}
