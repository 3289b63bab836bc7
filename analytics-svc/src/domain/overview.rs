use chrono::{DateTime, Utc};
use nexus_core::{
    id::EcoId,
    money::{Currency, Micros},
    plan::Plan,
};

use super::users::UserCursor;

/// Accounts with the most usage that the overview shows.
pub const TOP_USERS: i64 = 5;

/// Currency of the sums of money; accounts in other currencies are not part of them.
pub const CURRENCY: Currency = Currency::USD;

/// The accounts of one plan, added up. Usage and overage are of each account's current period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlanTotals {
    /// The plan.
    pub plan: Plan,
    /// Accounts that are not closed.
    pub users: i64,
    /// Units recorded.
    pub api_calls: i64,
    /// Monthly prices of the subscriptions that count in the MRR.
    pub mrr: Micros,
    /// Overage due, whether billed yet or not.
    pub overage: Micros,
}

/// An account by its usage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopUser {
    /// Account.
    pub eco_id: EcoId,
    /// Units recorded in its current period, at least 1.
    pub api_calls: i64,
    /// Its plan.
    pub plan: Plan,
}

impl TopUser {
    /// Its place in the list: units descending, then id.
    pub fn cursor(&self) -> UserCursor {
        UserCursor { key: self.api_calls, eco_id: self.eco_id.clone() }
    }
}

/// The whole business at a glance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overview {
    /// One entry for each plan, in the order of [`Plan::ALL`].
    pub plans: Vec<PlanTotals>,
    /// At most [`TOP_USERS`], most usage first, ties by id.
    pub top_users: Vec<TopUser>,
    /// Database time of the figures.
    pub as_of: DateTime<Utc>,
}

impl Overview {
    /// Completes `totals` with the plans that have no accounts.
    pub fn new(totals: &[PlanTotals], top_users: Vec<TopUser>, as_of: DateTime<Utc>) -> Self {
        let of = |plan| {
            totals.iter().find(|t| t.plan == plan).copied().unwrap_or(PlanTotals {
                plan,
                users: 0,
                api_calls: 0,
                mrr: Micros(0),
                overage: Micros(0),
            })
        };
        Self { plans: Plan::ALL.map(of).to_vec(), top_users, as_of }
    }

    /// One figure of all plans together.
    pub fn sum(&self, figure: impl Fn(&PlanTotals) -> i64) -> i64 {
        self.plans.iter().map(figure).sum()
    }
}
