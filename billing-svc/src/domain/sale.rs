//! Requests about a subscription at Stripe, and what is answered.

use chrono::{DateTime, Utc};
use nexus_core::{
    id::EcoId,
    plan::{Plan, SubscriptionStatus},
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// What a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Asked {
    /// A checkout.
    Checkout {
        /// Of this plan.
        plan: Plan,
    },
    /// That the subscription ends.
    End {
        /// Now, and not with its billing period.
        apply_now: bool,
    },
    /// That it goes on.
    GoOn,
    /// Another plan.
    Plan {
        /// The plan.
        plan: Plan,
        /// A lower one now, and not from the period's end on.
        apply_now: bool,
    },
}

/// A request that may be repeated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SaleRequest {
    /// Account.
    pub eco_id: EcoId,
    /// What it is for.
    pub asked: Asked,
    /// Makes a repeat return the first answer.
    pub request_id: Option<Uuid>,
}

/// A checkout that a customer can go through.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenCheckout {
    /// Session at Stripe.
    pub session_id: String,
    /// Where the customer goes through it.
    pub url: String,
}

/// An account's subscription: what it has, until when, and what comes after.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShownSubscription {
    /// Account.
    pub eco_id: String,
    /// Plan.
    pub plan: Plan,
    /// State.
    pub status: SubscriptionStatus,
    /// Start of the current period.
    pub period_start: DateTime<Utc>,
    /// Its end.
    pub period_end: DateTime<Utc>,
    /// The plan that comes after, and when.
    pub next: Option<(Plan, DateTime<Utc>)>,
    /// When it ends by itself, if it does.
    pub cancel_time: Option<DateTime<Utc>>,
    /// Subscription at Stripe.
    pub stripe_subscription_id: Option<String>,
    /// What the plan costs a month, by its newest version.
    pub monthly_micros: Option<i64>,
    /// ISO 4217.
    pub currency_code: String,
}
