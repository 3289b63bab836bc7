//! What an account owes for a period, and the difference to what was charged.

use std::iter;

use chrono::{DateTime, Utc};
use nexus_core::{
    money::{self, Currency, Micros, OutOfRange, UnitPrice},
    period::Period,
    plan::Plan,
};

use super::{period::ParkReason, run::AccountError};

/// Everything that decides about an account's overage in one period, read in one statement.
#[derive(Debug, Clone)]
pub struct Facts {
    /// Account.
    pub eco_id: String,
    /// The period.
    pub period: Period,
    /// Plan of its open segment.
    pub plan: Plan,
    /// Version of the plan.
    pub plan_version: i32,
    /// Whether the subscription granted its plan at the period's end, or grants it now if that is still to come.
    pub granted: bool,
    /// Currency of the account.
    pub currency: Currency,
    /// What that plan says of overage, in the account's currency.
    pub terms: Terms,
    /// The segments that changes of plan have closed, in order.
    pub closed: Vec<ClosedSegment>,
    /// Units recorded in the segment after them, which is open; adjustments count as recorded.
    pub open_units: i64,
    /// Newest event.
    pub last_event_time: Option<DateTime<Utc>>,
    /// Overage that the summary says, if there is one.
    pub summary: Option<Overage>,
    /// Why the period is parked, if it is.
    pub parked: Option<ParkReason>,
    /// Customer at Stripe.
    pub stripe_customer_id: Option<String>,
    /// Subscription at Stripe.
    pub stripe_subscription_id: Option<String>,
    /// What the ledger holds.
    pub ledger: Ledger,
    /// From when on the period takes no more usage, and is rounded for good.
    pub settle_time: DateTime<Utc>,
    /// Whether it was rounded for good once, and goes on: then it is rounded so ever since.
    pub rounded: bool,
    /// Database time of the reading.
    pub now: DateTime<Utc>,
}

/// A segment, as a rule one that a change of plan has closed: its counts do not alter any more, nor do its terms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClosedSegment {
    /// Its plan.
    pub plan: Plan,
    /// Version of the plan.
    pub plan_version: i32,
    /// Units recorded in it.
    pub units: i64,
    /// Of these, beyond the included ones.
    pub overage_units: i64,
    /// What its plan says of overage.
    pub terms: Terms,
    /// Whether the subscription granted its plan: only then do its units accrue overage.
    pub granted: bool,
}

impl ClosedSegment {
    /// Overage of its units, where its plan is granted and the period had so many units when it began.
    pub fn accrues(&self, start: i64) -> i64 {
        match self.terms.price {
            Price::Is(price) if price.micros == 0 => 0,
            _ => money::overage_units(self.terms.included, start, start + self.units),
        }
    }
}

/// What a plan says of overage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// Units it includes; `None`: unlimited.
    pub included: Option<i64>,
    /// Price of those beyond.
    pub price: Price,
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

/// Most that a period's overage may cost: the sum over many accounts is still within range.
const MOST_COST: Micros = Micros(10_000_000_000_000_000);

/// Most that Stripe takes in one item, in minor units: eight digits.
const MOST_MINOR: i64 = 99_999_999;

/// A charge that brings the ledger to what is due, or as near as one may; negative: a credit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Difference {
    /// Whole chargeable units, never 0.
    pub amount: Micros,
    /// Overage units charged for before.
    pub units_from: i64,
    /// And after.
    pub units_to: i64,
}

impl Difference {
    /// The same charge over another amount: of its units as large a part as of the amount.
    pub fn over(self, amount: Micros) -> Self {
        let units = i128::from(self.units_to - self.units_from) * i128::from(amount.0);
        let units = units / i128::from(self.amount.0);
        let units_to = i64::try_from(i128::from(self.units_from) + units).unwrap_or(self.units_to);
        Self { amount, units_to, ..self }
    }
}

/// What is to be done about a period in which no charge is in doubt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next<'a> {
    /// Nothing: it owes nothing, or what it is parked for is still missing.
    Nothing,
    /// It takes no more usage and owes nothing: it is done for good.
    Settle,
    /// It owes and cannot be charged, which was not so before.
    Park(ParkReason),
    /// It owes this.
    Charge {
        /// Who is charged at Stripe.
        customer: &'a str,
        /// The charge.
        difference: Difference,
    },
}

