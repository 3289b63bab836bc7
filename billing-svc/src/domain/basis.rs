//! What a charge follows from, kept with it: it adds up to the charge's amount for ever, whatever becomes of the account.

use chrono::{DateTime, SecondsFormat, Utc};
use nexus_core::{
    money::{self, Currency, Micros, OutOfRange, UnitPrice},
    plan::Plan,
    text::thousands,
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::overage::{Difference, Facts, Price};

/// Why a charge has its amount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Basis {
    /// It is what was due less what was charged before.
    Difference(Reckoning),
    /// It takes back an item that is on an invoice twice.
    Correction {
        /// The charge that the item is of.
        of: Uuid,
        /// The item's amount.
        item_micros: i64,
    },
    /// It is an item that is on an invoice twice; a correction follows it.
    Duplicate {
        /// The item's amount.
        item_micros: i64,
    },
}

/// What is kept of why a charge has its amount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// What it follows from, if that is known.
    pub basis: Option<Basis>,
    /// Whether it is in the ledger as Stripe has it.
    pub taken_over: Option<TakenOver>,
}

/// How a charge was brought to what Stripe has of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TakenOver {
    /// When.
    pub time: DateTime<Utc>,
    /// What it followed from as it was written down first, if the ledger ever had that.
    pub first: Option<Basis>,
}

impl Kept {
    /// What is known, in words; `None`: nothing.
    pub fn explanation(&self) -> Result<Option<String>, OutOfRange> {
        let basis = self.basis.as_ref().map(Basis::explanation).transpose()?;
        let Some(TakenOver { time, first }) = &self.taken_over else { return Ok(basis) };
        let time = time.to_rfc3339_opts(SecondsFormat::Secs, true);
        let told = format!("A reconciliation took it over on {time} as Stripe had it.");
        let first = first.as_ref().map(Basis::explanation).transpose()?;
        Ok(Some(match (basis, first) {
            (Some(basis), _) => format!("{told} {basis}"),
            (None, Some(first)) => format!("{told} It was first written down so: {first}"),
            (None, None) => format!("{told} What it followed from is not in the ledger."),
        }))
    }
}

/// Counts, plans, prices and the ledger, as they were when a charge was written down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reckoning {
    /// Segments of the period, in order; the last was open.
    pub segments: Vec<Segment>,
    /// ISO 4217.
    pub currency: String,
    /// Whether it was rounded for good: half a cent, or of what else is charged, up; else down.
    pub settling: bool,
    /// Charged before.
    pub billed_micros: i64,
    /// What is charged now, where that is a part of what is owed: as much as Stripe takes at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part_micros: Option<i64>,
}

/// A stretch of a period under one plan version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// The plan.
    pub plan: Plan,
    /// Its version.
    pub plan_version: i32,
    /// Units of the period when it began.
    pub start_units: i64,
    /// Units of the period when it ended, or to date.
    pub end_units: i64,
    /// Units included; `None`: unlimited.
    pub included_units: Option<i64>,
    /// Units beyond them.
    pub overage_units: i64,
    /// Price of `price_per_units` units; 0: overage is not billed.
    pub price_micros: i64,
    /// Units the price is for.
    pub price_per_units: i64,
    /// Whether the subscription granted the plan; charges of before this was kept do not say so, and count as if it did.
    #[serde(default = "granted", skip_serializing_if = "is_granted")]
    pub granted: bool,
}

fn granted() -> bool {
    true
}

fn is_granted(granted: &bool) -> bool {
    *granted
}

impl Basis {
    /// The amount that follows from it.
    pub fn amount(&self) -> Result<Micros, OutOfRange> {
        match self {
            Self::Difference(reckoning) => reckoning.amount(),
            Self::Correction { item_micros, .. } => item_micros.checked_neg().map(Micros).ok_or(OutOfRange),
            Self::Duplicate { item_micros } => Ok(Micros(*item_micros)),
        }
    }
}

impl Basis {
    /// The arithmetic in words.
    pub fn explanation(&self) -> Result<String, OutOfRange> {
        Ok(match self {
            Self::Difference(reckoning) => reckoning.explanation()?,
            Self::Correction { of, .. } => {
                format!("Takes back an item of charge {of} that was on an invoice twice.")
            }
            Self::Duplicate { .. } => {
                "Is an item that was on an invoice twice; a correction takes it back.".to_owned()
            }
        })
    }
}

