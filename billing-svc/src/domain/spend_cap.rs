//! Spend caps: what an account's overage may cost in a period.

use nexus_core::{
    id::EcoId,
    money::{Currency, Micros, OutOfRange},
    quota::Limit,
    spend_cap::{self, OpenSegment},
};
use uuid::Uuid;

use super::overage::{Facts, Price};

/// What a cap is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpendCapChange {
    /// Account.
    pub eco_id: EcoId,
    /// The cap, not negative; `None`: there is to be none.
    pub cap: Option<Micros>,
    /// Currency that it is meant in; `None`: whichever the account has.
    pub currency: Option<Currency>,
    /// Makes a repeat return the first answer.
    pub request_id: Option<Uuid>,
}

impl SpendCapChange {
    /// Whether it is meant in the account's currency.
    pub fn is_in(&self, account: Currency) -> bool {
        self.currency.is_none_or(|currency| currency == account)
    }

    /// Whether the cap is an amount that can be charged: what is settled is rounded to one, and is not to go beyond the
    /// cap by that.
    pub fn is_chargeable_in(&self, account: Currency) -> bool {
        self.cap.is_none_or(|cap| account.minor_unit().floor(cap) == cap)
    }
}

/// A cap in a period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpendCap {
    /// The cap.
    pub cap: Micros,
    /// What is left of it.
    pub left: Micros,
    /// Units of the period that it allows; `None`: it refuses nobody.
    pub limit: Limit,
}

impl SpendCap {
    /// A cap in the period that the facts are of; `hard`: their plan refuses overage by itself.
    pub fn of(cap: Micros, hard: bool, facts: &Facts) -> Result<Self, OutOfRange> {
        let spent = facts.overage()?.exact;
        let left = Micros(cap.0.saturating_sub(spent.0).max(0));
        let refuses = !hard && facts.granted;
        Ok(Self { cap, left, limit: if refuses { limit(cap, facts) } else { None } })
    }
}

/// What usage-svc admits by the cap.
fn limit(cap: Micros, facts: &Facts) -> Limit {
    let Price::Is(price) = facts.terms.price else { return None };
    let closed = facts.closed.iter().filter_map(|segment| match segment.terms.price {
        Price::Is(price) => Some((price, segment.overage_units)),
        Price::NoneInCurrency => None,
    });
    let start_count = facts.closed.iter().map(|segment| segment.units).sum();
    let open = OpenSegment { included: facts.terms.included, start_count, price };
    spend_cap::limit(cap, &closed.collect::<Vec<_>>(), &open)
}

#[cfg(test)]
#[path = "spend_cap_tests.rs"]
mod tests;
