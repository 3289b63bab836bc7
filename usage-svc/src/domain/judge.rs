//! Whether an event is taken, and where it counts.

use std::collections::HashMap;

use chrono::{DateTime, Duration, Utc};
use nexus_core::{
    id::EcoId,
    period::{MAX_EVENT_AGE, SETTLEMENT_GRACE, counting_period},
};

use super::{event::Event, quota::Outlook};

/// Events further ahead of the database's clock than this are refused.
pub const MAX_AHEAD: Duration = Duration::minutes(5);

/// Why an event is not counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// There is no such account.
    UnknownAccount,
    /// The account was closed when the call happened, or its settlement is over.
    ClosedAccount,
    /// Older than [`MAX_EVENT_AGE`].
    TooOld,
    /// Further ahead than [`MAX_AHEAD`].
    InTheFuture,
    /// The API key is unknown or another account's.
    ForeignKey,
}

/// What the database says about the accounts and keys of a flush, at one instant.
#[derive(Debug, Default)]
pub struct Facts {
    /// The database's clock.
    pub now: DateTime<Utc>,
    /// Accounts by id; one that is missing does not exist.
    pub accounts: HashMap<EcoId, Account>,
    /// API keys by id; one that is missing does not exist.
    pub keys: HashMap<String, Key>,
    /// Terms of those accounts of which they were asked.
    pub terms: HashMap<EcoId, Outlook>,
}

/// An account, as far as recording asks.
#[derive(Debug, Clone)]
pub struct Account {
    /// Begins its periods.
    pub anchor: DateTime<Utc>,
    /// When it was closed.
    pub closed: Option<DateTime<Utc>>,
    /// For each segment that a change of plan has closed: the start of its period.
    pub closed_segments: Vec<DateTime<Utc>>,
}

impl Account {
    /// The segment of a period that takes what is counted now: the first that is not closed. In a period that is
    /// over it is the last.
    pub fn open_segment(&self, period_start: DateTime<Utc>) -> i32 {
        let closed = self.closed_segments.iter().filter(|start| **start == period_start).count();
        i32::try_from(closed).unwrap_or(i32::MAX)
    }
}

/// An API key, as far as recording asks.
#[derive(Debug, Clone)]
pub struct Key {
    /// Account it belongs to.
    pub eco_id: String,
    /// Metered apart.
    pub test_mode: bool,
}

/// Where an event counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// Start of the period.
    pub period_start: DateTime<Utc>,
    /// Segment of the period; a change of plan begins one.
    pub segment: i32,
    /// It came after the settlement grace of the period of its own time.
    pub late: bool,
    /// Metered apart.
    pub test_mode: bool,
}

/// Judges one event by the database's clock. A closed account still takes the calls from before its
/// closure until the settlement grace is over. The state of a key does not matter: the call happened. An event that
/// was accepted without the database came then; it counts in the period that is right now.
pub fn judge(event: &Event, facts: &Facts) -> Result<Placement, Refusal> {
    let at = event.payload.event_time;
    let account = facts.accounts.get(&event.eco_id).ok_or(Refusal::UnknownAccount)?;
    let came = event.accepted.unwrap_or(facts.now);
    judge_age(at, came)?;
    if account.closed.is_some_and(|closed| at >= closed || came >= closed + SETTLEMENT_GRACE) {
        return Err(Refusal::ClosedAccount);
    }
    let test_mode = match &event.payload.api_key_id {
        None => false,
        Some(id) => facts
            .keys
            .get(id)
            .filter(|key| key.eco_id == event.eco_id.as_str())
            .map(|key| key.test_mode)
            .ok_or(Refusal::ForeignKey)?,
    };
    let (period, late) = counting_period(account.anchor, at, facts.now);
    Ok(Placement { period_start: period.start, segment: account.open_segment(period.start), late, test_mode })
}

/// Judges the time of an event that came at `came`.
pub fn judge_age(at: DateTime<Utc>, came: DateTime<Utc>) -> Result<(), Refusal> {
    if at < came - MAX_EVENT_AGE {
        return Err(Refusal::TooOld);
    }
    if at > came + MAX_AHEAD {
        return Err(Refusal::InTheFuture);
    }
    Ok(())
}
