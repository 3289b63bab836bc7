use proptest::prelude::*;
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::*;

/// A period that begins at the turn of a day; `now` is a part of it later.
const START: &str = "2026-03-02T00:00:00Z"; // a Monday
const PERIOD_DAYS: i64 = 31;
const PRO: UnitPrice = UnitPrice { micros: 1_000, per_units: 1 };

fn start() -> DateTime<Utc> {
    START.parse().expect("a time")
}

fn standing(now_seconds: i64, recorded: i64) -> Standing {
    Standing {
        now: start() + TimeDelta::seconds(now_seconds),
        period: Period { start: start(), end: start() + TimeDelta::days(PERIOD_DAYS) },
        recorded,
        adjusted: 0,
        included: Some(100_000),
        hard: false,
        price: PRO,
        closed_recorded: 0,
        closed_overage: Vec::new(),
        spend_cap: None,
        subscription: Micros(49_000_000),
        currency: Currency::USD,
    }
}

/// So many whole days, and today's units.
fn history(whole_days: &[i64], today: i64) -> History {
    History { whole_days: whole_days.to_vec(), today }
}

fn made(standing: &Standing, history: &History) -> Forecast {
    forecast(standing, history).expect("amounts in range")
}

/// Any standing: plans of every kind, changes of plan, caps.
fn any_standing() -> impl Strategy<Value = Standing> {
    let terms = (prop::option::of(0i64..200_000), any::<bool>(), 0i64..5_000, 1i64..1_000);
    let usage = (0i64..500_000, -50i64..50, 0.0f64..1.0, prop::option::of(0i64..1_000_000_000));
    (0i64..PERIOD_DAYS * 86_400, terms, usage).prop_map(
        |(now, (included, hard, micros, per_units), usage)| {
            let (recorded, adjusted, closed, cap) = usage;
            let closed_recorded = (recorded as f64 * closed) as i64;
            Standing {
                adjusted,
                included,
                hard: hard && included.is_some(),
                price: UnitPrice { micros, per_units },
                closed_recorded,
                closed_overage: vec![(UnitPrice { micros: 7, per_units: 3 }, closed_recorded / 2)],
                spend_cap: cap.map(Micros),
                ..standing(now, recorded)
            }
        },
    )
}

fn any_history() -> impl Strategy<Value = History> {
    let days = prop::collection::vec(0i64..50_000, 0..=HISTORY_DAYS as usize);
    (days, 0i64..50_000).prop_map(|(whole_days, today)| History { whole_days, today })
}

proptest! {
    #[test]
    fn the_range_holds_what_is_expected_and_lies_between_what_is_recorded_and_what_is_admitted(
        standing in any_standing(), history in any_history(),
    ) {
        let Forecast { expected, low, high, limit_reached } = made(&standing, &history);
        prop_assert!(standing.recorded <= low.units);
        prop_assert!(low.units <= expected.units && expected.units <= high.units);
        prop_assert!(low.overage <= expected.overage && expected.overage <= high.overage);
        let accrued = standing.overage_at(standing.recorded).expect("an amount in range");
        prop_assert!(accrued <= low.overage, "what has accrued stays");
        if let Some(ceiling) = standing.ceiling() {
            prop_assert!(high.units <= ceiling.max(standing.recorded), "{} beyond {}", high.units, ceiling);
        }
        if let Some(at) = limit_reached {
            prop_assert!(standing.now <= at && at <= standing.period.end);
        }
    }

    #[test]
    fn what_was_never_used_is_expected_to_stay_so(standing in any_standing(), days in 0usize..28) {
        let Forecast { expected, low, high, .. } = made(&standing, &history(&vec![0; days], 0));
        for end in [expected, low, high] {
            prop_assert_eq!(end.units, standing.recorded);
            prop_assert_eq!(Ok(end.overage), standing.overage_at(standing.recorded));
        }
    }

    #[test]
    fn a_hard_limit_and_a_spend_cap_are_not_passed(history in any_history(), cap in 0i64..200_000_000, now in 0i64..2_000_000) {
        let free = Standing { included: Some(1_000), hard: true, price: UnitPrice { micros: 0, per_units: 1 }, ..standing(now, 400) };
        let ended = made(&free, &history);
        prop_assert!(ended.high.units <= 1_000);
        prop_assert_eq!(ended.high.overage, Micros(0));
        let capped = Standing { spend_cap: Some(Micros(cap)), ..standing(now, 90_000) };
        prop_assert!(made(&capped, &history).high.overage <= Micros(cap));
    }

    #[test]
    fn a_limit_is_reached_in_the_period_where_as_much_is_expected(mut standing in any_standing(), history in any_history()) {
        standing.spend_cap = None;
        let unlimited = Standing { included: None, hard: false, ..standing.clone() };
        let (limited, free_to_go) = (made(&standing, &history), made(&unlimited, &history));
        prop_assert_eq!(free_to_go.limit_reached, None);
        let Some(limit) = standing.threshold() else { return Ok(()) };
        match limited.limit_reached {
            // Half a unit is rounded.
            Some(_) => prop_assert!(free_to_go.expected.units >= limit),
            None => prop_assert!(free_to_go.expected.units <= limit),
        }
        if standing.recorded >= limit {
            prop_assert_eq!(limited.limit_reached, Some(standing.now));
        }
    }

    #[test]
    fn who_uses_more_reaches_the_limit_no_later(history in any_history(), now in 0i64..2_000_000) {
        let more = History { whole_days: history.whole_days.iter().map(|n| n + 100).collect(), today: history.today + 100 };
        let reached = |history| made(&standing(now, 50_000), history).limit_reached;
        if let Some(at) = reached(&history) {
            prop_assert!(reached(&more).is_some_and(|sooner| sooner <= at));
        }
    }

    #[test]
    fn what_is_the_same_every_day_goes_on_so(units in 0i64..10_000, days in 2usize..=28, gone in 0i64..PERIOD_DAYS) {
        let Forecast { expected, low, high, .. } = made(&standing(gone * 86_400, 7), &history(&vec![units; days], 3));
        let end = 7 + units * (PERIOD_DAYS - gone);
        prop_assert_eq!([expected.units, low.units, high.units], [end; 3]);
    }
}

