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
        granted: true,
        currency: Currency::USD,
        terms: Terms { included: Some(included), price: Price::Is(price) },
        closed: Vec::new(),
        open_units: 0,
        last_event_time: None,
        summary: None,
        parked: None,
        stripe_customer_id: None,
        stripe_subscription_id: None,
        ledger: Ledger::default(),
        settle_time: start + TimeDelta::days(32),
        rounded: false,
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

/// Closes the open segment, as a change of plan does.
fn close(facts: &mut Facts, next: Terms) {
    let (units, overage_units) = (facts.open_units, facts.open_overage());
    let (plan, plan_version, terms) = (facts.plan, facts.plan_version, facts.terms);
    let granted = facts.granted;
    facts.closed.push(ClosedSegment { plan, plan_version, units, overage_units, terms, granted });
    (facts.open_units, facts.terms) = (0, next);
}

#[derive(Debug, Clone)]
enum Happening {
    Calls(i64),
    Change(Terms),
    Run,
}

/// Calls, runs and changes among a few plans: unlimited ones, ones that bill nothing, the same ones again.
fn happening() -> impl Strategy<Value = Happening> {
    let included = prop::sample::select(vec![Some(0), Some(100), Some(150), Some(1_000), None]);
    let price = prop::sample::select(vec![(0, 1), (1_000, 1), (1_000, 7), (70_001, 3)]);
    let terms = (included, price).prop_map(|(included, (micros, per_units))| Terms {
        included,
        price: Price::Is(UnitPrice { micros, per_units }),
    });
    prop_oneof![
        3 => (0..120_i64).prop_map(Happening::Calls),
        2 => terms.prop_map(Happening::Change),
        1 => Just(Happening::Run),
    ]
}

/// Units beyond what their plans include, and what they cost.
fn beyond(counted: &[Terms]) -> (i64, i64) {
    let mut by_price: Vec<((i64, i64), i64)> = Vec::new();
    for (count, terms) in (1..).zip(counted) {
        let Price::Is(UnitPrice { micros, per_units }) = terms.price else { continue };
        if micros > 0 && terms.included.is_some_and(|included| count > included) {
            match by_price.iter_mut().find(|(price, _)| *price == (micros, per_units)) {
                Some((_, units)) => *units += 1,
                None => by_price.push(((micros, per_units), 1)),
            }
        }
    }
    let cost = by_price.iter().map(|((micros, per_units), units)| micros * units / per_units).sum();
    (by_price.iter().map(|(_, units)| units).sum(), cost)
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
            facts.open_units += units;
            let amount = charge(&mut facts).map_err(|e| TestCaseError::fail(e.to_string()))?;
            charges += amount;
            // Whole cents, never a credit for more usage, and less than a cent is carried.
            prop_assert!(amount >= 0 && amount % 10_000 == 0);
            let total = facts.open_units;
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

    /// Against a count of each unit by itself: it is overage if its own plan prices it and it is beyond what that
    /// plan includes, whatever the plans before and after.
    #[test]
    fn each_unit_is_priced_by_the_plan_it_was_counted_under(history in prop::collection::vec(happening(), 1..40)) {
        let mut facts = facts(UnitPrice { micros: 1_000, per_units: 1 }, 100);
        let mut counted: Vec<Terms> = Vec::new();
        let mut billed = 0;
        for happening in history {
            match happening {
                Happening::Calls(units) => {
                    facts.open_units += units;
                    counted.extend((0..units).map(|_| facts.terms));
                }
                Happening::Change(terms) => {
                    let before = facts.overage();
                    close(&mut facts, terms);
                    prop_assert_eq!(facts.overage(), before, "a change alters nothing that was counted");
                }
                Happening::Run => billed += charge(&mut facts).map_err(|e| TestCaseError::fail(e.to_string()))?,
            }
            let (units, exact) = beyond(&counted);
            prop_assert_eq!(facts.overage(), Ok(Overage { units, exact: Micros(exact) }));
            prop_assert_eq!(facts.api_calls(), i64::try_from(counted.len()).unwrap_or_default());
            prop_assert!(billed <= exact, "what is charged is owed");
        }
        billed += charge(&mut facts).map_err(|e| TestCaseError::fail(e.to_string()))?;
        let (_, exact) = beyond(&counted);
        prop_assert!((0..10_000).contains(&(exact - billed)), "less than a cent is carried");
    }

    #[test]
    fn segments_of_one_plan_are_as_good_as_one(
        units in prop::collection::vec(0..100_000_i64, 1..6), per_units in 1..10_i64,
    ) {
        let price = UnitPrice { micros: 1_000, per_units };
        let mut split = facts(price, 100_000);
        for units in &units {
            split.open_units = *units;
            let terms = split.terms;
            close(&mut split, terms);
        }
        let mut whole = facts(price, 100_000);
        whole.open_units = units.iter().sum();
        prop_assert_eq!(split.overage(), whole.overage());
    }
}

