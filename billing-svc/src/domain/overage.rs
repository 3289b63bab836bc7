//! What an account owes for a period, and the difference to what was charged.

use chrono::{DateTime, Utc};
use nexus_core::{
    money::{self, Currency, Micros, OutOfRange, UnitPrice},
    period::Period,
    plan::{Plan, SubscriptionStatus},
};

/// Everything that decides about an account's overage in one period, read in one statement.
#[derive(Debug, Clone)]
pub struct Facts {
    /// Account.
    pub eco_id: String,
    /// The period.
    pub period: Period,
    /// Plan and version that price it.
    pub plan: Plan,
    /// Version of the plan.
    pub plan_version: i32,
    /// State of the subscription now.
    pub status: SubscriptionStatus,
    /// Currency of the account.
    pub currency: Currency,
    /// Units the plan includes; `None`: unlimited.
    pub included: Option<i64>,
    /// Price of overage in the account's currency.
    pub price: Price,
    /// Units recorded in each segment of the period, in order.
    pub segment_units: Vec<i64>,
    /// Newest event.
    pub last_event_time: Option<DateTime<Utc>>,
    /// Overage that the summary says, if there is one.
    pub summary: Option<Overage>,
    /// Why the period is parked, if it is.
    pub parked_reason: Option<String>,
    /// Customer at Stripe.
    pub stripe_customer_id: Option<String>,
    /// Subscription at Stripe.
    pub stripe_subscription_id: Option<String>,
    /// What the ledger holds.
    pub ledger: Ledger,
    /// Database time of the reading.
    pub now: DateTime<Utc>,
}

/// Price of overage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Price {
    /// The plan bills overage at this price; 0 micros: it does not bill overage.
    Is(UnitPrice),
    /// The plan has no prices in the account's currency.
    NoneInCurrency,
}

/// Σ of the ledger of a period, charges in doubt included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ledger {
    /// Charged so far.
    pub billed: Micros,
    /// Overage units charged for so far.
    pub units: i64,
    /// Number of the last charge; 0: none.
    pub last_sequence: i32,
    /// Whether a charge is in doubt.
    pub pending: bool,
}

/// Overage of a period.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Overage {
    /// Units beyond the included ones.
    pub units: i64,
    /// Their exact cost.
    pub exact: Micros,
}

/// A charge that brings the ledger to what is due; negative: a credit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Difference {
    /// Whole chargeable units, never 0.
    pub amount: Micros,
    /// Overage units charged for before.
    pub units_from: i64,
    /// And after.
    pub units_to: i64,
}

impl Facts {
    /// Units recorded in the period.
    pub fn api_calls(&self) -> i64 {
        self.segment_units.iter().sum()
    }

    /// Overage to date. Segments follow each other: one begins at the count where the one before ended.
    /// A subscription that does not grant its plan accrues no new overage; what had accrued stays.
    pub fn overage(&self) -> Result<Overage, OutOfRange> {
        if !self.status.grants_plan() {
            return Ok(self.summary.unwrap_or_default());
        }
        let price = match self.price {
            Price::Is(price) if price.micros == 0 => return Ok(Overage::default()),
            Price::Is(price) => Some(price),
            Price::NoneInCurrency => None,
        };
        let mut overage = Overage::default();
        let mut count = 0;
        for units in &self.segment_units {
            let beyond = money::overage_units(self.included, count, count + units);
            let cost = price.map(|p| p.cost(beyond)).transpose()?.unwrap_or_default();
            overage.units += beyond;
            overage.exact = Micros(overage.exact.0.checked_add(cost.0).ok_or(OutOfRange)?);
            count += units;
        }
        Ok(overage)
    }

    /// Whether the period takes no more events, so that it is rounded for good.
    pub fn is_settling(&self) -> bool {
        self.period.is_settled(self.now)
    }

    /// What is due now: whole cents, rounded down until final settlement.
    pub fn due(&self) -> Result<Micros, OutOfRange> {
        money::due(self.overage()?.exact, self.currency.minor_unit(), self.is_settling())
    }

    /// The charge to make now, if any.
    pub fn difference(&self) -> Result<Option<Difference>, OutOfRange> {
        let amount = self.due()?.0.checked_sub(self.ledger.billed.0).ok_or(OutOfRange)?;
        let units_to = self.overage()?.units;
        let charge = Difference { amount: Micros(amount), units_from: self.ledger.units, units_to };
        Ok((amount != 0).then_some(charge))
    }

    /// Whether overage cannot be priced: the plan has no price in the account's currency.
    pub fn is_unpriced(&self) -> Result<bool, OutOfRange> {
        Ok(self.price == Price::NoneInCurrency && self.overage()?.units > 0)
    }
}
