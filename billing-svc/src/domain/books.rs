//! A charge in the ledger beside the same charge in Stripe's books.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use nexus_core::{
    money::{Currency, Micros},
    period::Period,
};
use uuid::Uuid;

use super::{
    charge::{CHARGE_ID, ChargeStatus},
    reconciliation::{Difference, Kind},
};

/// Longest time a replaced attempt waits to be rechecked before that counts as a difference: more than a day,
/// for runs are daily.
const RECHECK_WITHIN: TimeDelta = TimeDelta::hours(26);

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

/// How a difference may be repaired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Repair {
    /// The item goes into the ledger as a charge of its own.
    Adopt(BookItem),
    /// This attempt has the item.
    Succeed {
        /// The attempt.
        attempt: i32,
        /// The item.
        item_id: String,
    },
    /// The item is taken away: it waits for an invoice, and the ledger has the charge without it.
    Delete {
        /// The item.
        item_id: String,
    },
}

/// A difference, and how it may be repaired, if it may.
pub type Finding = (Difference, Option<Repair>);

/// Whether a run has the charge in hand, or will: it is in doubt, or is to be rechecked.
pub fn is_in_flight(rows: &[LedgerRow], now: DateTime<Utc>) -> bool {
    rows.iter().any(|row| {
        row.status == ChargeStatus::Pending
            || row.recheck_time.is_some_and(|recheck| now < recheck + RECHECK_WITHIN)
    })
}

/// Names what differs between the attempts of one charge and the items that are at Stripe of it, or under the
/// ids that the ledger has of it.
pub fn compare(charge_id: Uuid, rows: &[LedgerRow], items: &[BookItem], now: DateTime<Utc>) -> Vec<Finding> {
    if is_in_flight(rows, now) {
        return Vec::new();
    }
    let mut findings = Vec::new();
    let mut left: Vec<&BookItem> = items.iter().collect();
    let mut missing = Vec::new();
    let live: Vec<&LedgerRow> = rows.iter().filter(|row| row.status == ChargeStatus::Succeeded).collect();
    for row in &live {
        match left.iter().position(|item| row.item_id.as_deref() == Some(item.item_id.as_str())) {
            Some(at) => {
                let item = left.remove(at);
                findings.extend(altered(charge_id, row, item));
                findings.extend(reworded(charge_id, row, rows, item));
            }
            None => missing.push(*row),
        }
    }
    for row in missing {
        if left.is_empty() {
            findings
                .push((of_row(charge_id, row, Kind::ItemMissing, missing_text(row), -row.amount.0), None));
            continue;
        }
        let item = left.remove(0);
        let mut differences = altered(charge_id, row, item);
        if differences.is_empty() {
            let known = row.item_id.as_deref().unwrap_or_default();
            let message = format!("The ledger has it as item {known}, Stripe as item {}.", item.item_id);
            differences.push((at(of_row(charge_id, row, Kind::ItemIdDiffers, message, 0), item), None));
        }
        findings.extend(differences);
    }
    let mut is_known = !live.is_empty();
    for item in left {
        findings.push(extra(charge_id, rows, item, is_known));
        is_known = true;
    }
    findings
}

/// An item that the ledger does not have; `is_known`: it has the charge without it.
fn extra(charge_id: Uuid, rows: &[LedgerRow], item: &BookItem, is_known: bool) -> Finding {
    let amount = says(item);
    if is_known {
        let place = item.invoice_id.as_ref().map_or("waits for an invoice", |_| "is on an invoice");
        let message = format!(
            "The ledger has charge {charge_id} without item {}, which {place} at Stripe over {amount}.",
            item.item_id
        );
        let delete = Repair::Delete { item_id: item.item_id.clone() };
        let repair = item.invoice_id.is_none().then_some(delete);
        return (of_item(charge_id, rows, item, Kind::ItemDuplicated, message), repair);
    }
    let Some(row) = rows.iter().max_by_key(|row| row.attempt) else {
        let message =
            format!("The ledger has no charge {charge_id}, Stripe has item {} over {amount}.", item.item_id);
        let repair = Repair::Adopt(item.clone());
        return (of_item(charge_id, rows, item, Kind::ItemExtra, message), Some(repair));
    };
    let message = format!(
        "The ledger says that charge {charge_id} was not made, Stripe has item {} over {amount}.",
        item.item_id
    );
    let same = altered(charge_id, row, item).is_empty();
    let repair = Repair::Succeed { attempt: row.attempt, item_id: item.item_id.clone() };
    (of_item(charge_id, rows, item, Kind::ItemExtra, message), same.then_some(repair))
}

