//! Usage thresholds: which percentages of an account's limit its usage has reached.

use std::collections::HashMap;

use nexus_core::plan::Plan;
use uuid::Uuid;

use super::overage::Facts;

/// Percentages that a plan may have.
pub const MAX_PERCENTS: usize = 20;
/// The highest of them.
pub const MAX_PERCENT: i32 = 1_000;

/// Names message ids, so that the same crossing has the same id whenever it is found.
const NAMESPACE: Uuid = Uuid::from_u128(0x7b5a_4d61_8a0f_4c2e_9d57_0c7b_91e4_23f6);

/// What decides about thresholds beside an account's facts.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    /// Percentages of each plan, ascending.
    pub percents: HashMap<Plan, Vec<i32>>,
    /// Units that the newest free plan includes: the limit of a subscription that does not grant its own plan.
    pub free_included: Option<i64>,
}

/// A threshold that an account's usage has reached in a period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reached {
    /// The plan whose limit it is: that of the account, or the free one where the subscription does not grant it.
    pub plan: Plan,
    /// Percentage of the limit.
    pub percent: i32,
    /// The limit.
    pub limit: i64,
}

/// Everything reached by now, lowest first; whether it was told before is not asked here. A settled period reaches
/// nothing more, and without a limit, or with none included, there is nothing to take a percentage of.
pub fn reached(facts: &Facts, rules: &Rules) -> Vec<Reached> {
    let (plan, limit) =
        if facts.granted { (facts.plan, facts.terms.included) } else { (Plan::Free, rules.free_included) };
    let Some(limit) = limit.filter(|limit| *limit > 0 && !facts.is_settling()) else { return Vec::new() };
    let Some(percents) = rules.percents.get(&plan) else { return Vec::new() };
    let calls = facts.api_calls();
    percents
        .iter()
        .filter(|percent| is_reached(calls, limit, **percent))
        .map(|percent| Reached { plan, percent: *percent, limit })
        .collect()
}

fn is_reached(calls: i64, limit: i64, percent: i32) -> bool {
    i128::from(calls) * 100 >= i128::from(limit) * i128::from(percent)
}

/// Id of the message about it: the same for the same account, period, percentage and limit.
pub fn message_id(facts: &Facts, reached: Reached) -> Uuid {
    let name =
        format!("{} {} {} {}", facts.eco_id, facts.period.start.timestamp(), reached.percent, reached.limit);
    Uuid::new_v5(&NAMESPACE, name.as_bytes())
}

/// Checks the percentages of a plan, and sorts them.
pub fn check_percents(percents: &[i32]) -> Result<Vec<i32>, &'static str> {
    let mut sorted = percents.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    if percents.len() > MAX_PERCENTS {
        Err("must have at most 20 entries")
    } else if sorted.iter().any(|percent| !(1..=MAX_PERCENT).contains(percent)) {
        Err("must be from 1 to 1000 each")
    } else if sorted.len() < percents.len() {
        Err("must not repeat an entry")
    } else {
        Ok(sorted)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The percentage is compared exactly, whatever the numbers.
        #[test]
        fn a_threshold_is_reached_from_the_first_call_that_makes_its_share(
            limit in 1_i64..=i64::MAX / 1_000,
            percent in 1_i32..=MAX_PERCENT,
        ) {
            let exact = i128::from(limit) * i128::from(percent);
            let least = i64::try_from((exact + 99) / 100).expect("fits");
            prop_assert!(is_reached(least, limit, percent));
            prop_assert!(!is_reached(least - 1, limit, percent));
        }
    }

    #[test]
    fn percentages_are_sorted_and_checked() {
        assert_eq!(check_percents(&[100, 75]), Ok(vec![75, 100]));
        assert_eq!(check_percents(&[]), Ok(vec![]));
        for bad in [vec![0], vec![1_001], vec![75, 75], vec![-1], (1..=21).collect()] {
            assert!(check_percents(&bad).is_err(), "{bad:?}");
        }
    }
}
