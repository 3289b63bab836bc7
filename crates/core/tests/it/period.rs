use chrono::{DateTime, Datelike, Duration, NaiveTime, TimeZone, Utc};
use nexus_core::period::{Period, SETTLEMENT_GRACE, counting_period};
use proptest::prelude::*;

fn at(text: &str) -> DateTime<Utc> {
    text.parse().expect("a time")
}

/// Any second from 2000 to 2100.
fn instant() -> impl Strategy<Value = DateTime<Utc>> {
    (946_684_800i64..4_102_444_800).prop_map(|s| Utc.timestamp_opt(s, 0).single().expect("in range"))
}

/// Any second of a 29th, 30th or 31st from 2000 to 2099.
fn end_of_month() -> impl Strategy<Value = DateTime<Utc>> {
    (2000..2100, 1..=12u32, 29..=31u32, 0..86_400i64)
        .prop_filter_map("the month is shorter", |(y, m, d, s)| {
            Some(Utc.with_ymd_and_hms(y, m, d, 0, 0, 0).single()? + Duration::seconds(s))
        })
}

fn days_in_month(of: DateTime<Utc>) -> u32 {
    (28..=31).rev().find(|d| of.date_naive().with_day(*d).is_some()).expect("every month has 28 days")
}

#[test]
fn a_period_starts_on_the_last_day_where_the_month_is_too_short() {
    let anchor = at("2023-12-31T10:30:00Z");
    let starts: Vec<String> = (1..=5)
        .map(|month| {
            let middle = Utc.with_ymd_and_hms(2024, month, 15, 0, 0, 0).single().expect("a time");
            Period::containing(anchor, middle).end.to_rfc3339()
        })
        .collect();
    assert_eq!(
        starts,
        [
            "2024-01-31T10:30:00+00:00",
            "2024-02-29T10:30:00+00:00",
            "2024-03-31T10:30:00+00:00",
            "2024-04-30T10:30:00+00:00",
            "2024-05-31T10:30:00+00:00",
        ]
    );
}

#[test]
fn after_a_short_month_a_period_begins_on_the_anchor_day_again() {
    for (anchor, starts) in [
        ("2025-01-31T23:59:59Z", ["2025-02-28", "2025-03-31", "2025-04-30", "2025-05-31"]),
        ("2025-01-30T00:00:00Z", ["2025-02-28", "2025-03-30", "2025-04-30", "2025-05-30"]),
        ("2025-01-29T12:00:00Z", ["2025-02-28", "2025-03-29", "2025-04-29", "2025-05-29"]),
        ("2024-01-31T00:00:00Z", ["2024-02-29", "2024-03-31", "2024-04-30", "2024-05-31"]),
    ] {
        let mut period = Period::containing(at(anchor), at(anchor));
        for start in starts {
            period = Period::containing(at(anchor), period.end);
            assert_eq!(period.start.date_naive().to_string(), start, "anchor {anchor}");
        }
    }
}

#[test]
fn a_leap_day_anchor_falls_on_the_28th_in_other_years() {
    let period = Period::containing(at("2024-02-29T00:00:00Z"), at("2025-02-28T00:00:00Z"));
    assert_eq!((period.start, period.end), (at("2025-02-28T00:00:00Z"), at("2025-03-29T00:00:00Z")));
}

#[test]
fn an_event_counts_in_its_own_period_until_the_grace_is_over_and_then_in_the_current_one() {
    let anchor = at("2025-01-10T00:00:00Z");
    let event = at("2025-02-09T23:00:00Z");
    let in_time = counting_period(anchor, event, at("2025-02-10T23:59:59Z"));
    assert_eq!((in_time.0.start, in_time.1), (at("2025-01-10T00:00:00Z"), false));
    let late = counting_period(anchor, event, at("2025-02-11T00:00:00Z"));
    assert_eq!((late.0.start, late.1), (at("2025-02-10T00:00:00Z"), true));
}

#[test]
fn an_event_from_before_the_anchor_counts_in_the_first_period() {
    let anchor = at("2025-01-10T12:00:00.5Z");
    let (period, late) = counting_period(anchor, at("2025-01-10T12:00:00Z"), at("2025-01-10T12:00:01Z"));
    assert_eq!((period.start, late), (anchor, false));
}

proptest! {
    #[test]
    fn a_period_contains_the_instant_it_was_asked_for(anchor in instant(), t in instant()) {
        let period = Period::containing(anchor, t);
        prop_assert!(period.contains(t));
        prop_assert!(!period.contains(period.end), "half-open");
    }

    #[test]
    fn periods_follow_each_other_without_gap_or_overlap(anchor in instant(), t in instant()) {
        let period = Period::containing(anchor, t);
        let next = Period::containing(anchor, period.end);
        prop_assert_eq!(next.start, period.end);
        prop_assert_eq!(Period::containing(anchor, period.start - Duration::seconds(1)).end, period.start);
    }

    #[test]
    fn a_period_begins_on_the_anchor_day_or_the_last_of_the_month(anchor in instant(), t in instant()) {
        let start = Period::containing(anchor, t).start;
        prop_assert_eq!(start.day(), anchor.day().min(days_in_month(start)));
        let time = |d: DateTime<Utc>| -> NaiveTime { d.time() };
        prop_assert_eq!(time(start), time(anchor));
    }

    #[test]
    fn a_period_is_a_month_long(anchor in instant(), t in instant()) {
        let days = { let p = Period::containing(anchor, t); (p.end - p.start).num_days() };
        prop_assert!((28..=31).contains(&days), "{} days", days);
    }

    /// From one period to the next, as time goes: however often the day is clamped, it does not drift.
    #[test]
    fn each_month_has_one_period_and_its_day_does_not_drift(anchor in end_of_month()) {
        let mut period = Period::containing(anchor, anchor);
        prop_assert_eq!(period.start, anchor);
        for months in 1..=49 {
            let next = Period::containing(anchor, period.end);
            prop_assert_eq!(next.start, period.end);
            prop_assert_eq!(Period::containing(anchor, next.start - Duration::microseconds(1)), period);
            let month = |at: DateTime<Utc>| at.year() * 12 + at.month0() as i32;
            prop_assert_eq!(month(next.start), month(anchor) + months);
            prop_assert_eq!(next.start.day(), anchor.day().min(days_in_month(next.start)));
            prop_assert_eq!(next.start.time(), anchor.time());
            period = next;
        }
    }

    #[test]
    fn a_period_takes_its_late_events_for_24_hours_and_not_a_microsecond_more(
        anchor in instant(), later in 0i64..400 * 86_400, seconds in -86_400i64..2 * 86_400, micros in 0i64..1_000_000,
    ) {
        let event = anchor + Duration::seconds(later);
        let own = Period::containing(anchor, event);
        let grace_over = own.end + SETTLEMENT_GRACE;
        let around = grace_over + Duration::seconds(seconds) + Duration::microseconds(micros);
        for now in [around, grace_over, grace_over - Duration::microseconds(1)] {
            let expected =
                if now < grace_over { (own, false) } else { (Period::containing(anchor, now), true) };
            prop_assert_eq!(counting_period(anchor, event, now), expected);
        }
    }

    #[test]
    fn an_event_never_counts_in_a_settled_period(anchor in instant(), event in instant(), later in 0i64..400 * 86_400) {
        let now = event + Duration::seconds(later);
        let (period, late) = counting_period(anchor, event, now);
        prop_assert!(now < period.end + SETTLEMENT_GRACE);
        prop_assert_eq!(late, !period.contains(event.max(anchor)));
        prop_assert!(now < anchor || period.start >= anchor, "no period is before the first");
    }
}
