use chrono::{DateTime, TimeDelta};
use nexus_core::{money::MICROS, period::Period};
use proptest::prelude::*;

use super::*;
use crate::domain::overage::{ClosedSegment, Ledger, Overage, Terms};

fn terms() -> impl Strategy<Value = Terms> {
    (prop::option::of(0..5_000i64), 0..20_000i64, 1..=1_000i64).prop_map(|(included, micros, per_units)| {
        Terms { included, price: Price::Is(UnitPrice { micros, per_units }) }
    })
}

fn facts() -> impl Strategy<Value = Facts> {
    let closed = prop::collection::vec((terms(), 0..10_000i64, 0..10_000i64), 0..5);
    (closed, terms(), 0..50_000i64, -1_000_000..1_000_000i64, any::<bool>()).prop_map(
        |(closed, open, open_units, billed, settling)| {
            let start = DateTime::UNIX_EPOCH;
            let now = start + TimeDelta::days(if settling { 40 } else { 3 });
            Facts {
                eco_id: "eco_a".to_owned(),
                period: Period { start, end: start + TimeDelta::days(31) },
                plan: Plan::Pro,
                plan_version: 3,
                granted: true,
                currency: Currency::USD,
                terms: open,
                closed: closed
                    .into_iter()
                    .map(|(terms, units, overage)| ClosedSegment {
                        plan: Plan::Pro,
                        plan_version: 2,
                        units,
                        overage_units: overage.min(units),
                        terms,
                        granted: true,
                    })
                    .collect(),
                open_units,
                last_event_time: None,
                summary: Some(Overage::default()),
                parked: None,
                stripe_customer_id: None,
                stripe_subscription_id: None,
                ledger: Ledger { billed: Micros(billed / 10_000 * 10_000), ..Ledger::default() },
                settle_time: start + TimeDelta::days(32),
                rounded: false,
                now,
            }
        },
    )
}

proptest! {
    #[test]
    fn what_is_kept_adds_up_to_the_charge_for_ever(facts in facts()) {
        let difference = facts.difference()?;
        let none = Difference { amount: Micros(0), units_from: 0, units_to: 0 };
        let reckoned = Reckoning::of(&facts, &difference.unwrap_or(none));
        let kept = serde_json::to_string(&Basis::Difference(reckoned))?;
        let basis: Basis = serde_json::from_str(&kept)?;
        prop_assert_eq!(basis.amount()?.0, difference.map_or(0, |difference| difference.amount.0));
        let Basis::Difference(reckoning) = basis else { panic!("another kind") };
        prop_assert_eq!(reckoning.exact()?, facts.overage()?.exact);
        prop_assert_eq!(reckoning.due()?, facts.due()?);
        let parts = reckoning.exact_by_segment()?;
        prop_assert_eq!(parts.iter().map(|part| part.0).sum::<i64>(), reckoning.exact()?.0);
        // Counts go on from segment to segment, up to what is shown of the period.
        let mut count = 0;
        for segment in &reckoning.segments {
            prop_assert_eq!(segment.start_units, count);
            count = segment.end_units;
        }
        prop_assert_eq!(count, facts.api_calls());
        let units: i64 = reckoning.segments.iter().map(|segment| segment.overage_units).sum();
        prop_assert_eq!(units, facts.overage()?.units);
    }
}

#[test]
fn a_correction_is_what_it_takes_back() -> Result<(), OutOfRange> {
    let correction = Basis::Correction { of: Uuid::nil(), item_micros: 5 * MICROS };
    assert_eq!(correction.amount()?, Micros(-5 * MICROS));
    assert_eq!(Basis::Duplicate { item_micros: 5 * MICROS }.amount()?, Micros(5 * MICROS));
    Ok(())
}

#[test]
fn what_was_taken_over_from_stripe_is_told_so() -> Result<(), OutOfRange> {
    let correction = Basis::Correction { of: Uuid::nil(), item_micros: 5 * MICROS };
    let kept = |basis: Option<&Basis>, first: Option<&Basis>| {
        let taken_over = TakenOver { time: DateTime::UNIX_EPOCH, first: first.cloned() };
        Kept { basis: basis.cloned(), taken_over: Some(taken_over) }.explanation()
    };
    let told = "A reconciliation took it over on 1970-01-01T00:00:00Z as Stripe had it.";
    let words = correction.explanation()?;
    assert_eq!(kept(None, None)?, Some(format!("{told} What it followed from is not in the ledger.")));
    assert_eq!(kept(None, Some(&correction))?, Some(format!("{told} It was first written down so: {words}")));
    assert_eq!(kept(Some(&correction), None)?, Some(format!("{told} {words}")));
    assert_eq!(Kept { basis: None, taken_over: None }.explanation()?, None);
    assert_eq!(Kept { basis: Some(correction), taken_over: None }.explanation()?, Some(words));
    Ok(())
}

#[test]
fn a_currency_without_cents_is_not_told_to_have_any() -> Result<(), OutOfRange> {
    let reckoning = Reckoning {
        segments: Vec::new(),
        currency: "JPY".to_owned(),
        settling: true,
        billed_micros: 0,
        part_micros: None,
    };
    let told = Basis::Difference(reckoning).explanation()?;
    assert!(told.starts_with("rounded half up: 0.00 JPY;"), "{told}");
    Ok(())
}

#[test]
fn the_arithmetic_is_told_in_words() -> Result<(), OutOfRange> {
    let reckoning = Reckoning {
        segments: vec![
            Segment {
                plan: Plan::Free,
                plan_version: 1,
                start_units: 0,
                end_units: 900,
                included_units: Some(1_000),
                overage_units: 0,
                price_micros: 0,
                price_per_units: 1,
                granted: true,
            },
            Segment {
                plan: Plan::Pro,
                plan_version: 2,
                start_units: 900,
                end_units: 105_005,
                included_units: Some(100_000),
                overage_units: 5_005,
                price_micros: 1_000,
                price_per_units: 1,
                granted: true,
            },
        ],
        currency: "USD".to_owned(),
        settling: false,
        billed_micros: 2 * MICROS,
        part_micros: None,
    };
    assert_eq!(
        Basis::Difference(reckoning).explanation()?,
        "free (version 1): 900 calls, less 1,000: 0 at 0.00 USD a call = 0.00 USD; \
         pro (version 2): 105,005 calls, less 100,000: 5,005 at 0.001 USD a call = 5.005 USD; \
         rounded down: 5.00 USD; charged before: 2.00 USD; this charge: 3.00 USD"
    );
    Ok(())
}
