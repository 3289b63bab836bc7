use nexus_core::money::{Currency, MICROS, Micros, OutOfRange, UnitPrice, due, overage_units};
use proptest::prelude::*;

fn currency(code: &str) -> Currency {
    code.parse().expect("a currency")
}

#[test]
fn a_tenth_of_a_cent_a_call_is_carried_until_it_is_a_cent() {
    let price = UnitPrice { micros: 1_000, per_units: 1 };
    let unit = Currency::USD.minor_unit();
    let cents = |calls| due(price.cost(calls).expect("in range"), unit, false).map(|m| unit.to_minor(m));
    assert_eq!([cents(9), cents(10), cents(19), cents(5_000)], [Ok(0), Ok(1), Ok(1), Ok(500)]);
}

#[test]
fn settlement_rounds_half_a_cent_up() {
    let unit = Currency::USD.minor_unit();
    let settle = |micros| due(Micros(micros), unit, true);
    assert_eq!(
        [settle(4_999), settle(5_000), settle(15_000)],
        [Ok(Micros(0)), Ok(Micros(10_000)), Ok(Micros(20_000))]
    );
}

#[test]
fn currencies_without_decimals_are_charged_in_whole_units_and_those_with_three_in_tens() {
    let yen = currency("JPY").minor_unit();
    assert_eq!(yen.to_minor(yen.floor(Micros(2_900_000))), 2);
    let dinar = currency("KWD").minor_unit();
    assert_eq!(dinar.to_minor(dinar.floor(Micros(1_239_000))), 1_230);
}

#[test]
fn kronur_and_ugandan_shillings_are_charged_in_whole_units_written_with_two_decimals() {
    for code in ["ISK", "UGX"] {
        let unit = currency(code).minor_unit();
        assert_eq!(unit.to_minor(unit.floor(Micros(5_990_000))), 500, "{code}");
        assert_eq!(unit.round_half_up(Micros(5_500_000)), Ok(Micros(6_000_000)), "{code}");
    }
    // Whole units only when paid out.
    let forint = currency("HUF").minor_unit();
    assert_eq!(forint.to_minor(forint.floor(Micros(10_456_000))), 1_045);
}

#[test]
fn currency_codes_are_three_letters() {
    assert_eq!(currency("eur").as_str(), "EUR");
    for bad in ["", "EU", "EURO", "E1R", "é1"] {
        assert!(bad.parse::<Currency>().is_err(), "{bad}");
    }
}

#[test]
fn amounts_beyond_the_range_are_errors_and_never_wrap() {
    assert_eq!(UnitPrice { micros: i64::MAX, per_units: 1 }.cost(2), Err(OutOfRange));
    assert_eq!(Currency::USD.minor_unit().round_half_up(Micros(i64::MAX)), Err(OutOfRange));
}

#[test]
fn overage_begins_after_the_included_units_and_after_the_segments_start() {
    assert_eq!(overage_units(Some(100), 0, 100), 0);
    assert_eq!(overage_units(Some(100), 0, 105), 5);
    assert_eq!(
        overage_units(Some(100), 300, 305),
        5,
        "what was counted before the segment is not its overage"
    );
    assert_eq!(overage_units(Some(100), 40, 90), 0);
    assert_eq!(overage_units(None, 0, i64::MAX), 0, "unlimited");
}

