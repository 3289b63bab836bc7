//! Spend caps: an account may say what its overage may cost in a period. A plan that bills overage then refuses calls
//! as a hard limit does, from the units on that the cap does not pay for.

use crate::{
    money::{self, Micros, UnitPrice},
    quota::Limit,
};

/// No cap allows more units: limits are added to.
const MOST: i128 = 1 << 60;

/// What the plan of a period's open segment says, and where the segment begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenSegment {
    /// Units included in the period.
    pub included: Limit,
    /// Units recorded in the segments before.
    pub start_count: i64,
    /// Price of units beyond both.
    pub price: UnitPrice,
}

/// Units of a period beyond which calls are refused: the most whose overage costs no more than the cap, not by the
/// fraction of a micro. `closed` is the overage of the segments before, which was admitted: where it costs more than the
/// cap, nothing is left. `None`: the cap refuses nobody, as the plan of the open segment is unlimited or bills no
/// overage.
pub fn limit(cap: Micros, closed: &[(UnitPrice, i64)], open: &OpenSegment) -> Limit {
    let OpenSegment { included, start_count, price } = *open;
    let unbilled = included?.max(start_count);
    if price.micros == 0 {
        return None;
    }
    // Units of one price are added up before they are multiplied, as on the bill.
    let (same, others): (Vec<_>, Vec<_>) = closed.iter().copied().partition(|(known, _)| *known == price);
    let Ok(spent) = money::cost(others) else { return Some(unbilled) };
    let left = i128::from(cap.0) - i128::from(spent.0);
    let paid = (left * i128::from(price.per_units)).div_euclid(i128::from(price.micros));
    let billed = paid - same.iter().map(|(_, units)| i128::from(*units)).sum::<i128>();
    let limit = (i128::from(unbilled) + billed.max(0)).min(MOST);
    Some(i64::try_from(limit).unwrap_or(i64::MAX).max(unbilled))
}

/// Of the units that a cap allows, those to admit: a correction of the period's usage counts on the bill like calls, and
/// was never admitted.
pub fn admitted(limit: i64, adjusted: i64) -> i64 {
    limit.saturating_sub(adjusted).clamp(0, i64::MAX >> 2)
}
