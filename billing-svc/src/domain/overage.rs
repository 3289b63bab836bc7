//! What an account owes for a period, and the difference to what was charged.

use chrono::{DateTime, Utc};
use nexus_core::{
    money::{self, Currency, Micros, OutOfRange, UnitPrice},
    period::Period,
    plan::{Plan, SubscriptionStatus},
};

use super::{period::ParkReason, run::AccountError};

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
    pub parked: Option<ParkReason>,
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
        if self.is_unpriced()? {
            return Ok(Next::Park(ParkReason::NoPriceInCurrency));
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
            Some(ParkReason::NoPriceInCurrency) => self.price == Price::NoneInCurrency,
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
            ParkReason::Refused(_) => format!("Stripe refused a charge of {eco_id}"),
        };
        AccountError::new(eco_id, reason.as_str(), message)
    }

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
    fn is_unpriced(&self) -> Result<bool, OutOfRange> {
        Ok(self.price == Price::NoneInCurrency && self.overage()?.units > 0)
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;
    use proptest::prelude::*;

    use super::*;

    fn facts(price: UnitPrice, included: i64) -> Facts {
        let start = DateTime::UNIX_EPOCH;
        Facts {
            eco_id: "eco_a".to_owned(),
            period: Period { start, end: start + TimeDelta::days(31) },
            plan: Plan::Pro,
            plan_version: 1,
            status: SubscriptionStatus::Active,
            currency: Currency::USD,
            included: Some(included),
            price: Price::Is(price),
            segment_units: vec![0],
            last_event_time: None,
            summary: None,
            parked: None,
            stripe_customer_id: None,
            stripe_subscription_id: None,
            ledger: Ledger::default(),
            now: start,
        }
    }

    /// A run: the difference goes to the ledger.
    fn charge(facts: &mut Facts) -> Result<i64, OutOfRange> {
        let Some(difference) = facts.difference()? else { return Ok(0) };
        assert_eq!(difference.units_from, facts.ledger.units);
        facts.ledger.billed.0 += difference.amount.0;
        facts.ledger.units = difference.units_to;
        facts.ledger.last_sequence += 1;
        Ok(difference.amount.0)
    }

    proptest! {
        #[test]
        fn daily_charges_add_up_to_what_is_due_to_the_cent(
            micros in 1..50_000_i64,
            per_units in 1..1_000_i64,
            included in 0..2_000_i64,
            days in prop::collection::vec(0..3_000_i64, 1..40),
        ) {
            let mut facts = facts(UnitPrice { micros, per_units }, included);
            let mut charges = 0;
            for units in &days {
                facts.segment_units[0] += units;
                let amount = charge(&mut facts).map_err(|e| TestCaseError::fail(e.to_string()))?;
                charges += amount;
                // Whole cents, never a credit for more usage, and less than a cent is carried.
                prop_assert!(amount >= 0 && amount % 10_000 == 0);
                let total: i64 = facts.segment_units.iter().sum();
                let exact = i128::from((total - included).max(0)) * i128::from(micros) / i128::from(per_units);
                let carried = exact - i128::from(charges);
                prop_assert!((0..10_000).contains(&carried), "carried {carried}");
                prop_assert_eq!(charge(&mut facts), Ok(0), "a second run charges nothing");
            }
            // Settlement: half up, once.
            let exact = facts.overage().map(|o| o.exact.0);
            facts.now = facts.period.end + TimeDelta::hours(24);
            charges += charge(&mut facts).map_err(|e| TestCaseError::fail(e.to_string()))?;
            let rounded = exact.map(|exact| (exact + 5_000) / 10_000 * 10_000);
            prop_assert_eq!(Ok(charges), rounded);
            prop_assert_eq!(charge(&mut facts), Ok(0));
        }

        #[test]
        fn segments_of_one_plan_are_as_good_as_one(units in prop::collection::vec(0..100_000_i64, 1..6)) {
            let price = UnitPrice { micros: 1_000, per_units: 1 };
            let mut split = facts(price, 100_000);
            split.segment_units = units.clone();
            let mut whole = facts(price, 100_000);
            whole.segment_units = vec![units.iter().sum()];
            prop_assert_eq!(split.overage(), whole.overage());
        }
    }

    #[test]
    fn settlement_begins_24_hours_after_the_period() {
        let mut facts = facts(UnitPrice { micros: 1_000, per_units: 1 }, 0);
        facts.segment_units = vec![15];
        facts.now = facts.period.end + TimeDelta::hours(24) - TimeDelta::microseconds(1);
        assert_eq!(facts.due(), Ok(Micros(10_000)));
        facts.now = facts.period.end + TimeDelta::hours(24);
        assert_eq!(facts.due(), Ok(Micros(20_000)));
    }

    #[test]
    fn no_price_no_overage_and_no_price_in_the_currency_is_told_apart() {
        let mut facts = facts(UnitPrice { micros: 0, per_units: 1 }, 100);
        facts.segment_units = vec![500];
        assert_eq!(facts.overage(), Ok(Overage::default()));
        assert_eq!(facts.next(), Ok(Next::Nothing));
        facts.price = Price::NoneInCurrency;
        assert_eq!(facts.next(), Ok(Next::Park(ParkReason::NoPriceInCurrency)));
        assert_eq!(facts.difference(), Ok(None));
    }

    #[test]
    fn what_is_parked_stays_so_until_what_it_is_parked_for_is_there() {
        let mut facts = facts(UnitPrice { micros: 1_000, per_units: 1 }, 0);
        facts.segment_units = vec![20];
        let price = facts.price;
        let charge = Difference { amount: Micros(20_000), units_from: 0, units_to: 20 };
        let charge = Ok(Next::Charge { customer: "cus_a", difference: charge });
        let park = |reason| Ok(Next::Park(reason));
        use ParkReason::{NoPriceInCurrency, NoStripeCustomer};
        let refused = ParkReason::Refused("CARD_DECLINED".to_owned());
        for (parked, has_customer, has_price, expected) in [
            (None, true, true, charge.clone()),
            (None, false, true, park(NoStripeCustomer)),
            (None, true, false, park(NoPriceInCurrency)),
            (None, false, false, park(NoPriceInCurrency)),
            (Some(NoStripeCustomer), false, true, Ok(Next::Nothing)),
            (Some(NoStripeCustomer), false, false, Ok(Next::Nothing)),
            (Some(NoStripeCustomer), true, false, park(NoPriceInCurrency)),
            (Some(NoStripeCustomer), true, true, charge.clone()),
            (Some(NoPriceInCurrency), true, false, Ok(Next::Nothing)),
            (Some(NoPriceInCurrency), false, true, park(NoStripeCustomer)),
            (Some(NoPriceInCurrency), true, true, charge),
            (Some(refused), true, true, Ok(Next::Nothing)),
        ] {
            facts.stripe_customer_id = has_customer.then(|| "cus_a".to_owned());
            facts.price = if has_price { price } else { Price::NoneInCurrency };
            facts.parked = parked;
            assert_eq!(facts.next(), expected, "{:?} {has_customer} {has_price}", facts.parked);
        }
    }

    #[test]
    fn a_period_that_owes_nothing_is_settled_once_it_takes_no_more_usage() {
        let mut facts = facts(UnitPrice { micros: 1_000, per_units: 1 }, 0);
        assert_eq!(facts.next(), Ok(Next::Nothing));
        facts.now = facts.period.end + TimeDelta::hours(24);
        assert_eq!(facts.next(), Ok(Next::Settle));
        facts.parked = Some(ParkReason::Refused("CARD_DECLINED".to_owned()));
        assert_eq!(facts.next(), Ok(Next::Nothing));
    }
}
