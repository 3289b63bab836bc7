//! Time that only goes forward, for how long something lasts; what the time is, the database says.

use std::{
    sync::atomic::{AtomicI64, AtomicU64, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
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

/// The clock of another machine, carried on by [`BootTime`] from its answers, whatever the clock of this one says.
#[derive(Debug)]
pub struct RemoteClock(AtomicI64);

impl RemoteClock {
    /// It never answered.
    const UNKNOWN: i64 = i64::MIN;
    /// An answer is on its way for less than this. One that seems to be later is of a clock that was set back.
    const LATE: i64 = 60_000_000_000;

    /// One that has not answered yet.
    pub const fn new() -> Self {
        Self(AtomicI64::new(Self::UNKNOWN))
    }

    /// Notes what it showed, in an answer that came at `now`. An answer is late by as long as it took: of several the
    /// one that was fastest is right.
    pub fn note(&self, shown: SystemTime, now: BootTime) {
        let Ok(shown) = shown.duration_since(UNIX_EPOCH) else { return };
        let Ok(shown) = i64::try_from(shown.as_nanos()) else { return };
        let ahead = shown.saturating_sub_unsigned(now.nanos());
        let nearer = |known| {
            let late = known != Self::UNKNOWN && (known - Self::LATE..=known).contains(&ahead);
            (!late).then_some(ahead)
        };
        // Another answer that is noted meanwhile is as good.
        let _ = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, nearer);
    }

    /// What it shows at `now`; `None`: it never answered.
    pub fn at(&self, now: BootTime) -> Option<SystemTime> {
        let ahead = self.0.load(Ordering::Acquire);
        let nanos = (ahead != Self::UNKNOWN).then(|| ahead.saturating_add_unsigned(now.nanos()))?;
        Some(UNIX_EPOCH + Duration::from_nanos(u64::try_from(nanos).ok()?))
    }
}

impl Default for RemoteClock {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boot(seconds: u64) -> BootTime {
        BootTime::START.after(Duration::from_secs(seconds))
    }

    fn time(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn another_clock_goes_on_from_its_answers() {
        let clock = RemoteClock::new();
        assert_eq!(clock.at(boot(5)), None);
        clock.note(time(1_800_000_000), boot(100));
        assert_eq!(clock.at(boot(100)), Some(time(1_800_000_000)));
        assert_eq!(clock.at(boot(160)), Some(time(1_800_000_060)));
    }

    #[test]
    fn of_several_answers_the_fastest_is_right_and_a_clock_that_is_set_is_followed() {
        let clock = RemoteClock::new();
        clock.note(time(1_800_000_000), boot(100));
        for (shown, now, shows) in [
            (1_800_000_005, 110, 1_800_000_010), // five seconds on its way
            (1_800_000_021, 120, 1_800_000_021), // a second faster than the first
            (1_800_000_025, 130, 1_800_000_031),
            (1_700_000_000, 140, 1_700_000_000), // set back
            (1_900_000_000, 150, 1_900_000_000), // and ahead
        ] {
            clock.note(time(shown), boot(now));
            assert_eq!(clock.at(boot(now)), Some(time(shows)), "{shown}");
        }
    }
}