#[test]
fn settlement_begins_24_hours_after_the_period() {
    let mut facts = facts(UnitPrice { micros: 1_000, per_units: 1 }, 0);
    facts.open_units = 15;
    facts.now = facts.period.end + TimeDelta::hours(24) - TimeDelta::microseconds(1);
    assert_eq!(facts.due(), Ok(Micros(10_000)));
    facts.now = facts.period.end + TimeDelta::hours(24);
    assert_eq!(facts.due(), Ok(Micros(20_000)));
    // It goes on after all: nothing is given back, and what comes is rounded so, too.
    (facts.now, facts.rounded) = (facts.period.start, true);
    for (units, cents) in [(15, 2), (24, 2), (25, 3)] {
        facts.open_units = units;
        assert_eq!(facts.due(), Ok(Micros(cents * 10_000)), "{units}");
    }
}

#[test]
fn no_price_no_overage_and_no_price_in_the_currency_is_told_apart() {
    let mut facts = facts(UnitPrice { micros: 0, per_units: 1 }, 100);
    facts.open_units = 500;
    assert_eq!(facts.overage(), Ok(Overage::default()));
    assert_eq!(facts.next(), Ok(Next::Nothing));
    facts.terms.price = Price::NoneInCurrency;
    assert_eq!(facts.next(), Ok(Next::Park(ParkReason::NoPriceInCurrency)));
    assert_eq!(facts.difference(), Ok(None));
}

#[test]
fn what_is_parked_stays_so_until_what_it_is_parked_for_is_there() {
    let mut facts = facts(UnitPrice { micros: 1_000, per_units: 1 }, 0);
    facts.open_units = 20;
    let price = facts.terms.price;
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
        facts.terms.price = if has_price { price } else { Price::NoneInCurrency };
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

#[test]
fn a_change_of_plan_keeps_what_had_accrued_and_names_whose_limit_is_passed() {
    let pro = Terms { included: Some(100), price: Price::Is(UnitPrice { micros: 1_000, per_units: 1 }) };
    let free = Terms { included: Some(10), price: Price::Is(UnitPrice { micros: 0, per_units: 1 }) };
    let unlimited = Terms { included: None, ..free };
    let mut facts = facts(UnitPrice { micros: 1_000, per_units: 1 }, 100);
    facts.open_units = 130;
    for next in [free, unlimited] {
        close(&mut facts, next);
        facts.open_units = 1_000;
        assert_eq!(facts.overage(), Ok(Overage { units: 30, exact: Micros(30_000) }));
        assert_eq!((facts.exceeded_limit(), facts.overage_terms()), (Some(100), pro));
    }
    let other = Terms { included: Some(500), price: Price::Is(UnitPrice { micros: 2_000, per_units: 1 }) };
    close(&mut facts, other);
    facts.open_units = 5;
    assert_eq!(facts.overage(), Ok(Overage { units: 35, exact: Micros(40_000) }));
    assert_eq!((facts.exceeded_limit(), facts.overage_terms()), (None, other));
}

#[test]
fn a_lapsed_subscription_keeps_the_overage_of_all_segments_and_accrues_none() {
    let price = UnitPrice { micros: 1_000, per_units: 1 };
    let mut facts = facts(price, 100);
    facts.open_units = 130;
    let terms = facts.terms;
    close(&mut facts, terms);
    facts.open_units = 20;
    facts.summary = facts.overage().ok();
    facts.granted = false;
    facts.open_units = 500;
    assert_eq!(facts.overage(), Ok(Overage { units: 50, exact: Micros(50_000) }));
    // A summary that is behind takes nothing away from what is closed.
    facts.summary = None;
    assert_eq!(facts.overage(), Ok(Overage { units: 30, exact: Micros(30_000) }));
}

/// In whole chargeable units: of a shilling's two decimals none is anything but 0.
#[test]
fn a_part_is_one_that_stripe_takes() -> Result<(), OutOfRange> {
    for (code, most) in [("UGX", 999_999_000_000), ("KWD", 99_999_990_000), ("JPY", 99_999_999_000_000)] {
        let mut facts = facts(UnitPrice { micros: 1_000_000, per_units: 1 }, 0);
        facts.currency = code.parse().map_err(|_| OutOfRange)?;
        facts.open_units = 1_000_000_000;
        let difference = facts.difference()?.expect("it owes");
        assert_eq!(difference.amount.0, most, "{code}");
    }
    Ok(())
}

/// Stripe takes $999,999.99 in one item.
#[test]
fn what_is_more_than_stripe_takes_is_charged_in_parts() -> Result<(), OutOfRange> {
    const MOST: i64 = 999_999_990_000;
    let mut facts = facts(UnitPrice { micros: 1_000_000, per_units: 1 }, 0);
    facts.open_units = 2_500_000;
    for (amount, part) in [(MOST, true), (MOST, true), (500_000_020_000, false)] {
        let difference = facts.difference()?.expect("it owes");
        assert_eq!((difference.amount.0, facts.is_part(&difference)?), (amount, part));
        assert_eq!(charge(&mut facts)?, amount);
    }
    assert_eq!((facts.ledger.units, facts.difference()?), (2_500_000, None));
    facts.open_units = 0;
    assert_eq!(charge(&mut facts)?, -MOST, "a credit likewise");
    Ok(())
}
