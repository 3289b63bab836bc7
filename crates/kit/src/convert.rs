//! Between the contract's types and the core's.

use chrono::{DateTime, Utc};
use nexus_core::plan::{Plan, SubscriptionStatus};
use nexus_proto::common::v1 as pb;
use prost_types::Timestamp;

/// A time for the wire.
pub fn timestamp(at: DateTime<Utc>) -> Timestamp {
    Timestamp { seconds: at.timestamp(), nanos: at.timestamp_subsec_nanos() as i32 }
}

/// A time from the wire, cut to the microseconds the database keeps.
pub fn datetime(at: &Timestamp) -> Result<DateTime<Utc>, &'static str> {
    const MESSAGE: &str = "must be a time between the years 1 and 9999";
    if !(0..1_000_000_000).contains(&at.nanos) || !(-62_135_596_800..=253_402_300_799).contains(&at.seconds) {
        return Err(MESSAGE);
    }
    DateTime::from_timestamp(at.seconds, at.nanos as u32 / 1_000 * 1_000).ok_or(MESSAGE)
}

/// A plan for the wire.
pub fn plan_to_proto(plan: Plan) -> pb::Plan {
    match plan {
        Plan::Free => pb::Plan::Free,
        Plan::Pro => pb::Plan::Pro,
        Plan::Enterprise => pb::Plan::Enterprise,
    }
}

/// A plan from the wire; `None`: unspecified.
pub fn plan_from_proto(value: i32) -> Result<Option<Plan>, &'static str> {
    match pb::Plan::try_from(value).map_err(|_| "must be a known plan")? {
        pb::Plan::Unspecified => Ok(None),
        pb::Plan::Free => Ok(Some(Plan::Free)),
        pb::Plan::Pro => Ok(Some(Plan::Pro)),
        pb::Plan::Enterprise => Ok(Some(Plan::Enterprise)),
    }
}

/// A subscription status for the wire.
pub fn status_to_proto(status: SubscriptionStatus) -> pb::SubscriptionStatus {
    use SubscriptionStatus as S;
    match status {
        S::Trialing => pb::SubscriptionStatus::Trialing,
        S::Active => pb::SubscriptionStatus::Active,
        S::PastDue => pb::SubscriptionStatus::PastDue,
        S::Unpaid => pb::SubscriptionStatus::Unpaid,
        S::Paused => pb::SubscriptionStatus::Paused,
        S::Incomplete => pb::SubscriptionStatus::Incomplete,
        S::IncompleteExpired => pb::SubscriptionStatus::IncompleteExpired,
        S::Canceled => pb::SubscriptionStatus::Canceled,
    }
}

/// A subscription status from the wire; `None`: unspecified.
pub fn status_from_proto(value: i32) -> Result<Option<SubscriptionStatus>, &'static str> {
    use SubscriptionStatus as S;
    let status =
        pb::SubscriptionStatus::try_from(value).map_err(|_| "must be a known subscription status")?;
    Ok(match status {
        pb::SubscriptionStatus::Unspecified => None,
        pb::SubscriptionStatus::Trialing => Some(S::Trialing),
        pb::SubscriptionStatus::Active => Some(S::Active),
        pb::SubscriptionStatus::PastDue => Some(S::PastDue),
        pb::SubscriptionStatus::Unpaid => Some(S::Unpaid),
        pb::SubscriptionStatus::Paused => Some(S::Paused),
        pb::SubscriptionStatus::Incomplete => Some(S::Incomplete),
        pb::SubscriptionStatus::IncompleteExpired => Some(S::IncompleteExpired),
        pb::SubscriptionStatus::Canceled => Some(S::Canceled),
    })
}
