//! An entry of the ledger: its key, its exact payload, the text on the invoice.

use std::{collections::BTreeMap, str::FromStr};

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use nexus_core::{money::Micros, period::Period, text::thousands as grouped};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    basis::{Basis, Reckoning},
    overage::{Difference, Facts},
    period::PeriodKey,
};

/// Names of charges are made within this namespace.
const NAMESPACE: Uuid = Uuid::from_u128(0x6a1d_41f0_5c0e_4a55_9d5c_0d3a_7f3e_11b2);

/// Age from which an attempt is never sent again: Stripe may forget its key after 24 hours.
pub const KEY_LIFE: TimeDelta = TimeDelta::hours(23);

/// How long after the last attempt of a charge its items are looked through once more, where an attempt was
/// replaced.
pub const RECHECK_AFTER: TimeDelta = TimeDelta::minutes(10);

/// What may be done with an attempt now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// It may be sent.
    Send,
    /// As old as [`KEY_LIFE`]: its key may be forgotten.
    Old,
    /// No longer in doubt, or replaced.
    Gone,
}

/// A charge as it is written down before it is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Intent {
    /// The same for all attempts.
    pub charge_id: Uuid,
    /// From 1; the next one replaces it.
    pub attempt: i32,
    /// Account.
    pub eco_id: String,
    /// Period.
    pub period: Period,
    /// Number within the period, from 1.
    pub sequence: i32,
    /// Amount and units.
    pub difference: Difference,
    /// What is sent.
    pub item: InvoiceItem,
    /// What the amount follows from; `None`: it was not kept.
    pub basis: Option<Basis>,
}

/// Where a charge is put.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Target {
    /// It waits for the customer's next invoice.
    #[default]
    Upcoming,
    /// On this draft, which closes the period that ends then.
    Draft {
        /// Its id.
        invoice_id: String,
        /// End of the billing period.
        closes: DateTime<Utc>,
    },
}

/// An invoice item, exactly as it is sent: every attempt of a key sends the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InvoiceItem {
    /// Customer at Stripe.
    pub customer: String,
    /// Subscription at Stripe; none: the item is on the customer alone.
    pub subscription: Option<String>,
    /// Draft it is put on; none: it is pending.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub invoice: Option<String>,
    /// Amount in minor units; negative: a credit.
    pub amount_minor: i64,
    /// ISO 4217, in capitals.
    pub currency: String,
    /// Text on the invoice.
    pub description: String,
    /// Tells what the item stands for; `charge_id` names it.
    pub metadata: BTreeMap<String, String>,
}

/// State of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChargeStatus {
    /// Written down; whether Stripe has it is not known yet.
    Pending,
    /// At Stripe.
    Succeeded,
    /// Refused by Stripe for good.
    Failed,
    /// Replaced by a later attempt.
    Superseded,
}

/// A text that names no status.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown status of a charge `{0}`")]
pub struct UnknownStatus(String);

impl FromStr for ChargeStatus {
    type Err = UnknownStatus;
    fn from_str(text: &str) -> Result<Self, UnknownStatus> {
        match text {
            "pending" => Ok(Self::Pending),
            "succeeded" => Ok(Self::Succeeded),
            "failed" => Ok(Self::Failed),
            "superseded" => Ok(Self::Superseded),
            _ => Err(UnknownStatus(text.to_owned())),
        }
    }
}

/// An attempt as the ledger has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Charge {
    /// The same for all attempts.
    pub charge_id: Uuid,
    /// From 1.
    pub attempt: i32,
    /// Account.
    pub eco_id: String,
    /// Period.
    pub period: Period,
    /// Number within the period.
    pub sequence: i32,
    /// Amount and units.
    pub difference: Difference,
    /// ISO 4217.
    pub currency_code: String,
    /// State.
    pub status: ChargeStatus,
    /// Item at Stripe.
    pub stripe_invoice_item_id: Option<String>,
    /// Why it failed.
    pub failure_reason: Option<String>,
    /// When it was written down.
    pub created_time: DateTime<Utc>,
}

