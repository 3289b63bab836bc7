//! What differs between the two, and how it may be repaired.

use chrono::{DateTime, TimeDelta, Utc};
use nexus_core::money::Micros;
use uuid::Uuid;

use super::{BookItem, CALLS, Home, LedgerRow, PERIOD_END, PERIOD_START, amount_of, period_of, text};
use crate::domain::{
    charge::{CHARGE_ID, ChargeStatus},
    reconciliation::{Difference, Kind},
};

/// Longest time that what a run resolves may take before that counts as a difference: an attempt in doubt, a charge that
/// is being taken back, a replaced attempt that is to be rechecked. More than a day, for runs are daily.
pub const RESOLVED_WITHIN: TimeDelta = TimeDelta::hours(26);

/// How a difference may be repaired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Repair {
    /// The item goes into the ledger as a charge of its own.
    Adopt(BookItem),
    /// The item goes into the ledger as a second one of its charge, which is credited then: it is on an invoice.
    Second(BookItem),
    /// This attempt has the item.
    Succeed {
        /// The attempt.
        attempt: i32,
        /// The item.
        item_id: String,
    },
    /// The item is taken away: it waits for an invoice, and the ledger has the charge without it, or not on that customer.
    Delete {
        /// The item.
        item_id: String,
    },
    /// This attempt came to nothing, for Stripe holds nothing of it: its period is charged again.
    Fail {
        /// The attempt.
        attempt: i32,
    },
    /// The charge is what Stripe has of it, in place of this attempt: the difference is charged, or credited.
    Accept {
        /// The attempt.
        attempt: i32,
        /// What Stripe has.
        item: BookItem,
    },
}

/// A difference, and how it may be repaired, if it may.
pub type Finding = (Difference, Option<Repair>);

/// Whether a run has the charge in hand, or will: it is in doubt, is being taken back, or is to be rechecked. Not one
/// that runs should have resolved long ago.
pub fn is_in_flight(rows: &[LedgerRow], now: DateTime<Utc>) -> bool {
    match in_hand_since(rows) {
        Some(since) => now < since + RESOLVED_WITHIN,
        None => rows.iter().any(|row| row.recheck_time.is_some_and(|at| now < at + RESOLVED_WITHIN)),
    }
}

/// Since when it is not known whether Stripe has the charge: from its first attempt on where one is in doubt.
fn in_hand_since(rows: &[LedgerRow]) -> Option<DateTime<Utc>> {
    if rows.iter().any(|row| row.status == ChargeStatus::Pending) {
        return rows.iter().map(|row| row.created).min();
    }
    let live = rows.iter().filter(|row| row.status == ChargeStatus::Succeeded);
    live.filter_map(|row| row.take_back_time).min()
}

/// Names what differs between the attempts of one charge and the items that are at Stripe of it, or under the
/// ids that the ledger has of it. `home`: of its account, if there is one.
pub fn compare(
    charge_id: Uuid,
    rows: &[LedgerRow],
    items: &[BookItem],
    home: Option<&Home>,
    now: DateTime<Utc>,
) -> Vec<Finding> {
    if is_in_flight(rows, now) {
        return Vec::new();
    }
    if let Some(since) = in_hand_since(rows) {
        return in_doubt(charge_id, rows, items, since).into_iter().collect();
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
            let difference = of_row(charge_id, row, Kind::ItemMissing, missing_text(row), -row.amount.0);
            // What was on a final invoice cannot be deleted at Stripe: a person has to look at that.
            let repair = (!row.is_invoiced).then_some(Repair::Fail { attempt: row.attempt });
            findings.push((difference, repair));
            continue;
        }
        let at_home = |item: &&BookItem| item.customer == row.customer && item.currency == row.currency;
        let item = left.remove(left.iter().position(at_home).unwrap_or_default());
        let mut differences = altered(charge_id, row, item);
        if !differences.iter().any(|(difference, _)| difference.kind.is_of_ledger_and_stripe()) {
            let known = row.item_id.as_deref().unwrap_or_default();
            let message = format!("The ledger has it as item {known}, Stripe as item {}.", item.item_id);
            let accept = Repair::Accept { attempt: row.attempt, item: item.clone() };
            differences
                .push((at(of_row(charge_id, row, Kind::ItemIdDiffers, message, 0), item), Some(accept)));
        }
        findings.extend(differences);
    }
    let mut is_known = !live.is_empty();
    // One over nothing holds nothing of the charge.
    for item in left.into_iter().filter(|item| item.amount_minor != 0) {
        match stray(charge_id, rows, item, home) {
            Some(stray) => findings.push(stray),
            None => {
                findings.push(extra(charge_id, rows, item, is_known));
                is_known = true;
            }
        }
    }
    findings
}

