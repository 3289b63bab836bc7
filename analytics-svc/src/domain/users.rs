use chrono::{DateTime, Utc};
use nexus_core::{
    id::EcoId,
    money::Micros,
    plan::{Plan, SubscriptionStatus},
};
use serde::{Deserialize, Serialize};

/// Order of the list; always descending, ties by id ascending.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum UserSort {
    /// Units of the current period.
    Usage,
    /// Overage units of the current period.
    Overage,
    /// Overage and subscription together.
    Revenue,
    /// Time of creation.
    Created,
}

/// Which accounts to list, in which order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UserFilter {
    /// Only this plan.
    pub plan: Option<Plan>,
    /// Only this status.
    pub status: Option<SubscriptionStatus>,
    /// Beginning of the id (exactly) or the email (in any case); empty: all.
    pub prefix: String,
    /// Order.
    pub sort: UserSort,
}

/// Place in the list: the value that the order goes by, then the id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserCursor {
    /// Units, micros, or microseconds since 1970.
    pub key: i64,
    /// Account.
    pub eco_id: EcoId,
}

/// Where a page begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PageStart {
    /// After this many accounts.
    Skip(i64),
    /// After this place.
    After(UserCursor),
}

/// An account with usage and revenue of its current period.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Its place in the list.
    pub cursor: UserCursor,
    /// Email, if known.
    pub email: Option<String>,
    /// Plan.
    pub plan: Plan,
    /// State of its subscription.
    pub status: SubscriptionStatus,
    /// Units recorded.
    pub api_calls: i64,
    /// Units beyond the included ones.
    pub overage_units: i64,
    /// Their cost.
    pub overage: Micros,
    /// Monthly price of the subscription where it counts in the MRR, else 0.
    pub subscription: Micros,
    /// Currency of both, ISO 4217.
    pub currency_code: String,
    /// When it was created.
    pub created: DateTime<Utc>,
    /// Time of its latest event in the period.
    pub last_event: Option<DateTime<Utc>>,
}
