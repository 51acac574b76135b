//! The APIC timer, as a deadline in the guest's TSC.
//!
//! One-shot and periodic mode count a bus clock of [`BUS_HZ`] (KVM's choice; guests measure it, or
//! find it in CPUID leaf 0x4000_0010). A masked timer still runs; the caller raises its interrupt, or does not.

/// Frequency of the timer's input clock before the divider.
pub const BUS_HZ: u64 = guest_proto::limits::VLAPIC_KHZ * 1000;

/// The shortest period, in bus clocks: 200 µs, as in KVM. A shorter one would only end turns.
const LEAST_PERIOD: u64 = BUS_HZ / 5000;

/// Conversion between bus clocks and TSC ticks, as multiplications.
#[derive(Clone, Copy, Debug)]
pub struct TscRate {
    /// TSC ticks per bus clock, times 2^32.
    ticks: u64,
    /// Bus clocks per TSC tick, times 2^32.
    clocks: u64,
}

impl TscRate {
    /// Returns the rate for a TSC of this many kHz; 0 counts as 1.
    pub const fn from_khz(khz: u64) -> Self {
        let khz = if khz == 0 { 1 } else { khz } as u128;
        let bus = BUS_HZ as u128 / 1000;
        Self {
            ticks: ((khz << 32) / bus) as u64,
            clocks: ((bus << 32) / khz) as u64,
        }
    }

    fn to_ticks(self, clocks: u64) -> u64 {
        ((u128::from(clocks) * u128::from(self.ticks)) >> 32) as u64
    }

    fn to_clocks(self, ticks: u64) -> u64 {
        ((u128::from(ticks) * u128::from(self.clocks)) >> 32) as u64
    }
}

/// LVT timer bits 18:17.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TimerMode {
    OneShot,
    Periodic,
    TscDeadline,
}

impl TimerMode {
    /// Returns the mode, or `None` for the reserved encoding.
    pub(super) fn from_lvt(entry: u32) -> Option<Self> {
        match entry >> 17 & 3 {
            0 => Some(Self::OneShot),
            1 => Some(Self::Periodic),
            2 => Some(Self::TscDeadline),
            _ => None,
        }
    }
}

#[derive(Debug)]
pub(super) struct Timer {
    /// Guest TSC of the next expiry.
    deadline: Option<u64>,
    rate: TscRate,
    initial: u32,
    /// Divide configuration as written.
    divide: u8,
    mode: TimerMode,
}

impl Timer {
    pub(super) fn new(rate: TscRate) -> Self {
        Self {
            deadline: None,
            rate,
            initial: 0,
            divide: 0,
            mode: TimerMode::OneShot,
        }
    }

    pub(super) fn rate(&self) -> TscRate {
        self.rate
    }

    #[inline]
    pub(super) fn deadline(&self) -> Option<u64> {
        self.deadline
    }

    /// Returns whether the timer expired by `now`, and sets the next deadline.
    #[inline]
    pub(super) fn expire(&mut self, now: u64) -> bool {
        let Some(deadline) = self.deadline.filter(|deadline| *deadline <= now) else {
            return false;
        };
        self.deadline = None;
        if self.mode == TimerMode::Periodic {
            let period = self.span(self.initial).max(1);
            let missed = (now - deadline) / period;
            self.deadline = deadline.checked_add(period.saturating_mul(missed + 1));
        }
        true
    }

    /// Sets the mode. A change between TSC-deadline mode and the others disarms the timer (SDM vol. 3 §11.5.4.1).
    pub(super) fn set_mode(&mut self, mode: TimerMode) {
        if (self.mode == TimerMode::TscDeadline) != (mode == TimerMode::TscDeadline) {
            self.deadline = None;
            self.initial = 0;
        }
        self.mode = mode;
    }

    pub(super) fn initial(&self) -> u32 {
        self.initial
    }

    pub(super) fn set_initial(&mut self, count: u32, now: u64) {
        if self.mode != TimerMode::TscDeadline {
            self.initial = count;
            self.arm(count, now);
        }
    }

    /// Returns the clocks that are left of the present count. The caller has let the timer expire up to `now`.
    pub(super) fn current(&self, now: u64) -> u32 {
        match self.deadline {
            Some(deadline) if self.mode != TimerMode::TscDeadline => {
                let clocks = self.rate.to_clocks(deadline.saturating_sub(now)) >> self.shift();
                clocks.min(u64::from(self.initial)) as u32
            }
            _ => 0,
        }
    }

    pub(super) fn divide(&self) -> u8 {
        self.divide
    }

    /// Sets the divider. The clocks that are left count on at the new rate.
    pub(super) fn set_divide(&mut self, value: u8, now: u64) {
        let left = self.current(now);
        let armed = self.deadline.is_some() && self.mode != TimerMode::TscDeadline;
        self.divide = value & 0b1011;
        if armed {
            self.arm(left.max(1), now);
        }
    }

    /// MSR TSC_DEADLINE.
    pub(super) fn tsc_deadline(&self) -> u64 {
        match self.mode {
            TimerMode::TscDeadline => self.deadline.unwrap_or(0),
            _ => 0,
        }
    }

    pub(super) fn set_tsc_deadline(&mut self, value: u64) {
        if self.mode == TimerMode::TscDeadline {
            self.deadline = (value != 0).then_some(value);
        }
    }

    pub(super) fn adjust_tsc(&mut self, delta: i64) {
        if self.mode != TimerMode::TscDeadline {
            self.deadline = self.deadline.map(|at| at.saturating_add_signed(delta));
        }
    }

    fn arm(&mut self, count: u32, now: u64) {
        self.deadline = if count == 0 {
            None
        } else {
            now.checked_add(self.span(count))
        };
    }

    /// Returns the TSC ticks of this many counts. A period has [`LEAST_PERIOD`] at least.
    fn span(&self, count: u32) -> u64 {
        let clocks = u64::from(count) << self.shift();
        let least = match self.mode {
            TimerMode::Periodic => LEAST_PERIOD,
            _ => 0,
        };
        self.rate.to_ticks(clocks.max(least))
    }

    /// Returns the logarithm of the divider to base 2: bits 3, 1 and 0 count from 2, and wrap to 1.
    fn shift(&self) -> u32 {
        let encoded = self.divide >> 1 & 4 | self.divide & 3;
        (u32::from(encoded) + 1) & 7
    }
}
