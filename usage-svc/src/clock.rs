//! Time that only goes forward, for how long something lasts; what the time is, the database says.

use std::sync::{Mutex, PoisonError};

use chrono::{DateTime, SubsecRound, TimeDelta, Utc};
pub use nexus_lease::clock::{BootTime, LaggingClock};

/// The database's clock, carried on by [`BootTime`] from its last answer: for ages of days and minutes, while the
/// database cannot be asked.
#[derive(Debug, Default)]
pub struct DatabaseClock(Mutex<Option<(DateTime<Utc>, BootTime)>>);

impl DatabaseClock {
    /// Notes what it just answered.
    pub fn set(&self, now: DateTime<Utc>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((now, BootTime::now()));
    }

    /// What it shows by now; `None`: it never answered.
    pub fn now(&self) -> Option<DateTime<Utc>> {
        let (then, at) = (*self.0.lock().unwrap_or_else(PoisonError::into_inner))?;
        let since = TimeDelta::from_std(BootTime::now().since(at)).ok()?;
        // In whole microseconds, as the database has them.
        then.checked_add_signed(since).map(|now| now.trunc_subsecs(6))
    }
}
