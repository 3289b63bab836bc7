//! Time that only goes forward, for how long something lasts; what the time is, the database says.

use std::time::Duration;

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
    pub fn at_nanos(nanos: u64) -> Self {
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