impl Reckoning {
    /// Of the facts as they are.
    pub fn of(facts: &Facts, difference: &Difference) -> Self {
        let mut start_units = 0;
        let segments = facts.segments().map(|segment| {
            let price = match segment.terms.price {
                Price::Is(price) => price,
                Price::NoneInCurrency => UnitPrice { micros: 0, per_units: 1 },
            };
            let kept = Segment {
                plan: segment.plan,
                plan_version: segment.plan_version,
                start_units,
                end_units: start_units + segment.units,
                included_units: segment.terms.included,
                overage_units: segment.overage_units,
                price_micros: price.micros,
                price_per_units: price.per_units,
                granted: segment.granted,
            };
            start_units = kept.end_units;
            kept
        });
        Self {
            segments: segments.collect(),
            currency: facts.currency.to_string(),
            settling: facts.rounds_up(),
            billed_micros: facts.ledger.billed.0,
            part_micros: facts.is_part(difference).unwrap_or_default().then_some(difference.amount.0),
        }
    }

    /// Cost of all overage, exact.
    pub fn exact(&self) -> Result<Micros, OutOfRange> {
        money::cost(self.segments.iter().map(|segment| (segment.price(), segment.overage_units)))
    }

    /// The part of the exact cost that each segment adds: they add up to it.
    pub fn exact_by_segment(&self) -> Result<Vec<Micros>, OutOfRange> {
        (0..self.segments.len())
            .map(|place| {
                let upto = |count: usize| {
                    let own = self.segments[place].price();
                    let same = self.segments[..count].iter().filter(|segment| segment.price() == own);
                    own.cost(same.map(|segment| segment.overage_units).sum())
                };
                Ok(Micros(upto(place + 1)?.0 - upto(place)?.0))
            })
            .collect()
    }

    /// What was due, in whole cents.
    pub fn due(&self) -> Result<Micros, OutOfRange> {
        let currency: Currency = self.currency.parse().map_err(|_| OutOfRange)?;
        money::due(self.exact()?, currency.minor_unit(), self.settling)
    }

    fn explanation(&self) -> Result<String, OutOfRange> {
        let currency = &self.currency;
        let mut text = String::new();
        for (segment, part) in self.segments.iter().zip(self.exact_by_segment()?) {
            let Segment { plan, plan_version, start_units, end_units, overage_units, .. } = segment;
            let counted = match segment.included_units {
                _ if !segment.granted => {
                    format!("{} calls, while the plan was not granted", thousands(*end_units - *start_units))
                }
                Some(included) => {
                    format!("{} calls, less {}", thousands(*end_units), thousands(included.max(*start_units)))
                }
                None => "unlimited".to_owned(),
            };
            let price = decimal(segment.price_micros);
            let per = match segment.price_per_units {
                1 => "a call".to_owned(),
                n => format!("for {} calls", thousands(n)),
            };
            text += &format!(
                "{plan} (version {plan_version}): {counted}: {} at {price} {currency} {per} = {} {currency}; ",
                thousands(*overage_units),
                decimal(part.0)
            );
        }
        let rounding = if self.settling { "half up" } else { "down" };
        let (due, billed) = (decimal(self.due()?.0), decimal(self.billed_micros));
        let amount = decimal(self.amount()?.0);
        let this =
            if self.part_micros.is_some() { "this charge, as much as one may be" } else { "this charge" };
        text += &format!(
            "rounded {rounding}: {due} {currency}; charged before: {billed} {currency}; {this}: {amount} {currency}"
        );
        Ok(text)
    }

    fn amount(&self) -> Result<Micros, OutOfRange> {
        match self.part_micros {
            Some(part) => Ok(Micros(part)),
            None => self.due()?.0.checked_sub(self.billed_micros).map(Micros).ok_or(OutOfRange),
        }
    }
}

impl Segment {
    fn price(&self) -> UnitPrice {
        UnitPrice { micros: self.price_micros, per_units: self.price_per_units }
    }
}

/// Micros as a decimal number, without needless zeros.
fn decimal(micros: i64) -> String {
    let (units, rest) = (micros.unsigned_abs() / 1_000_000, micros.unsigned_abs() % 1_000_000);
    let sign = if micros < 0 { "-" } else { "" };
    let fraction = format!("{rest:06}");
    let fraction = fraction.trim_end_matches('0');
    format!("{sign}{units}.{fraction:0<2}")
}

#[cfg(test)]
#[path = "basis_tests.rs"]
mod tests;
