use nexus_core::{
    money::{self, Micros, UnitPrice, overage_units},
    spend_cap::{OpenSegment, limit},
};
use proptest::{collection::vec, prelude::*};

const TENTH_OF_A_CENT: UnitPrice = UnitPrice { micros: 1_000, per_units: 1 };

fn price() -> impl Strategy<Value = UnitPrice> {
    (1_i64..40, 1_i64..12).prop_map(|(micros, per_units)| UnitPrice { micros, per_units })
}

/// Closed segments, of few prices, some of them those of the open one.
fn segments() -> impl Strategy<Value = (Vec<(UnitPrice, i64)>, OpenSegment)> {
    let open = (0_i64..60, 0_i64..60, price());
    let closed = vec((any::<bool>(), price(), 0_i64..15), 0..4);
    (open, closed).prop_map(|((included, start_count, price), closed)| {
        let closed = closed.into_iter().map(|(same, other, units)| (if same { price } else { other }, units));
        (closed.collect(), OpenSegment { included: Some(included), start_count, price })
    })
}

/// Whether the cap pays for so many units of the period, to the last fraction: by cross multiplication.
fn pays(cap: i64, closed: &[(UnitPrice, i64)], open: &OpenSegment, count: i64) -> bool {
    let others = closed.iter().copied().filter(|(price, _)| *price != open.price);
    let others = money::cost(others).expect("a small amount").0;
    let same: i64 = closed.iter().filter(|(price, _)| *price == open.price).map(|(_, units)| units).sum();
    let units = same + overage_units(open.included, open.start_count, count);
    units * open.price.micros <= (cap - others) * open.price.per_units
}

proptest! {
    #[test]
    fn it_is_the_largest_count_that_the_cap_pays_for((closed, open) in segments(), cap in 0_i64..300) {
        let unbilled = open.included.unwrap_or_default().max(open.start_count);
        // By trying one after the other; beyond what nobody pays for any more.
        let largest = (unbilled..unbilled + 4_000).take_while(|count| pays(cap, &closed, &open, *count)).last();
        prop_assert_eq!(limit(Micros(cap), &closed, &open), Some(largest.unwrap_or(unbilled)));
    }

    #[test]
    fn the_exact_cost_stays_within_the_cap_and_a_little_more_does_not((closed, open) in segments(), cap in 0_i64..300) {
        let limit = limit(Micros(cap), &closed, &open).unwrap_or_default();
        let cost = |count| {
            let units = overage_units(open.included, open.start_count, count);
            money::cost(closed.iter().copied().chain([(open.price, units)])).map(|cost| cost.0)
        };
        // What has been spent is spent.
        prop_assert!(cost(limit)? <= cap.max(cost(0)?));
        // One more is beyond the cap, by a fraction at least; and units of a micro more, by a micro.
        let micro = (open.price.per_units + open.price.micros - 1) / open.price.micros;
        prop_assert!(cost(limit + 1 + micro)? > cap);
    }

    #[test]
    fn whatever_the_figures_nothing_overflows_and_the_included_units_are_never_refused(
        cap in 0..=i64::MAX,
        closed in vec(((0..=i64::MAX, 1..=i64::MAX), 0..=i64::MAX), 0..4),
        (included, start_count) in (0..=i64::MAX, 0..=i64::MAX),
        (micros, per_units) in (1..=i64::MAX, 1..=i64::MAX),
    ) {
        let price = UnitPrice { micros, per_units };
        let closed: Vec<_> = closed
            .into_iter()
            .enumerate()
            .map(|(n, ((micros, per_units), units))| {
                (if n == 0 { price } else { UnitPrice { micros, per_units } }, units)
            })
            .collect();
        let open = OpenSegment { included: Some(included), start_count, price };
        let least = included.max(start_count);
        let capped = limit(Micros(cap), &closed, &open);
        prop_assert!(capped.is_some_and(|capped| capped >= least));
        // A higher cap never allows less.
        prop_assert!(limit(Micros(cap / 2), &closed, &open) <= capped);
    }
}

#[test]
fn what_is_left_after_closed_segments_buys_units_at_the_open_ones_price() {
    let at = |included, start_count, price| OpenSegment { included, start_count, price };
    let dollar = Micros(1_000_000);
    let dear = UnitPrice { micros: 1, per_units: 3 };
    let pro = at(Some(100_000), 0, TENTH_OF_A_CENT);
    for (what, cap, closed, open, expected) in [
        ("a dollar", dollar, vec![], pro, Some(101_000)),
        ("nothing", Micros(0), vec![], pro, Some(100_000)),
        ("a tenth of a cent less a micro", Micros(999), vec![], pro, Some(100_000)),
        ("from where the segment began", dollar, vec![], at(Some(10), 500, TENTH_OF_A_CENT), Some(1_500)),
        ("less what was spent", dollar, vec![(TENTH_OF_A_CENT, 400)], pro, Some(100_600)),
        ("all is spent", dollar, vec![(TENTH_OF_A_CENT, 1_000)], pro, Some(100_000)),
        ("more is spent", dollar, vec![(TENTH_OF_A_CENT, 1_001)], pro, Some(100_000)),
        // 1 unit was 0.33 micros, which count with what follows, and not as 0.
        ("a fraction is spent", Micros(1), vec![(dear, 1)], at(Some(0), 1, dear), Some(3)),
        ("a fraction and no more", Micros(0), vec![], at(Some(0), 0, dear), Some(0)),
        ("unlimited", dollar, vec![], at(None, 0, TENTH_OF_A_CENT), None),
        ("not billed", dollar, vec![], at(Some(5), 0, UnitPrice { micros: 0, per_units: 1 }), None),
    ] {
        assert_eq!(limit(cap, &closed, &open), expected, "{what}");
    }
}

#[test]
fn the_greatest_cap_leaves_room_to_add_to_the_limit() {
    let price = UnitPrice { micros: 1, per_units: i64::MAX };
    let open = OpenSegment { included: Some(5), start_count: 0, price };
    assert_eq!(limit(Micros(i64::MAX), &[], &open), Some(1 << 60));
    let beyond = OpenSegment { included: Some(i64::MAX), ..open };
    assert_eq!(limit(Micros(1), &[], &beyond), Some(i64::MAX));
}
