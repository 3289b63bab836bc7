use nexus_core::sketch::{Sketch, bucket};
use proptest::prelude::*;

fn sketch(latencies: &[i32]) -> Sketch {
    let mut s = Sketch::default();
    latencies.iter().for_each(|ms| s.add(*ms));
    s
}

#[test]
fn powers_of_two_begin_their_bucket() {
    for k in 0..31 {
        assert_eq!(bucket(1 << k), 32 * k);
        if k >= 6 {
            assert_eq!(bucket((1 << k) - 1), 32 * k - 1);
        }
    }
    assert_eq!([bucket(0), bucket(-5)], [-1, -1]);
}

#[test]
fn an_empty_sketch_has_a_quantile_of_zero() {
    assert_eq!(Sketch::default().quantile(0.99), 0.0);
    assert_eq!(sketch(&[0, 0, 0]).quantile(0.5), 0.0);
}

#[test]
fn a_stored_sketch_must_be_pairs() {
    assert!(Sketch::from_pairs(&[1, 2, 3]).is_err());
}

proptest! {
    #[test]
    fn quantiles_are_within_their_error(
        mut latencies in prop::collection::vec(0i32..3_600_000, 1..500),
        q in 0.0f64..=1.0,
    ) {
        let estimate = sketch(&latencies).quantile(q);
        latencies.sort_unstable();
        let rank = ((q * latencies.len() as f64).ceil() as usize).max(1);
        let exact = f64::from(latencies[rank - 1]);
        prop_assert!((estimate - exact).abs() <= exact * 0.012, "{} for {}", estimate, exact);
    }

    #[test]
    fn what_is_merged_in_any_order_is_as_near(
        parts in prop::collection::vec(prop::collection::vec(0i32..3_600_000, 1..100), 1..8)
            .prop_flat_map(|parts| (Just(parts.concat()), Just(parts).prop_shuffle())),
        q in 0.0f64..=1.0,
    ) {
        let (mut latencies, parts) = parts;
        // As days are read: some from stored entries, some merged.
        let merged = parts.iter().enumerate().fold(Sketch::default(), |mut whole, (n, part)| {
            match n % 2 {
                0 => whole.merge(&sketch(part)),
                _ => whole.add_entries(&sketch(part).entries().collect::<Vec<_>>()),
            }
            whole
        });
        let estimate = merged.quantile(q);
        latencies.sort_unstable();
        let rank = ((q * latencies.len() as f64).ceil() as usize).max(1);
        let exact = f64::from(latencies[rank - 1]);
        prop_assert!((estimate - exact).abs() <= exact * 0.012, "{} for {}", estimate, exact);
    }

    #[test]
    fn merging_is_adding_in_any_order(parts in prop::collection::vec(prop::collection::vec(0i32..100_000, 0..50), 1..6)) {
        let whole = sketch(&parts.concat());
        let merged = |order: Vec<&Vec<i32>>| order.iter().fold(Sketch::default(), |mut s, p| { s.merge(&sketch(p)); s });
        prop_assert_eq!(&merged(parts.iter().collect()), &whole);
        prop_assert_eq!(&merged(parts.iter().rev().collect()), &whole);
        prop_assert_eq!(Sketch::from_pairs(&whole.to_pairs()), Ok(whole));
    }
}
