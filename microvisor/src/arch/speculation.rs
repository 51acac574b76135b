//! The policy about speculative execution.

/// When a CPU forgets its branch predictions, so that one guest cannot train those of another guest or of root.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Speculation {
    /// Between guests, and between a guest and root.
    #[default]
    Safe,
    /// Between guests.
    Guests,
    /// Never.
    Off,
}

impl Speculation {
    /// Returns whether a CPU forgets before a turn of partition `next`, if its last turn was one of partition `last`.
    pub fn forgets_before(self, last: u64, next: u64) -> bool {
        // After each turn is before the next one.
        self == Self::Guests && last != next
    }

    /// Returns whether a CPU forgets after a guest's turn.
    pub fn forgets_after(self) -> bool {
        self == Self::Safe
    }
}

#[cfg(test)]
mod tests {
    use super::Speculation;

    #[test]
    fn branches_are_forgotten_between_those_who_do_not_trust_each_other() {
        let safe = Speculation::default();
        assert!(safe.forgets_after());
        assert!(
            !safe.forgets_before(1, 2),
            "it was done after the last turn"
        );
        let guests = Speculation::Guests;
        assert!(!guests.forgets_after());
        assert!(guests.forgets_before(1, 2) && !guests.forgets_before(2, 2));
        assert!(!Speculation::Off.forgets_after() && !Speculation::Off.forgets_before(1, 2));
    }
}