impl Facts {
    /// What is to be done about the period: what a run does, and what a dry run says.
    pub fn next(&self) -> Result<Next<'_>, OutOfRange> {
        if self.stays_parked() {
            return Ok(Next::Nothing);
        }
        if self.is_unpriced() {
            return Ok(Next::Park(ParkReason::NoPriceInCurrency));
        }
        if self.overage().is_err() {
            return Ok(Next::Park(ParkReason::AmountOutOfRange));
        }
        Ok(match (self.difference()?, self.stripe_customer_id.as_deref()) {
            (None, _) if self.is_settling() => Next::Settle,
            (None, _) => Next::Nothing,
            (Some(_), None) => Next::Park(ParkReason::NoStripeCustomer),
            (Some(difference), Some(customer)) => Next::Charge { customer, difference },
        })
    }

    /// Whether the period is parked, and what it is parked for is still missing. A run's candidates are
    /// selected by the same rule.
    fn stays_parked(&self) -> bool {
        match &self.parked {
            None => false,
            Some(ParkReason::NoStripeCustomer) => self.stripe_customer_id.is_none(),
            Some(ParkReason::NoPriceInCurrency) => self.is_unpriced(),
            Some(ParkReason::AmountOutOfRange) => self.overage().is_err(),
            Some(ParkReason::Refused(_)) => true,
        }
    }

    /// What is told of the account when the period is parked.
    pub fn park_error(&self, reason: &ParkReason) -> AccountError {
        let eco_id = &self.eco_id;
        let message = match reason {
            ParkReason::NoStripeCustomer => format!("No Stripe customer ID found for {eco_id}"),
            ParkReason::NoPriceInCurrency => {
                format!("The plan of {eco_id} has no price in {}", self.currency)
            }
            ParkReason::AmountOutOfRange => {
                format!("The overage of {eco_id} costs more than can be counted")
            }
            ParkReason::Refused(_) => format!("Stripe refused a charge of {eco_id}"),
        };
        AccountError::new(eco_id, reason.as_str(), message)
    }

    /// Units recorded in the period.
    pub fn api_calls(&self) -> i64 {
        self.units_before() + self.open_units
    }

    /// Units recorded in the closed segments.
    fn units_before(&self) -> i64 {
        self.closed.iter().map(|segment| segment.units).sum()
    }

    /// Overage units of the open segment, which begins at the count where those before ended. A plan that is not
    /// granted accrues no new overage; what had accrued stays.
    pub fn open_overage(&self) -> i64 {
        if !self.granted {
            let accrued = self.summary.unwrap_or_default().units;
            return (accrued - self.closed.iter().map(|segment| segment.overage_units).sum::<i64>()).max(0);
        }
        match self.terms.price {
            Price::Is(price) if price.micros == 0 => 0,
            _ => money::overage_units(self.terms.included, self.units_before(), self.api_calls()),
        }
    }

    /// All segments in order, the open one last.
    pub fn segments(&self) -> impl Iterator<Item = ClosedSegment> + use<'_> {
        self.closed.iter().copied().chain(iter::once(ClosedSegment {
            plan: self.plan,
            plan_version: self.plan_version,
            units: self.open_units,
            overage_units: self.open_overage(),
            terms: self.terms,
            granted: self.granted,
        }))
    }

    /// Each segment's overage units, with the terms they are counted by.
    fn overage_by_segment(&self) -> impl Iterator<Item = (Terms, i64)> + use<'_> {
        self.segments().map(|segment| (segment.terms, segment.overage_units)).filter(|(_, units)| *units > 0)
    }

    /// Overage to date: the sum over the segments. An error where it costs more than can be counted.
    pub fn overage(&self) -> Result<Overage, OutOfRange> {
        let priced = self.overage_by_segment().filter_map(|(terms, units)| match terms.price {
            Price::Is(price) => Some((price, units)),
            Price::NoneInCurrency => None,
        });
        let exact = money::cost(priced)?;
        if exact > MOST_COST {
            return Err(OutOfRange);
        }
        Ok(Overage { units: self.overage_count(), exact })
    }

    /// The same for the summary. What cannot be priced, or counted, costs nothing there, and is parked.
    pub fn overage_of_summary(&self) -> Overage {
        self.overage().unwrap_or_else(|_| Overage { units: self.overage_count(), exact: Micros(0) })
    }

    fn overage_count(&self) -> i64 {
        self.overage_by_segment().map(|(_, units)| units).sum()
    }

    /// What the newest overage is counted by: the terms of the last segment that has any.
    pub fn overage_terms(&self) -> Terms {
        self.overage_by_segment().last().map_or(self.terms, |(terms, _)| terms)
    }

    /// The included units that all overage is beyond; `None`: those of several plans.
    pub fn exceeded_limit(&self) -> Option<i64> {
        let limit = self.overage_terms().included;
        let one = self.overage_by_segment().all(|(terms, _)| terms.included == limit);
        one.then(|| limit.unwrap_or_default())
    }

    /// Whether the period takes no more events, so that it is rounded for good.
    pub fn is_settling(&self) -> bool {
        self.now >= self.settle_time
    }

    /// Whether half a cent is rounded up: it is settled for good, or was once.
    pub fn rounds_up(&self) -> bool {
        self.rounded || self.is_settling()
    }

    /// What is due now: whole cents, rounded down until final settlement.
    pub fn due(&self) -> Result<Micros, OutOfRange> {
        money::due(self.overage()?.exact, self.currency.minor_unit(), self.rounds_up())
    }

    /// The charge to make now, if any.
    pub fn difference(&self) -> Result<Option<Difference>, OutOfRange> {
        let amount = self.due()?.0.checked_sub(self.ledger.billed.0).ok_or(OutOfRange)?;
        let unit = self.currency.minor_unit();
        let most = unit.floor(unit.from_minor(MOST_MINOR).ok_or(OutOfRange)?).0;
        let part = amount.clamp(-most, most);
        // Of the units as large a part as of the amount.
        let units = self.overage()?.units.checked_sub(self.ledger.units).ok_or(OutOfRange)?;
        let units = match part == amount {
            true => units,
            false => (i128::from(units) * i128::from(part) / i128::from(amount)) as i64,
        };
        let charge = Difference {
            amount: Micros(part),
            units_from: self.ledger.units,
            units_to: self.ledger.units + units,
        };
        Ok((amount != 0).then_some(charge))
    }

    /// Whether that charge brings the ledger only nearer to what is due.
    pub fn is_part(&self, difference: &Difference) -> Result<bool, OutOfRange> {
        Ok(self.ledger.billed.0.checked_add(difference.amount.0) != Some(self.due()?.0))
    }

    /// Whether overage cannot be priced: its plan has no price in the account's currency.
    fn is_unpriced(&self) -> bool {
        self.overage_by_segment().any(|(terms, _)| terms.price == Price::NoneInCurrency)
    }
}

#[cfg(test)]
#[path = "overage_tests.rs"]
mod tests;
