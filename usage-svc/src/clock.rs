//! Time that only goes forward, for how long something lasts; what the time is, the database says.

use chrono::{DateTime, SubsecRound, Utc};
use nexus_lease::clock::RemoteClock;
pub use nexus_lease::clock::{BootTime, LaggingClock};

/// The database's clock, carried on from its last answer: for ages of days and minutes, while the database cannot be
/// asked, and for clients, whose own clocks may be wrong.
#[derive(Debug, Default)]
pub struct DatabaseClock(RemoteClock);

impl DatabaseClock {
    /// Notes what it just answered.
    pub fn set(&self, now: DateTime<Utc>) {
        self.0.note(now.into(), BootTime::now());
    }

    /// What it shows by now; `None`: it never answered.
    pub fn now(&self) -> Option<DateTime<Utc>> {
        // In whole microseconds, as the database has them.
        self.0.at(BootTime::now()).map(|now| DateTime::<Utc>::from(now).trunc_subsecs(6))
    }
}
