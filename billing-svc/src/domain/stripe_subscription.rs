//! A subscription at Stripe against those that our tables have of its account: what is to be done, so that they say
//! the same in the end, whatever was heard before and in whichever order.
//!
//! The subscription in force is the one at Stripe that was created last, among those that came to grant their plan.
//! Where none is left, the account is on the free plan again, in the period and with the count that it would have had
//! without any.

use chrono::{DateTime, Datelike, Months, TimeDelta, Utc};
use nexus_core::{
    period::Period,
    plan::{Plan, SubscriptionStatus},
};

use super::stripe_objects::Subscription;

/// A subscription that an account has or had, as a row of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The row.
    pub subscription_id: i64,
    /// Stripe's id; `None`: it is not at Stripe.
    pub stripe_id: Option<String>,
    /// When it was made at Stripe, or else began here.
    pub created: DateTime<Utc>,
    /// State.
    pub status: SubscriptionStatus,
    /// Version of the plan.
    pub plan_version: i32,
    /// Begins the periods.
    pub anchor: DateTime<Utc>,
    /// Whether it is the account's present one.
    pub is_current: bool,
}

/// The plan that the prices of a subscription are of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PricedPlan {
    /// The plan.
    pub plan: Plan,
    /// Its version; `None`: the newest when the account gets it.
    pub version: Option<i32>,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision<'a> {
    /// Nothing: it does not grant its plan, and never did as far as we know.
    Nothing,
    /// It is not in force. Only its state is noted.
    Note(&'a Held),
    /// It ended before we heard of it. It is recorded as one that the account had.
    Record,
    /// It is in force, and its row is brought up to date.
    Keep(&'a Held),
    /// It comes into force, instead of what the account has; it may have been before.
    Begin(Option<&'a Held>),
    /// It was in force, and has ended.
    End(&'a Held),
}

/// Whether a subscription has ended for good.
pub fn is_over(found: &Subscription) -> bool {
    found.ended.is_some()
        || matches!(found.status, SubscriptionStatus::Canceled | SubscriptionStatus::IncompleteExpired)
}

/// What is to be done about a subscription as it stands at Stripe; `rows` are its account's.
pub fn decide<'a>(found: &Subscription, rows: &'a [Held], is_closed: bool) -> Decision<'a> {
    let own = rows.iter().find(|row| row.stripe_id.as_deref() == Some(&found.id));
    let current = rows.iter().find(|row| row.is_current);
    match own {
        Some(own) if is_closed => Decision::Note(own),
        _ if is_closed => Decision::Nothing,
        Some(own) if own.is_current && is_over(found) => Decision::End(own),
        Some(own) if own.is_current => Decision::Keep(own),
        own if !is_over(found)
            && found.status.grants_plan()
            && current.is_none_or(|c| outranks(found, c)) =>
        {
            Decision::Begin(own)
        }
        Some(own) => Decision::Note(own),
        None if found.status == SubscriptionStatus::Canceled => Decision::Record,
        None => Decision::Nothing,
    }
}

fn outranks(found: &Subscription, current: &Held) -> bool {
    match &current.stripe_id {
        None => true,
        Some(id) => (current.created, id) < (found.created, &found.id),
    }
}

/// The anchor to which an account goes back when it is on the free plan again: that of what it had last without
/// Stripe, or began with.
pub fn anchor_without_stripe(rows: &[Held]) -> Option<DateTime<Utc>> {
    let without = rows.iter().filter(|row| row.stripe_id.is_none()).max_by_key(|row| row.subscription_id);
    without.or_else(|| rows.iter().min_by_key(|row| row.subscription_id)).map(|row| row.anchor)
}

/// Others at Stripe that were superseded and granted their plan when last seen, newest first.
pub fn superseded<'a>(rows: &'a [Held], ended: &str) -> Vec<&'a str> {
    let mut others: Vec<&Held> =
        rows.iter().filter(|row| !row.is_current && row.status.grants_plan()).collect();
    others.sort_by_key(|row| std::cmp::Reverse(row.created));
    others.into_iter().filter_map(|row| row.stripe_id.as_deref()).filter(|id| *id != ended).collect()
}

/// Stripe's anchor as ours: a period never begins before its anchor, and Stripe's may be ahead (at the end of a trial,
/// for one). Then it is the same day of an earlier month that has it.
pub fn anchor_by(anchor: DateTime<Utc>, now: DateTime<Utc>) -> DateTime<Utc> {
    let earlier =
        |months| anchor.checked_sub_months(Months::new(months)).filter(|at| at.day() == anchor.day());
    if anchor <= now { anchor } else { (1..=1_200).filter_map(earlier).find(|at| *at <= now).unwrap_or(now) }
}

/// Whether two periods are one: Stripe's times are whole seconds, ours need not be.
pub fn is_same(one: Period, other: Period) -> bool {
    let near = |a: DateTime<Utc>, b: DateTime<Utc>| (a - b).abs() < TimeDelta::seconds(1);
    near(one.start, other.start) && near(one.end, other.end)
}