proptest! {
    /// Charges are differences of what is due to what was charged: whatever the days were like, they sum
    /// to what is due, and to the half-cent-rounded exact amount once settled.
    #[test]
    fn charges_of_any_history_sum_to_what_is_due(
        days in prop::collection::vec(0i64..50_000, 1..40),
        micros in 1i64..2_000_000,
        per_units in prop::sample::select(vec![1i64, 10, 100, 1_000, 1_000_000]),
        included in 0i64..200_000,
    ) {
        let price = UnitPrice { micros, per_units };
        let unit = Currency::USD.minor_unit();
        let (mut calls, mut billed) = (0, 0);
        for day in days {
            calls += day;
            let exact = price.cost(overage_units(Some(included), 0, calls)).expect("in range");
            let owed = due(exact, unit, false).expect("in range");
            prop_assert!(owed.0 >= billed, "a charge is never negative while calls only grow");
            billed = owed.0;
            prop_assert!(exact.0 - billed < 10_000, "less than a cent is carried");
            prop_assert!(billed <= exact.0, "never more than what is exact while open");
        }
        let exact = price.cost(overage_units(Some(included), 0, calls)).expect("in range");
        let settled = due(exact, unit, true).expect("in range");
        prop_assert!((settled.0 - exact.0).abs() * 2 <= 10_000, "settled to the nearest cent");
        prop_assert!(settled.0 - billed == 0 || settled.0 - billed == 10_000);
    }

    #[test]
    fn segments_of_one_plan_owe_what_the_whole_period_owes(
        included in 0i64..1_000, counts in prop::collection::vec(0i64..500, 1..8),
    ) {
        let (mut start, mut sum) = (0, 0);
        for count in &counts {
            sum += overage_units(Some(included), start, start + count);
            start += count;
        }
        prop_assert_eq!(sum, overage_units(Some(included), 0, start));
    }

    /// Segments of any plans: a unit is overage if it is beyond what its own plan includes.
    #[test]
    fn overage_of_segments_is_the_units_that_their_own_plans_do_not_include(
        segments in prop::collection::vec((prop::option::of(0i64..400), 0i64..150), 1..10),
    ) {
        let (mut start, mut sum, mut count, mut beyond) = (0, 0, 0, 0);
        for (included, units) in segments {
            let before = sum;
            sum += overage_units(included, start, start + units);
            prop_assert!(sum >= before, "no segment takes away what was counted before it");
            start += units;
            for _ in 0..units {
                count += 1;
                beyond += i64::from(included.is_some_and(|included| count > included));
            }
        }
        prop_assert_eq!(sum, beyond);
    }

    #[test]
    fn rounding_stays_within_one_unit(amount in -1_000_000 * MICROS..1_000_000 * MICROS) {
        for unit in ["USD", "JPY", "KWD", "ISK"].map(|code| currency(code).minor_unit()) {
            let floor = unit.floor(Micros(amount));
            let rounded = unit.round_half_up(Micros(amount)).expect("in range");
            prop_assert!(floor.0 <= amount);
            prop_assert!(rounded == floor || rounded.0 > amount);
            prop_assert_eq!(unit.floor(floor), floor);
        }
    }
}

#[test]
fn amounts_are_read_exactly_or_not_at_all() {
    for (text, micros) in [
        ("0", 0),
        ("-0.0", 0),
        ("12.5", 12_500_000),
        ("12.500000000", 12_500_000),
        ("0.000001", 1),
        ("-3", -3_000_000),
        ("1e2", 100_000_000),
        ("1.5E+1", 15_000_000),
        ("25e-1", 2_500_000),
        ("1000000e-12", 1),
        ("9007199254.740993", 9_007_199_254_740_993),
        ("9223372036854.775807", i64::MAX),
        ("0e99", 0),
    ] {
        assert_eq!(text.parse(), Ok(Micros(micros)), "{text}");
    }
    for bad in [
        "",
        "-",
        ".5",
        "5.",
        "1.",
        "+1",
        "1e",
        "e1",
        "0x1",
        "1_0",
        "NaN",
        "--1",
        "1.2.3",
        " 1",
        "1 ",
        "١",
        "0.0000001",
        "12.5000001",
        "1e-7",
        "9223372036854.775808",
        "1e13",
        "1e99",
        "1e99999999999",
        "1e-99",
        "123456789012345678901234567890",
    ] {
        assert!(bad.parse::<Micros>().is_err(), "{bad}");
    }
}

proptest! {
    #[test]
    fn an_amount_that_is_written_is_read_again(micros in 0..=i64::MAX) {
        let text = format!("{}.{:06}", micros / MICROS, micros % MICROS);
        prop_assert_eq!(text.parse(), Ok(Micros(micros)));
    }
}
