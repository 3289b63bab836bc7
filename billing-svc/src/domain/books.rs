//! A charge in the ledger beside the same charge in Stripe's books.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use nexus_core::{
    money::{Currency, Micros},
    period::Period,
};
use uuid::Uuid;

use super::charge::{CHARGE_ID, ChargeStatus};

mod compare;

pub use compare::{Finding, RESOLVED_WITHIN, Repair, compare, is_in_flight};
/// An attempt of a charge, as the ledger has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LedgerRow {
    /// Number of the attempt.
    pub attempt: i32,
    /// Account.
    pub eco_id: String,
    /// Period.
    pub period: Period,
    /// Amount.
    pub amount: Micros,
    /// The same in minor units.
    pub amount_minor: i64,
    /// ISO 4217, in capitals.
    pub currency: String,
    /// Customer that was charged.
    pub customer: String,
    /// Text on the invoice.
    pub description: String,
    /// Calls that the item says it is of.
    pub calls: Option<String>,
    /// State.
    pub status: ChargeStatus,
    /// Item at Stripe.
    pub item_id: Option<String>,
    /// From when what this attempt may have left at Stripe is looked for, if that was not done yet.
    pub recheck_time: Option<DateTime<Utc>>,
    /// When it was written down.
    pub created: DateTime<Utc>,
    /// Since when its item is being taken away, if it is.
    pub take_back_time: Option<DateTime<Utc>>,
    /// Whether its item is known to be on a final invoice.
    pub is_invoiced: bool,
}

/// Where an account's items belong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    /// Customers at Stripe that it has, or had a charge on.
    pub customers: Vec<String>,
    /// Customers of the items in question that no account has: this one may have had them before a restore.
    pub unclaimed: Vec<String>,
    /// ISO 4217, in capitals.
    pub currency: String,
}

impl Home {
    /// Whether the account may have been charged on a customer that our tables do not give it.
    pub fn may_lack(&self, customer: &str) -> bool {
        let has = |customers: &[String]| customers.iter().any(|id| id == customer);
        self.customers.is_empty() || (has(&self.unclaimed) && !has(&self.customers))
    }
}

/// An invoice item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BookItem {
    /// Id.
    pub item_id: String,
    /// Customer.
    pub customer: String,
    /// Subscription, if it is on one.
    pub subscription: Option<String>,
    /// Amount in minor units.
    pub amount_minor: i64,
    /// ISO 4217, in capitals.
    pub currency: String,
    /// Text on the invoice.
    pub description: String,
    /// What the item stands for, if it is ours.
    pub metadata: BTreeMap<String, String>,
    /// Invoice it is on; `None`: it waits for one.
    pub invoice_id: Option<String>,
    /// When it was made.
    pub created: DateTime<Utc>,
}

/// An invoice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BookInvoice {
    /// Id.
    pub invoice_id: String,
    /// Whether it is final.
    pub status: InvoiceStatus,
    /// When it was made.
    pub created: DateTime<Utc>,
}

/// How far an invoice is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InvoiceStatus {
    /// Its items may still change.
    Draft,
    /// Final: to be paid, paid, or given up.
    Finalised,
    /// Final, and of no effect.
    Void,
}

impl InvoiceStatus {
    /// As it is kept.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Draft => "draft",
            Self::Finalised => "finalised",
            Self::Void => "void",
        }
    }
}

const CALLS: &str = "overage_calls";
const PERIOD_START: &str = "billing_period_start";
const PERIOD_END: &str = "billing_period_end";

/// The period that an item says it is of.
pub fn period_of(metadata: &BTreeMap<String, String>) -> Option<Period> {
    let time = |key| metadata.get(key).and_then(|text| DateTime::parse_from_rfc3339(text).ok());
    Some(Period { start: time(PERIOD_START)?.to_utc(), end: time(PERIOD_END)?.to_utc() })
}

/// The charge that an item says it is of.
pub fn charge_of(metadata: &BTreeMap<String, String>) -> Option<Uuid> {
    metadata.get(CHARGE_ID).and_then(|text| text.parse().ok())
}

/// An item's amount.
pub fn amount_of(item: &BookItem) -> Micros {
    let micros = item.currency.parse::<Currency>().ok().and_then(|currency| {
        let unit = currency.minor_unit();
        unit.from_minor(item.amount_minor)
    });
    micros.unwrap_or_default()
}

/// An amount as people read it, cut to hundredths.
pub fn text(amount: Micros, currency: &str) -> String {
    let hundredths = amount.0.unsigned_abs() / 10_000;
    let sign = if amount.0 < 0 { "-" } else { "" };
    format!("{sign}{}.{:02} {currency}", hundredths / 100, hundredths % 100)
}
