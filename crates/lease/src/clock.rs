//! Time that only goes forward, for how long something lasts; what the time is, the database says.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// An instant since the machine's start. It goes on while the machine is suspended, and nobody can set it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct BootTime(u64);

impl BootTime {
    /// The start of the machine.
    pub const START: Self = Self(0);

    /// Now.
    #[cfg(target_os = "linux")]
    pub fn now() -> Self {
        use nix::time::{ClockId, clock_gettime};
        let now = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("Linux has this clock since 2.6.39");
        Self::from_nanos(Duration::from(now).as_nanos())
    }

    /// Now: without a clock that goes on in suspension, by the one that the standard library has.
    #[cfg(not(target_os = "linux"))]
    pub fn now() -> Self {
        use std::{sync::LazyLock, time::Instant};
        static FIRST: LazyLock<Instant> = LazyLock::new(Instant::now);
        Self::from_nanos(FIRST.elapsed().as_nanos())
    }

    fn from_nanos(nanos: u128) -> Self {
        Self(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// An instant from its [`Self::nanos`].
    pub const fn at_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the start: 64 bits last for 584 years.
    pub fn nanos(self) -> u64 {
        self.0
    }

    /// Time since `earlier`; none where that is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// The instant so much later.
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// A clock that is cheap to ask because it lags: it shows when it was last set.
#[derive(Debug)]
pub struct LaggingClock(AtomicU64);

impl LaggingClock {
    /// It is not asked about what is as near as this.
    const LAG: Duration = Duration::from_secs(5);

    /// Set to now.
    pub fn new() -> Self {
        Self(AtomicU64::new(BootTime::now().nanos()))
    }

    /// Sets it: every second, so that it lags by less than what it is asked about.
    pub fn set(&self, now: BootTime) {
        self.0.store(now.nanos(), Ordering::Relaxed);
    }

    /// Whether the instant is still to come. Near it the real clock decides; only after the process was paused
    /// may this say so for too long, until the clock is set again.
    pub fn is_before(&self, instant: BootTime) -> bool {
        BootTime(self.0.load(Ordering::Relaxed)).after(Self::LAG) < instant || BootTime::now() < instant
    }
}

impl Default for LaggingClock {
    fn default() -> Self {
        Self::new()
    }
}
