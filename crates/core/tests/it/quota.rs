use nexus_core::quota::{Consumption, percentage, remaining, shown_limit};

#[test]
fn what_is_consumed_is_granted_less_returned_plus_unadmitted() {
    let c = Consumption { granted: 100, returned: 30, unadmitted: 5 };
    assert_eq!(c.consumed(), 75);
}

#[test]
fn remaining_never_goes_below_zero_and_is_minus_one_without_a_limit() {
    assert_eq!([remaining(Some(10), 4), remaining(Some(10), 12), remaining(None, 12)], [6, 0, -1]);
    assert_eq!([shown_limit(Some(10)), shown_limit(None)], [10, -1]);
}

#[test]
fn the_percentage_may_pass_a_hundred_and_is_zero_without_a_limit() {
    assert_eq!(percentage(Some(100_000), 5_000), 5.0);
    assert_eq!(percentage(Some(1_000), 1_234), 123.4);
    assert_eq!(percentage(Some(3), 1), 33.33);
    assert_eq!(percentage(None, 5_000), 0.0);
    assert_eq!([percentage(Some(0), 0), percentage(Some(0), 7)], [0.0, 100.0]);
}
