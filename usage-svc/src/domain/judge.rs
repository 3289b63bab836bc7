//! Whether an event is taken, and where it counts.

use std::collections::HashMap;

use chrono::{DateTime, Duration, Utc};
use nexus_core::{
    id::EcoId,
    period::{MAX_EVENT_AGE, Period, SETTLEMENT_GRACE, counting_period},
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
    /// Anchors of the subscriptions it had before, each until when it was in force, first to last.
    pub former: Vec<(DateTime<Utc>, DateTime<Utc>)>,
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

    /// The period that an event counts in, and whether that is a later one than its own: its own is by the subscription
    /// that was in force at its time, and ends with that at the latest.
    fn counting_period(&self, at: DateTime<Utc>, now: DateTime<Utc>) -> (Period, bool) {
        let Some((anchor, until)) = self.former.iter().find(|(_, until)| at < *until) else {
            return counting_period(self.anchor, at, now);
        };
        let own = Period::containing(*anchor, at.max(*anchor));
        if (Period { end: own.end.min(*until), ..own }).is_settled(now) {
            (Period::containing(self.anchor, now), true)
        } else {
            (own, false)
        }
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
    let (period, late) = account.counting_period(at, facts.now);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_counts_by_the_subscription_of_its_time() {
        let at = |text: &str| text.parse::<DateTime<Utc>>().expect("a time");
        // Free from the 5th of a month, then paid for from the 20th to the 2nd of December, then free again.
        let (free, paid) = (at("2025-01-05T00:00:00Z"), at("2025-11-20T00:00:00Z"));
        let ended = at("2025-12-02T00:00:00Z");
        let account = Account {
            anchor: free,
            closed: None,
            former: vec![(free, paid), (paid, ended)],
            closed_segments: Vec::new(),
        };
        let november = at("2025-11-05T00:00:00Z");
        for (time, now, start, late) in [
            ("2025-11-19T23:59:59Z", "2025-11-20T12:00:00Z", november, false),
            // A day after it was cut: by now free goes on, in the same period or the next.
            ("2025-11-19T23:59:59Z", "2025-12-03T00:00:00Z", november, true),
            ("2025-11-19T23:59:59Z", "2025-12-05T00:00:00Z", at("2025-12-05T00:00:00Z"), true),
            ("2025-11-20T00:00:00Z", "2025-12-02T12:00:00Z", paid, false),
            ("2025-12-01T23:59:59Z", "2025-12-02T12:00:00Z", paid, false),
            ("2025-12-01T23:59:59Z", "2025-12-03T00:00:00Z", november, true),
            ("2025-12-02T00:00:00Z", "2025-12-02T12:00:00Z", november, false),
        ] {
            let (period, is_late) = account.counting_period(at(time), at(now));
            assert_eq!((period.start, is_late), (start, late), "{time} at {now}");
        }
    }
}