/// Metadata key that names the charge an item stands for.
pub const CHARGE_ID: &str = "charge_id";

/// Metadata key of a charge for a period whose invoice was made before it.
pub const LATE: &str = "late";

impl Intent {
    /// The next charge of a period.
    pub fn new(facts: &Facts, customer: &str, difference: Difference, target: &Target) -> Self {
        let sequence = facts.ledger.last_sequence + 1;
        let charge_id = charge_id(&facts.eco_id, facts.period, sequence);
        let calls = difference.units_to - difference.units_from;
        let metadata = [
            ("eco_id", facts.eco_id.clone()),
            ("overage_calls", calls.to_string()),
            ("billing_period_start", rfc3339(facts.period.start)),
            ("billing_period_end", rfc3339(facts.period.end)),
            (CHARGE_ID, charge_id.to_string()),
        ];
        let item = InvoiceItem {
            customer: customer.to_owned(),
            subscription: facts.stripe_subscription_id.clone(),
            invoice: match target {
                Target::Draft { invoice_id, .. } => Some(invoice_id.clone()),
                Target::Upcoming => None,
            },
            amount_minor: facts.currency.minor_unit().to_minor(difference.amount),
            currency: facts.currency.to_string(),
            description: description(difference, facts.exceeded_limit()),
            metadata: metadata.map(|(key, value)| (key.to_owned(), value)).into(),
        };
        let mut intent = Self {
            charge_id,
            attempt: 1,
            eco_id: facts.eco_id.clone(),
            period: facts.period,
            sequence,
            difference,
            item,
            basis: Some(Basis::Difference(Reckoning::of(facts, &difference))),
        };
        let is_late = match target {
            // Without a subscription there is no invoice of the period that it could be too late for.
            Target::Upcoming => intent.item.subscription.is_some() && facts.now >= facts.period.end,
            Target::Draft { closes, .. } => facts.period.end < *closes,
        };
        if is_late {
            intent.mark_late();
        }
        intent
    }

    /// The same charge under a new key.
    pub fn next_attempt(&self) -> Self {
        Self { attempt: self.attempt + 1, ..self.clone() }
    }

    /// Where Stripe may take the charge that does not take it there, under a new key. The draft that it names may have
    /// been finalised, or be full: then it is for the next invoice. The subscription that it names may have ended: then
    /// it is on the customer alone, who always takes it. `None`: it is there already.
    pub fn elsewhere(&self) -> Option<Self> {
        let mut next = self.next_attempt();
        if next.item.invoice.take().is_some() {
            next.mark_late();
        } else {
            next.item.subscription.take()?;
        }
        Some(next)
    }

    /// It is on a later invoice than that of its period.
    fn mark_late(&mut self) {
        if self.item.metadata.contains_key(LATE) {
            return;
        }
        let end = self.period.end.format("%-d %b %Y");
        self.item.description = format!("{} (late, of the period until {end})", self.item.description);
        self.item.metadata.insert(LATE.to_owned(), "true".to_owned());
    }

    /// The period it belongs to.
    pub fn period_key(&self) -> PeriodKey {
        PeriodKey { eco_id: self.eco_id.clone(), start: self.period.start }
    }

    /// The next charge of a period, which takes an item back that is on an invoice by mistake.
    pub fn correction(facts: &Facts, wrong: &Self) -> Self {
        let amount = Micros(-wrong.difference.amount.0);
        let units = facts.ledger.units;
        let difference = Difference { amount, units_from: units, units_to: units };
        let mut intent = Self::new(facts, &wrong.item.customer, difference, &Target::Upcoming);
        intent.basis =
            Some(Basis::Correction { of: wrong.charge_id, item_micros: wrong.difference.amount.0 });
        if facts.stripe_customer_id.as_deref() != Some(&wrong.item.customer) {
            intent.item.subscription = None;
        }
        intent.item.description = format!("Correction, invoiced twice: {}", wrong.item.description);
        intent.item.metadata.remove(LATE);
        intent
    }

