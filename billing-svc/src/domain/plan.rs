//! A plan's version and its prices.

use chrono::{DateTime, Utc};
use nexus_core::plan::Plan;
use serde::{Deserialize, Serialize};

/// A version of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanVersion {
    /// The plan.
    pub plan: Plan,
    /// Version, from 1.
    pub version: i32,
    /// Units included in a period; `None`: unlimited.
    pub included_units: Option<i64>,
    /// Whether calls beyond the included ones are refused.
    pub hard_limit: bool,
    /// When it was made.
    pub created_time: DateTime<Utc>,
    /// Prices, one per currency.
    pub prices: Vec<PlanPrice>,
}

/// A version to be made, every field valid in itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewPlanVersion {
    /// The plan.
    pub plan: Plan,
    /// Units included in a period; `None`: unlimited.
    pub included_units: Option<i64>,
    /// Whether calls beyond the included ones are refused.
    pub hard_limit: bool,
    /// Prices, one per currency, by its code.
    pub prices: Vec<PlanPrice>,
}

impl NewPlanVersion {
    /// Whether a version says the same.
    pub fn is(&self, version: &PlanVersion) -> bool {
        let own = (self.plan, self.included_units, self.hard_limit, &self.prices);
        own == (version.plan, version.included_units, version.hard_limit, &version.prices)
    }
}

/// Prices of a plan version in one currency, in micros of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanPrice {
    /// ISO 4217.
    pub currency_code: String,
    /// Price of a month.
    pub monthly_micros: i64,
    /// Price of `overage_per_units` units beyond the included ones; 0: not billed.
    pub overage_micros: i64,
    /// Units the overage price is for.
    pub overage_per_units: i64,
}
