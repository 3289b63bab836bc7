use chrono::{DateTime, TimeDelta};
use nexus_core::{money::UnitPrice, period::Period, plan::Plan};
use proptest::prelude::*;

use super::*;
use crate::domain::overage::{ClosedSegment, Ledger, Terms};

fn facts(terms: Terms) -> Facts {
    let start = DateTime::UNIX_EPOCH;
    Facts {
        eco_id: "eco_a".to_owned(),
        period: Period { start, end: start + TimeDelta::days(31) },
        plan: Plan::Pro,
        plan_version: 1,
        granted: true,
        currency: Currency::USD,
        terms,
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

/// Plans that bill overage, few enough that the same ones come again.
fn billed() -> impl Strategy<Value = Terms> {
    let included = prop::sample::select(vec![0, 100, 150, 1_000]);
    let price = prop::sample::select(vec![(1_000, 1), (10_000, 7), (70_001, 3), (3, 5)]);
    (included, price).prop_map(|(included, (micros, per_units))| Terms {
        included: Some(included),
        price: Price::Is(UnitPrice { micros, per_units }),
    })
}

/// All kinds of plans.
fn any_terms() -> impl Strategy<Value = Terms> {
    let free = Terms { included: Some(50), price: Price::Is(UnitPrice { micros: 0, per_units: 1 }) };
    let unlimited = Terms { included: None, ..free };
    prop_oneof![4 => billed(), 1 => Just(free), 1 => Just(unlimited)]
}

proptest! {
    /// Whatever the account did and whichever plans it had: the units that the cap allows cost no more than it, to
    /// the cent that is charged; and a few more do.
    #[test]
    fn what_is_admitted_is_billed_within_the_cap(
        segments in prop::collection::vec((any_terms(), 0..200_i64), 0..4),
        terms in billed(),
        calls in 0..200_i64,
        cap in 0..300_000_i64,
    ) {
        let mut facts = facts(terms);
        for (closed, units) in segments {
            (facts.terms, facts.open_units) = (closed, units);
            let (plan, plan_version, overage_units) = (facts.plan, facts.plan_version, facts.open_overage());
            let segment = ClosedSegment { plan, plan_version, units, overage_units, terms: closed, granted: true };
            facts.closed.push(segment);
        }
        (facts.terms, facts.open_units) = (terms, 0);
        let spent_before = facts.overage()?.exact;
        let cap = Micros(cap / 10_000 * 10_000);
        facts.open_units = calls;
        let at_first = SpendCap::of(cap, false, &facts)?;
        prop_assert_eq!(at_first.left.0, (cap.0 - facts.overage()?.exact.0).max(0));

        // All that the cap allows is used.
        let limit = at_first.limit.unwrap_or_default();
        let open = limit - facts.api_calls() + calls;
        prop_assert!(open >= 0, "what was counted in closed segments is below the limit");
        facts.open_units = open;
        let used = SpendCap::of(cap, false, &facts)?;
        prop_assert_eq!(used.limit, Some(limit), "it does not move with what is counted");
        prop_assert!(facts.overage()?.exact <= cap.max(spent_before));
        facts.now = facts.period.end + TimeDelta::days(2);
        prop_assert!(facts.due()? <= cap.max(cents(spent_before)), "rounded at the settlement");

        // One more is beyond it, by a fraction at least; and units of a micro more, by a micro.
        let Price::Is(price) = facts.terms.price else { unreachable!("it bills overage") };
        facts.open_units += 1 + (price.per_units + price.micros - 1) / price.micros;
        prop_assert!(facts.overage()?.exact > cap);
        prop_assert_eq!(SpendCap::of(cap, false, &facts)?.left, Micros(0));
    }
}

fn cents(amount: Micros) -> Micros {
    Currency::USD.minor_unit().round_half_up(amount).expect("a small amount")
}

#[test]
fn a_cap_refuses_only_where_overage_is_billed() {
    let price = Price::Is(UnitPrice { micros: 1_000, per_units: 1 });
    let pro = Terms { included: Some(100), price };
    let limit = |facts: &Facts, hard| SpendCap::of(Micros(1_000_000), hard, facts).map(|cap| cap.limit);
    assert_eq!(limit(&facts(pro), false), Ok(Some(1_100)));
    assert_eq!(limit(&facts(pro), true), Ok(None), "the plan refuses by itself");
    let unlimited = facts(Terms { included: None, price });
    assert_eq!(limit(&unlimited, false), Ok(None));
    let unpriced = facts(Terms { included: Some(100), price: Price::NoneInCurrency });
    assert_eq!(limit(&unpriced, false), Ok(None));
    let unpaid = Facts { granted: false, ..facts(pro) };
    assert_eq!(limit(&unpaid, false), Ok(None), "free's limit holds");
}

#[test]
fn caps_are_whole_cents_in_the_accounts_currency() {
    let change = |cap: i64, currency: Option<Currency>| SpendCapChange {
        eco_id: EcoId::parse("eco_a").expect("an id"),
        cap: Some(Micros(cap)),
        currency,
        request_id: None,
    };
    let yen: Currency = "JPY".parse().expect("a currency");
    assert!(change(0, None).is_in(yen) && change(0, Some(yen)).is_in(yen));
    assert!(!change(0, Some(Currency::USD)).is_in(yen));
    assert!(change(12_500_000, None).is_chargeable_in(Currency::USD));
    assert!(!change(12_505_000, None).is_chargeable_in(Currency::USD));
    assert!(!change(12_500_000, None).is_chargeable_in(yen));
}
