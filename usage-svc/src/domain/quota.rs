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
    /// Units of the period that the account's spend cap allows, where its plan does not refuse what is beyond the
    /// included ones.
    pub capped: Limit,
    /// Changes of the account's plan and of its spend cap so far: nothing is granted by terms of another epoch.
    pub epoch: i32,
}

impl Terms {
    /// Units beyond which calls are refused.
    pub fn hard_limit(&self) -> Limit {
        if self.hard { self.included } else { self.capped }
    }

    /// The limit that callers are told: units beyond it are refused, or else those that are billed.
    pub fn shown_limit(&self) -> Limit {
        self.hard_limit().or(self.included)
    }

    /// Whether it is the spend cap that refuses.
    pub fn is_capped(&self) -> bool {
        !self.hard && self.capped.is_some()
    }
}

/// What holds for an account, and what a change of plan that waits is to bring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outlook {
    /// What holds.
    pub terms: Terms,
    /// What does from a time on.
    pub next: Option<(DateTime<Utc>, Terms)>,
}

impl Outlook {
    /// What holds at that time.
    pub fn at(&self, now: DateTime<Utc>) -> Terms {
        self.next.filter(|(from, _)| *from <= now).map_or(self.terms, |(_, terms)| terms)
    }
}

/// The segments of a period that changes of plan have closed, together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ClosedSegments {
    /// Units recorded in them.
    pub recorded: i64,
    /// Of these, beyond the included ones, where they are billed.
    pub overage: i64,
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
    /// What does from a time on that is still to come.
    pub next: Option<(DateTime<Utc>, Terms)>,
    /// Begins its periods.
    pub anchor: DateTime<Utc>,
    /// The period.
    pub period: Period,
    /// Units recorded in it.
    pub recorded: i64,
    /// Of its segments, those that are closed.
    pub closed_segments: ClosedSegments,
    /// Units handed out and used in it.
    pub consumption: Consumption,
    /// Units lost with their holder.
    pub forfeited: i64,
}

impl Standing {
    /// Recorded units beyond the included ones, where they are billed: those of each segment by its own plan.
    pub fn overage(&self) -> i64 {
        let ClosedSegments { recorded, overage } = self.closed_segments;
        let open = if self.terms.priced {
            money::overage_units(self.terms.included, recorded, self.recorded)
        } else {
            0
        };
        overage + open
    }
}
