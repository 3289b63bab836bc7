//! What a flush finds locked, which it does not wait for, and what it does wait for.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use chrono::NaiveDate;
use sqlx::PgConnection;

use crate::{
    domain::event::{Event, Outcome},
    store,
};

/// How long a lock is waited for: `lock_timeout` of the sessions.
pub(super) const LOCK_WAIT: Duration = Duration::from_secs(5);

/// What a rebuild or a change of plan holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lock {
    /// A day.
    Day(NaiveDate),
    /// The plans of a range of accounts.
    Plans(i32),
}

impl Lock {
    /// Takes it, shared, in turn with those who want it for themselves. To be the first lock of its transaction: who
    /// waits holds nothing.
    pub(super) async fn wait(self, connection: &mut PgConnection) -> sqlx::Result<()> {
        match self {
            Self::Day(day) => store::usage_daily::lock_day_shared(connection, day).await,
            Self::Plans(range) => store::plan_locks::hold_shared(connection, range).await,
        }
    }
}

/// What a flush waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Rows, as long as the connection lets it.
    Long,
    /// Rows, hardly: a group that has it was waited for already.
    Briefly,
    /// As [`Self::Long`], and, before all, for a lock.
    InTurn(Lock),
}

impl Wait {
    /// Longest time of a try that takes so long without the lock.
    pub(super) fn bound(self, bound: Duration) -> Duration {
        if let Self::InTurn(_) = self { LOCK_WAIT + bound } else { bound }
    }
}

/// What others hold, for as long as a rebuild or a change of plan takes.
#[derive(Debug, Default)]
pub struct Locked {
    pub(super) days: HashSet<NaiveDate>,
    /// The range of each account of those that are locked.
    pub(super) ranges: HashMap<String, i32>,
}

impl Locked {
    /// What of it the event needs; if both, the first.
    pub fn lacks(&self, event: &Event) -> Option<Lock> {
        let range = self.ranges.get(event.eco_id.as_str());
        range
            .map(|range| Lock::Plans(*range))
            .or_else(|| self.days.get(&event.day()).map(|day| Lock::Day(*day)))
    }
}

/// What a flush comes to.
#[derive(Debug)]
pub enum Flushed {
    /// It is committed: an outcome for each event.
    Counted(Vec<Outcome>),
    /// Others hold some of what it needs: nothing is counted.
    Locked(Locked),
}