#[test]
fn weekdays_are_told_apart_after_two_weeks() {
    // Monday to Friday 100 each, nothing at weekends; the history ends on a Sunday, as the period begins on a Monday.
    let week = [100, 100, 100, 100, 100, 0, 0];
    let month = history(&week.repeat(4), 0);
    let at = |days: i64| made(&standing(days * 86_400, 0), &month);
    assert_eq!(at(0).expected.units, 23 * 100, "31 days from a Monday on: 23 of the week");
    assert_eq!((at(0).low.units, at(0).high.units), (2_300, 2_300), "no day differs from its like");
    // The third day is a Wednesday, and a quarter of it is left.
    let shifted = history(&week.repeat(4)[2..].iter().chain(&[100, 100]).copied().collect::<Vec<_>>(), 75);
    let left = made(&standing(2 * 86_400 + 64_800, 275), &shifted);
    assert_eq!(left.expected.units, 275 + 25 + 20 * 100);
    // One week is not enough to tell.
    let flat = made(&standing(0, 0), &history(&week, 0));
    assert_eq!(flat.expected.units, 2_214, "31 days of 500 / 7");
    assert!(flat.low.units < 2_214 && flat.high.units > 2_214);
}

#[test]
fn a_first_day_goes_on_as_it_went_and_may_double_or_stop() {
    let morning = 6 * 3_600;
    let Forecast { expected, low, high, .. } = made(&standing(morning, 250), &history(&[], 250));
    assert_eq!(expected.units, 31 * 1_000);
    assert!(low.units < 22_500 && high.units > 39_500, "{low:?} {high:?}");
    // Just begun: one call in the first second is not a thousand an hour.
    assert_eq!(made(&standing(1, 1), &history(&[], 1)).expected.units, 1 + 744);
}

#[test]
fn the_limit_is_reached_at_the_moment_the_pace_says() {
    // 4,000 a day, 80,000 of 100,000 used at noon: five days later at noon.
    let reached = made(&standing(12 * 3_600, 80_000), &history(&[4_000; 10], 2_000)).limit_reached;
    assert_eq!(reached, Some(start() + TimeDelta::hours(12) + TimeDelta::days(5)));
}

#[test]
fn corrections_count_on_the_bill_and_not_against_a_hard_limit() {
    let free = Standing { included: Some(1_000), hard: true, adjusted: 300, ..standing(0, 900) };
    let full = made(&free, &history(&[5_000; 3], 0));
    assert_eq!(full.high.units, 1_300, "600 calls and 300 more on paper: 400 are left");
    assert_eq!(free.limit(), Some(1_000));
}

#[test]
fn a_history_begins_with_its_first_day_and_has_zeros_between() {
    let day = |text: &str| text.parse::<NaiveDate>().expect("a day");
    let today = day("2026-03-10");
    let days = [(today, 5), (day("2026-03-07"), 2), (day("2026-03-09"), 3), (day("2026-03-11"), 999)];
    assert_eq!(History::new(today, &days), history(&[2, 0, 3], 5));
    assert_eq!(History::new(today, &[]), history(&[], 0));
}

/// Four of five periods end within the range, where days are independent of each other: over many random accounts.
#[test]
fn four_of_five_ends_are_within_the_range() {
    let mut random = StdRng::seed_from_u64(7);
    const ACCOUNTS: usize = 4_000;
    for days in [10, 28] {
        let within = (0..ACCOUNTS).filter(|_| {
            // Around 6,000 a day, far from even.
            let mut day = || (0..12).map(|_| random.random_range(0..=1_000)).sum::<i64>();
            let past: Vec<_> = (0..days).map(|_| day()).collect();
            let unlimited = Standing { included: None, ..standing(86_400, 0) };
            let forecast = made(&unlimited, &history(&past, 0));
            let end: i64 = (1..PERIOD_DAYS).map(|_| day()).sum();
            (forecast.low.units..=forecast.high.units).contains(&end)
        });
        let share = within.count() as f64 / ACCOUNTS as f64;
        assert!((0.74..0.86).contains(&share), "{share} after {days} days");
    }
}