/// Where a period is cut by what happened at `at` and is heard of now.
pub fn cut(period: Period, at: DateTime<Utc>, now: DateTime<Utc>) -> DateTime<Utc> {
    if period.start < at && at <= now { at } else { now }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().expect("a time")
    }

    fn found(id: &str, created: &str, status: SubscriptionStatus) -> Subscription {
        Subscription {
            id: id.to_owned(),
            customer: "cus_1".to_owned(),
            status,
            prices: Vec::new(),
            anchor: at(created),
            created: at(created),
            ended: (status == SubscriptionStatus::Canceled).then(|| at("2025-12-01T00:00:00Z")),
            cancel_at: None,
            ends_by_date: false,
            eco_id: None,
        }
    }

    fn held(id: i64, stripe_id: Option<&str>, created: &str, is_current: bool) -> Held {
        Held {
            subscription_id: id,
            stripe_id: stripe_id.map(str::to_owned),
            created: at(created),
            status: SubscriptionStatus::Active,
            plan_version: 1,
            anchor: at(created),
            is_current,
        }
    }

    const JAN: &str = "2025-01-10T00:00:00Z";
    const FEB: &str = "2025-02-10T00:00:00Z";
    const MAR: &str = "2025-03-10T00:00:00Z";

    #[test]
    fn the_newest_that_grants_its_plan_is_in_force() {
        use SubscriptionStatus::*;
        let free = [held(1, None, JAN, true)];
        let one = [held(1, None, JAN, false), held(2, Some("sub_1"), FEB, true)];
        let back = [held(1, None, JAN, false), held(2, Some("sub_1"), FEB, false), held(3, None, JAN, true)];
        for status in [Trialing, Active, PastDue] {
            assert_eq!(decide(&found("sub_1", FEB, status), &free, false), Decision::Begin(None));
            assert_eq!(decide(&found("sub_1", FEB, status), &one, false), Decision::Keep(&one[1]));
            assert_eq!(decide(&found("sub_1", FEB, status), &back, false), Decision::Begin(Some(&back[1])));
            assert_eq!(decide(&found("sub_2", MAR, status), &one, false), Decision::Begin(None));
            assert_eq!(decide(&found("sub_0", JAN, status), &one, false), Decision::Nothing, "older than it");
        }
        for status in [Incomplete, Unpaid, Paused, IncompleteExpired] {
            assert_eq!(decide(&found("sub_2", MAR, status), &free, false), Decision::Nothing, "{status}");
            assert_eq!(
                decide(&found("sub_1", FEB, status), &back, false),
                Decision::Note(&back[1]),
                "{status}"
            );
        }
        for status in [Incomplete, Unpaid, Paused] {
            assert_eq!(
                decide(&found("sub_1", FEB, status), &one, false),
                Decision::Keep(&one[1]),
                "{status}"
            );
        }
        assert_eq!(decide(&found("sub_1", FEB, Canceled), &one, false), Decision::End(&one[1]));
        assert_eq!(decide(&found("sub_1", FEB, Canceled), &back, false), Decision::Note(&back[1]));
        assert_eq!(decide(&found("sub_1", FEB, Canceled), &free, false), Decision::Record);
        assert_eq!(
            decide(&found("sub_1", FEB, Active), &one, true),
            Decision::Note(&one[1]),
            "a closed account"
        );
        assert_eq!(decide(&found("sub_2", MAR, Active), &one, true), Decision::Nothing);
    }

    #[test]
    fn what_is_gone_back_to() {
        let rows = [
            held(1, None, JAN, false),
            held(2, Some("sub_1"), FEB, false),
            held(3, Some("sub_2"), MAR, true),
        ];
        assert_eq!(anchor_without_stripe(&rows), Some(at(JAN)));
        assert_eq!(anchor_without_stripe(&rows[1..]), Some(at(FEB)), "it began at Stripe");
        assert_eq!(superseded(&rows, "sub_2"), ["sub_1"]);
        assert!(superseded(&rows, "sub_1").is_empty());
    }

    #[test]
    fn an_anchor_ahead_keeps_its_day() {
        for (anchor, now, expected) in [
            (JAN, MAR, JAN),
            ("2025-03-31T10:00:00Z", "2025-02-10T00:00:00Z", "2025-01-31T10:00:00Z"),
            ("2025-03-31T10:00:00Z", "2025-03-31T09:00:00Z", "2025-01-31T10:00:00Z"),
            ("2025-04-15T00:00:00Z", "2025-03-15T00:00:00Z", "2025-03-15T00:00:00Z"),
            ("2028-02-29T00:00:00Z", "2028-02-28T00:00:00Z", "2028-01-29T00:00:00Z"),
        ] {
            let ours = anchor_by(at(anchor), at(now));
            assert_eq!(ours, at(expected), "{anchor} at {now}");
            assert!(ours <= at(now));
            let period = Period::containing(at(anchor), at(now));
            assert_eq!(Period::containing(ours, at(now)), period, "{anchor} at {now}");
        }
    }

    #[test]
    fn a_period_is_cut_where_it_happened_if_that_lies_in_it() {
        let period = Period { start: at(JAN), end: at(FEB) };
        let now = at("2025-01-20T00:00:00Z");
        assert_eq!(cut(period, at("2025-01-15T00:00:00Z"), now), at("2025-01-15T00:00:00Z"));
        for elsewhere in [JAN, "2024-12-31T00:00:00Z", "2025-01-20T00:00:01Z"] {
            assert_eq!(cut(period, at(elsewhere), now), now);
        }
        let later = |millis| {
            let by = TimeDelta::milliseconds(millis);
            Period { start: period.start + by, end: period.end + by }
        };
        assert!(is_same(period, later(999)) && is_same(later(999), period));
        assert!(!is_same(period, later(1_000)));
    }
}
