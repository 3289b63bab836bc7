//! Monthly billing periods that follow an anchor.
//!
//! A period begins on the anchor's day of month and time of day, in UTC; where a month is too short, on
//! its last day (31 Jan, 28 Feb, 31 Mar). Periods are half-open and computed from the anchor each time,
//! never from the period before, so that clamping does not drift. `nexus_period_start` in the database is
//! the same rule.

use chrono::{DateTime, Datelike, Duration, Months, Utc};

/// How long after its end a period still takes events of its own time; then it is settled.
pub const SETTLEMENT_GRACE: Duration = Duration::hours(24);

/// Events older than this are refused.
pub const MAX_EVENT_AGE: Duration = Duration::days(35);

/// A half-open stretch of time, `[start, end)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Period {
    /// First instant.
    pub start: DateTime<Utc>,
    /// First instant after it.
    pub end: DateTime<Utc>,
}

impl Period {
    /// The period of `anchor` that contains `at`.
    pub fn containing(anchor: DateTime<Utc>, at: DateTime<Utc>) -> Self {
        let months = (at.year() - anchor.year()) * 12 + at.month() as i32 - anchor.month() as i32;
        let boundary = add_months(anchor, months);
        if boundary <= at {
            Self { start: boundary, end: add_months(anchor, months + 1) }
        } else {
            Self { start: add_months(anchor, months - 1), end: boundary }
        }
    }

    /// Whether the instant lies in the period.
    pub fn contains(&self, at: DateTime<Utc>) -> bool {
        self.start <= at && at < self.end
    }

    /// Whether events of this period's time no longer count in it at `now`.
    pub fn is_settled(&self, now: DateTime<Utc>) -> bool {
        now >= self.end + SETTLEMENT_GRACE
    }
}

/// The period an event counts in, and whether that is a later one than its own because it came after the
/// settlement grace. The first period begins at the anchor: an event from just before it (a clock that is
/// behind, a time cut to seconds) belongs to that one, not to a period that never was.
pub fn counting_period(
    anchor: DateTime<Utc>,
    event_time: DateTime<Utc>,
    now: DateTime<Utc>,
) -> (Period, bool) {
    let own = Period::containing(anchor, event_time.max(anchor));
    if own.is_settled(now) { (Period::containing(anchor, now), true) } else { (own, false) }
}

fn add_months(anchor: DateTime<Utc>, months: i32) -> DateTime<Utc> {
    let by = Months::new(months.unsigned_abs());
    let moved = if months < 0 { anchor.checked_sub_months(by) } else { anchor.checked_add_months(by) };
    moved.expect("instants come from the database, whose calendar is narrower than chrono's")
}
