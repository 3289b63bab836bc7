//! Events that were acknowledged and could not be counted when they were drained.

use super::{
    event::{Event, Outcome},
    judge::Refusal,
};

/// Why an event is in quarantine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Another payload was recorded under its identity.
    Conflict,
    /// It is refused.
    Refused(Refusal),
    /// Its day's raw log was dropped, at least in part: whether it was recorded before cannot be told any more.
    DayNotRetained,
    /// The database does not take it.
    Rejected,
}

impl Reason {
    /// Of what became of an event; `None`: it is counted, by this or before.
    pub fn of(outcome: Outcome) -> Option<Self> {
        match outcome {
            Outcome::Accepted | Outcome::Duplicate => None,
            Outcome::Conflict => Some(Self::Conflict),
            Outcome::Refused(refusal) => Some(Self::Refused(refusal)),
        }
    }

    /// Its name in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Conflict => "conflict",
            Self::Refused(Refusal::UnknownAccount) => "unknown_account",
            Self::Refused(Refusal::ClosedAccount) => "closed_account",
            Self::Refused(Refusal::TooOld) => "too_old",
            Self::Refused(Refusal::InTheFuture) => "in_the_future",
            Self::Refused(Refusal::ForeignKey) => "foreign_key",
            Self::DayNotRetained => "day_not_retained",
            Self::Rejected => "rejected",
        }
    }
}

/// An event in quarantine.
#[derive(Debug, Clone, Copy)]
pub struct Quarantined<'a> {
    /// Its number in its journal.
    pub number: i64,
    /// The event.
    pub event: &'a Event,
    /// Why.
    pub reason: Reason,
}
