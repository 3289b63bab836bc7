//! An invoice made for charges.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Metadata key that names the settlement an invoice was made for.
pub const SETTLEMENT_ID: &str = "settlement_id";

/// Metadata key that names the subscription at Stripe whose items are on it.
pub const SUBSCRIPTION_ID: &str = "subscription_id";

/// An invoice, exactly as it is sent: every attempt of a key sends the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewInvoice {
    /// Customer at Stripe.
    pub customer: String,
    /// Subscription at Stripe that it is for: its payment method is charged; none: the customer's.
    pub subscription: Option<String>,
    /// ISO 4217, in capitals; that of all its items.
    pub currency: String,
    /// Text on the invoice.
    pub description: String,
    /// Tells what it was made for; `settlement_id` names it.
    pub metadata: BTreeMap<String, String>,
}
