//! An account's terms and where it stands in its current period.

use chrono::{DateTime, Utc};
use nexus_core::{
    money,
    period::Period,
    plan::Plan,
    quota::{Consumption, Limit},
};

/// What holds for an account now: its plan's terms, or the free plan's where its subscription does not
/// grant the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// The account's plan.
    pub plan: Plan,
    /// Units included in a period.
    pub included: Limit,
    /// Whether calls beyond them are refused.
    pub hard: bool,
    /// Whether units beyond them are billed.
    pub priced: bool,
}

impl Terms {
    /// Units beyond which calls are refused.
    pub fn hard_limit(&self) -> Limit {
        self.included.filter(|_| self.hard)
    }

    /// Recorded units beyond the included ones, where they are billed.
    pub fn overage(&self, recorded: i64) -> i64 {
        if self.priced { money::overage_units(self.included, 0, recorded) } else { 0 }
    }
}

/// An account in its current period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// The database's clock.
    pub now: DateTime<Utc>,
    /// Whether the account is closed.
    pub closed: bool,
    /// What holds for it.
    pub terms: Terms,
    /// The period.
    pub period: Period,
    /// Units recorded in it.
    pub recorded: i64,
    /// Units handed out and used in it.
    pub consumption: Consumption,
    /// Units lost with their holder.
    pub forfeited: i64,
}