/// An item that the ledger does not have, and that its account cannot have.
fn stray(charge_id: Uuid, rows: &[LedgerRow], item: &BookItem, home: Option<&Home>) -> Option<Finding> {
    let BookItem { item_id, customer, .. } = item;
    let (eco_id, amount) = (item.metadata.get("eco_id").filter(|id| !id.is_empty())?, says(item));
    let Some(home) = home else {
        let message = format!(
            "There is no account {eco_id}, Stripe has item {item_id} of it over {amount}. Create the account again, \
             under this id and with customer {customer}, and repair: it is not charged before."
        );
        return Some((of_item(charge_id, rows, item, Kind::ItemOfNoAccount, message), None));
    };
    let currency = rows.first().map_or(&home.currency, |row| &row.currency);
    let way_out = match &item.invoice_id {
        None => "a repair deletes it",
        Some(_) => "void its invoice, or credit it there",
    };
    let why = if home.may_lack(customer) {
        format!(
            "on customer {customer}: if that is the account's, let it have it, and repair; else void or delete the item. The \
             account is not charged before"
        )
    } else if !home.customers.contains(customer) {
        format!("on customer {customer}, who is not the account's: {way_out}")
    } else if *currency != item.currency {
        format!("and the account is charged in {currency}: {way_out}")
    } else {
        return None;
    };
    let message = format!("Stripe has item {item_id} of {eco_id} over {amount}, {why}.");
    let is_to_go = item.invoice_id.is_none() && !home.may_lack(customer);
    let repair = is_to_go.then(|| Repair::Delete { item_id: item_id.clone() });
    Some((of_item(charge_id, rows, item, Kind::ItemStray, message), repair))
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
        let repair = match &item.invoice_id {
            None => Repair::Delete { item_id: item.item_id.clone() },
            Some(_) => Repair::Second(item.clone()),
        };
        return (of_item(charge_id, rows, item, Kind::ItemDuplicated, message), Some(repair));
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
    let repair = match altered(charge_id, row, item).is_empty() {
        true => Some(Repair::Succeed { attempt: row.attempt, item_id: item.item_id.clone() }),
        false => acceptance(row, item),
    };
    (of_item(charge_id, rows, item, Kind::ItemExtra, message), repair)
}

/// A charge that runs should have resolved by now, unless it was just replaced.
fn in_doubt(
    charge_id: Uuid,
    rows: &[LedgerRow],
    items: &[BookItem],
    since: DateTime<Utc>,
) -> Option<Finding> {
    let row = rows.iter().rfind(|row| match row.status {
        ChargeStatus::Pending => true,
        ChargeStatus::Succeeded => row.take_back_time.is_some(),
        ChargeStatus::Failed | ChargeStatus::Superseded => false,
    })?;
    let since = since.to_rfc3339();
    let is_pending = row.status == ChargeStatus::Pending;
    let other = items.iter().find(|item| item.amount_minor != row.amount_minor).filter(|_| is_pending);
    let message = match other {
        Some(item) => format!(
            "Charge {charge_id} over {} is in doubt since {since}: Stripe has it as item {} over {}.",
            text(row.amount, &row.currency),
            item.item_id,
            says(item)
        ),
        None if is_pending => format!(
            "It is not known since {since} whether charge {charge_id} over {} is at Stripe.",
            text(row.amount, &row.currency)
        ),
        None => {
            format!("Item {} is being taken away since {since}.", row.item_id.as_deref().unwrap_or_default())
        }
    };
    let amount = other.map_or(0, |item| amount_of(item).0.saturating_sub(row.amount.0));
    let repair = other.and_then(|item| acceptance(row, item));
    Some((of_row(charge_id, row, Kind::ChargeInDoubt, message, amount), repair))
}

/// How an item is repaired that has another amount than the ledger: one over nothing is as good as none, one in another
/// currency cannot be added up with the others, and one on another customer is nobody's to take over.
fn acceptance(row: &LedgerRow, item: &BookItem) -> Option<Repair> {
    let attempt = row.attempt;
    match item.amount_minor {
        0 => Some(Repair::Fail { attempt }),
        _ => (row.currency == item.currency && row.customer == item.customer)
            .then(|| Repair::Accept { attempt, item: item.clone() }),
    }
}

/// What an item differs in from the attempt that it is of.
fn altered(charge_id: Uuid, row: &LedgerRow, item: &BookItem) -> Vec<Finding> {
    let meant = |key: &str| item.metadata.get(key).map_or("nothing", String::as_str);
    let mut findings = Vec::new();
    let mut add = |kind, message: String, amount: i64| {
        let delete = Repair::Delete { item_id: item.item_id.clone() };
        let repair = match kind {
            Kind::ItemAmountDiffers => acceptance(row, item),
            // Taken away it is missing, and is charged again where it belongs.
            Kind::ItemWrongCurrency | Kind::ItemWrongCustomer => item.invoice_id.is_none().then_some(delete),
            _ => None,
        };
        findings.push((at(of_row(charge_id, row, kind, message, amount), item), repair));
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

fn says(item: &BookItem) -> String {
    text(amount_of(item), &item.currency)
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
#[path = "compare_tests.rs"]
mod tests;