    /// Idempotency key at Stripe: the same account, period, sequence and attempt always have the same.
    pub fn key(&self) -> String {
        let start = self.period.start.timestamp_micros();
        format!("nexus-overage-{}-{start}-{}-{}", self.eco_id, self.sequence, self.attempt)
    }
}

/// The name of a charge: the same account, period and sequence always have the same.
pub fn charge_id(eco_id: &str, period: Period, sequence: i32) -> Uuid {
    let name = format!("{eco_id}/{}/{sequence}", period.start.timestamp_micros());
    Uuid::new_v5(&NAMESPACE, name.as_bytes())
}

/// `API overage: 5,000 calls beyond 100k limit`, of the calls of this charge alone. A period with overage of
/// plans of several limits names none of them.
fn description(difference: Difference, limit: Option<i64>) -> String {
    let limit = limit.map_or_else(|| "plan".to_owned(), short);
    match difference.units_to - difference.units_from {
        0 if difference.amount.0 < 0 => "API overage: correction".to_owned(),
        0 => format!(
            "API overage: final rounding of {} calls beyond {limit} limit",
            grouped(difference.units_to)
        ),
        calls if calls < 0 => {
            format!("API overage: correction of {} calls beyond {limit} limit", grouped(calls))
        }
        calls => format!("API overage: {} calls beyond {limit} limit", grouped(calls)),
    }
}

/// A number as short as it can be said exactly: `100k`, `1.5M`, `1,234`.
fn short(n: i64) -> String {
    for (unit, suffix) in [(1_000_000_000, "B"), (1_000_000, "M"), (1_000, "k")] {
        let tenth = unit / 10;
        if n >= unit && n % tenth == 0 {
            let (whole, tenths) = (n / unit, n % unit / tenth);
            return if tenths == 0 {
                format!("{}{suffix}", grouped(whole))
            } else {
                format!("{}.{tenths}{suffix}", grouped(whole))
            };
        }
    }
    grouped(n)
}

fn rfc3339(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::AutoSi, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(from: i64, to: i64, included: i64) -> String {
        description(Difference { amount: Micros(10_000), units_from: from, units_to: to }, Some(included))
    }

    #[test]
    fn the_text_on_the_invoice_says_the_calls_of_this_charge_and_the_limit() {
        assert_eq!(text(0, 5_000, 100_000), "API overage: 5,000 calls beyond 100k limit");
        assert_eq!(text(5_000, 1_239_567, 1_500_000), "API overage: 1,234,567 calls beyond 1.5M limit");
        assert_eq!(text(0, 7, 1_234), "API overage: 7 calls beyond 1,234 limit");
        assert_eq!(text(0, 7, 0), "API overage: 7 calls beyond 0 limit");
        assert_eq!(text(15, 15, 100_000), "API overage: final rounding of 15 calls beyond 100k limit");
        assert_eq!(text(1_000, 0, 100_000), "API overage: correction of -1,000 calls beyond 100k limit");
        let credit = Difference { amount: Micros(-10_000), units_from: 15, units_to: 15 };
        assert_eq!(description(credit, Some(100_000)), "API overage: correction");
        let of_two_plans = Difference { amount: Micros(10_000), units_from: 0, units_to: 5_000 };
        assert_eq!(description(of_two_plans, None), "API overage: 5,000 calls beyond plan limit");
    }

    #[test]
    fn limits_are_short_only_where_that_is_exact() {
        assert_eq!(short(100_000), "100k");
        assert_eq!(short(2_000_000_000), "2B");
        assert_eq!(short(1_250_000), "1,250k");
        assert_eq!(short(100_001), "100,001");
        assert_eq!(short(999), "999");
    }
}
