//! Objects of Stripe's as they stand there, as far as they decide about ours.

use chrono::{DateTime, Utc};
use nexus_core::plan::SubscriptionStatus;

/// The metadata that names the account of a customer, a subscription or a checkout.
pub const ECO_ID: &str = "eco_id";

/// A subscription as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscription {
    /// Its id.
    pub id: String,
    /// Whose it is.
    pub customer: String,
    /// State.
    pub status: SubscriptionStatus,
    /// Prices of its items.
    pub prices: Vec<Price>,
    /// Its billing periods follow this; it may be ahead of now.
    pub anchor: DateTime<Utc>,
    /// When it was made.
    pub created: DateTime<Utc>,
    /// When it ended, if it has.
    pub ended: Option<DateTime<Utc>>,
    /// When it will end by itself, if it will.
    pub cancel_at: Option<DateTime<Utc>>,
    /// Whether that is a date by itself (Stripe's dashboard and portal set such), and not the end of a billing period.
    pub ends_by_date: bool,
    /// Account that its metadata names.
    pub eco_id: Option<String>,
}

/// The price of an item, by the two names it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Price {
    /// Its id.
    pub id: String,
    /// Its lookup key, if it has one.
    pub lookup_key: Option<String>,
    /// The item of the subscription that has it.
    pub item_id: String,
}

/// A checkout as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckoutSession {
    /// Its id.
    pub id: String,
    /// Account that it was made for, by `client_reference_id` or else its metadata.
    pub eco_id: Option<String>,
    /// The subscription it led to.
    pub subscription: Option<String>,
    /// How far it is.
    pub state: CheckoutState,
    /// Where the customer goes through it; none: it is over.
    pub url: Option<String>,
}

/// How far a checkout is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckoutState {
    /// The customer can go through it.
    Open,
    /// The customer has been through it.
    Complete,
    /// Its time is over.
    Expired,
}

/// An invoice as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invoice {
    /// Its id.
    pub id: String,
    /// The subscription it is of.
    pub subscription: Option<String>,
    /// Whether items can be added to it.
    pub is_draft: bool,
    /// Whether it is finalised by itself: not where its subscription is unpaid, or is paused and keeps its drafts.
    pub goes_on: bool,
    /// Whether it is of a billing period that has ended, rather than of a change or made by hand.
    pub is_of_cycle: bool,
    /// End of the time in which its pending items were made: of the period that ended where it is of a cycle.
    pub period_end: DateTime<Utc>,
}

/// A customer as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Customer {
    /// Account that its metadata names.
    pub eco_id: Option<String>,
    /// The currency that it is held to, once it is (ISO 4217, in small letters).
    pub currency: Option<String>,
}
