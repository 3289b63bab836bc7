//! An account with its subscription.

use chrono::{DateTime, Utc};
use nexus_core::{
    id::EcoId,
    money::{Currency, Micros},
    plan::{Plan, SubscriptionStatus},
};
use uuid::Uuid;

/// An account and the subscription it has, or had last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Id.
    pub eco_id: String,
    /// Email, if known.
    pub email: Option<String>,
    /// When it was closed; `None`: open.
    pub closed_time: Option<DateTime<Utc>>,
    /// Plan.
    pub plan: Plan,
    /// State of the subscription.
    pub subscription_status: SubscriptionStatus,
    /// Customer at Stripe.
    pub stripe_customer_id: Option<String>,
    /// Subscription at Stripe.
    pub stripe_subscription_id: Option<String>,
    /// Its day of month and time of day begin the periods.
    pub anchor_time: DateTime<Utc>,
    /// ISO 4217.
    pub currency_code: String,
    /// What its overage may cost in a period; `None`: no cap.
    pub spend_cap: Option<Micros>,
    /// When it was created.
    pub created_time: DateTime<Utc>,
}

/// An account to be created, every field valid in itself.
#[derive(Debug, Clone)]
pub struct NewAccount {
    /// Id.
    pub eco_id: EcoId,
    /// Email, if known.
    pub email: Option<String>,
    /// Plan; it begins with the plan's newest version.
    pub plan: Plan,
    /// Customer at Stripe.
    pub stripe_customer_id: Option<String>,
    /// Subscription at Stripe.
    pub stripe_subscription_id: Option<String>,
    /// Start of its first period; `None`: now.
    pub anchor_time: Option<DateTime<Utc>>,
    /// Currency of its charges.
    pub currency: Currency,
    /// Makes a repeat return the account.
    pub request_id: Option<Uuid>,
}

/// Checks an email as far as a program can: one `@` with text around it, no blanks, at most 254 characters.
pub fn check_email(text: &str) -> Result<String, &'static str> {
    let plain = text.chars().all(|c| !c.is_whitespace() && !c.is_control());
    let has_both = text.split_once('@').is_some_and(|(user, host)| !user.is_empty() && !host.is_empty());
    if text.chars().count() > 254 {
        Err("must have at most 254 characters")
    } else if plain && has_both {
        Ok(text.to_owned())
    } else {
        Err("must be an email address")
    }
}

/// Checks an id of Stripe's; customers that were imported there may have ids of any prefix.
pub fn check_stripe_id(text: &str) -> Result<String, &'static str> {
    let allowed = |c: u8| c.is_ascii_alphanumeric() || b"_-".contains(&c);
    if (1..=255).contains(&text.len()) && text.bytes().all(allowed) {
        Ok(text.to_owned())
    } else {
        Err("must be an id of Stripe's: 1 to 255 characters of [A-Za-z0-9_-]")
    }
}
