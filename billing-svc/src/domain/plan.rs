//! A plan's version and its prices.

use chrono::{DateTime, Utc};
use nexus_core::plan::Plan;

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

/// Prices of a plan version in one currency, in micros of it.
#[derive(Debug, Clone, PartialEq, Eq)]
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