/// What an item differs in from the attempt that it is of.
fn altered(charge_id: Uuid, row: &LedgerRow, item: &BookItem) -> Vec<Finding> {
    let meant = |key: &str| item.metadata.get(key).map_or("nothing", String::as_str);
    let mut findings = Vec::new();
    let mut add = |kind, message: String, amount: i64| {
        findings.push((at(of_row(charge_id, row, kind, message, amount), item), None));
    };
    if row.currency != item.currency {
        add(
            Kind::ItemWrongCurrency,
            format!("The ledger has it in {}, Stripe in {}.", row.currency, item.currency),
            0,
        );
    } else if row.amount_minor != item.amount_minor {
        let stripe = amount_of(item);
        add(
            Kind::ItemAmountDiffers,
            format!(
                "The ledger has it over {}, Stripe over {}.",
                text(row.amount, &row.currency),
                says(item)
            ),
            stripe.0.saturating_sub(row.amount.0),
        );
    }
    if row.customer != item.customer {
        add(
            Kind::ItemWrongCustomer,
            format!("The ledger charged customer {}, the item is on {}.", row.customer, item.customer),
            row.amount.0,
        );
    }
    if meant("eco_id") != row.eco_id {
        add(
            Kind::ItemWrongAccount,
            format!("The ledger has it of {}, the item says {}.", row.eco_id, meant("eco_id")),
            0,
        );
    }
    let period = period_of(&item.metadata);
    if period != Some(row.period) {
        add(
            Kind::ItemWrongPeriod,
            format!(
                "The ledger has it in the period from {} to {}, the item says from {} to {}.",
                row.period.start.to_rfc3339(),
                row.period.end.to_rfc3339(),
                meant(PERIOD_START),
                meant(PERIOD_END)
            ),
            0,
        );
    }
    if item.metadata.get(CHARGE_ID).is_none_or(|id| *id != charge_id.to_string()) {
        add(
            Kind::ItemWrongCharge,
            format!("The ledger has it as charge {charge_id}, the item says {}.", meant(CHARGE_ID)),
            0,
        );
    }
    findings
}

/// Whether an item tells its reader something else than the charge that it is of: which of its attempts has made it is not
/// always known.
fn reworded(charge_id: Uuid, row: &LedgerRow, rows: &[LedgerRow], item: &BookItem) -> Option<Finding> {
    let calls = item.metadata.get(CALLS);
    let same = |row: &LedgerRow| row.description == item.description && row.calls.as_ref() == calls;
    if rows.iter().any(same) {
        return None;
    }
    let message = if row.description != item.description {
        format!("The ledger has it as \"{}\", the item says \"{}\".", row.description, item.description)
    } else if row.calls.is_some() && row.calls.as_ref() != calls {
        let of = |calls: Option<&String>| calls.cloned().unwrap_or_else(|| "no number of".to_owned());
        format!("The ledger has it of {} calls, the item says {}.", of(row.calls.as_ref()), of(calls))
    } else {
        return None;
    };
    Some((at(of_row(charge_id, row, Kind::ItemTextDiffers, message, 0), item), None))
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

fn says(item: &BookItem) -> String {
    text(amount_of(item), &item.currency)
}

/// An amount as people read it, cut to hundredths.
pub fn text(amount: Micros, currency: &str) -> String {
    let hundredths = amount.0.unsigned_abs() / 10_000;
    let sign = if amount.0 < 0 { "-" } else { "" };
    format!("{sign}{}.{:02} {currency}", hundredths / 100, hundredths % 100)
}

fn missing_text(row: &LedgerRow) -> String {
    format!(
        "The ledger has item {} over {}, Stripe does not.",
        row.item_id.as_deref().unwrap_or_default(),
        text(row.amount, &row.currency)
    )
}

fn of_row(charge_id: Uuid, row: &LedgerRow, kind: Kind, message: String, amount: i64) -> Difference {
    Difference {
        eco_id: row.eco_id.clone(),
        kind,
        message,
        amount: Micros(amount),
        currency: row.currency.clone(),
        period_start: Some(row.period.start),
        charge_id: charge_id.to_string(),
        item_id: row.item_id.clone().unwrap_or_default(),
        repaired: false,
    }
}

fn at(difference: Difference, item: &BookItem) -> Difference {
    Difference { item_id: item.item_id.clone(), ..difference }
}

fn of_item(charge_id: Uuid, rows: &[LedgerRow], item: &BookItem, kind: Kind, message: String) -> Difference {
    let row = rows.first();
    let says = || item.metadata.get("eco_id").cloned().unwrap_or_default();
    Difference {
        eco_id: row.map_or_else(says, |row| row.eco_id.clone()),
        kind,
        message,
        amount: amount_of(item),
        currency: item.currency.clone(),
        period_start: row.map(|row| row.period.start).or_else(|| period_of(&item.metadata).map(|p| p.start)),
        charge_id: charge_id.to_string(),
        item_id: item.item_id.clone(),
        repaired: false,
    }
}

#[cfg(test)]
#[path = "books_tests.rs"]
mod tests;
