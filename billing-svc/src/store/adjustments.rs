//! `eco_usage_adjustments`: corrections of usage. Rows are never altered.

use sqlx::PgConnection;

use crate::domain::{adjustment::Adjustment, overage::Facts};

/// A correction as it was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// Units.
    pub units: i64,
    /// Why.
    pub reason: String,
    /// Units of the period, with it.
    pub api_calls: i64,
}

/// The correction that a request has made.
#[tracing::instrument(name = "db.eco_usage_adjustments.find", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn find(db: &mut PgConnection, asked: &Adjustment) -> sqlx::Result<Option<Made>> {
    sqlx::query_as!(
        Made,
        "select units, reason, api_calls from eco_usage_adjustments where eco_id = $1 and request_id = $2",
        asked.eco_id.as_str(),
        asked.request_id,
    )
    .fetch_optional(db)
    .await
}

/// Makes a correction in the open segment of a period, with the facts of before; returns the units of the period.
#[tracing::instrument(name = "db.eco_usage_adjustments.insert", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn insert(db: &mut PgConnection, asked: &Adjustment, facts: &Facts) -> sqlx::Result<i64> {
    sqlx::query_scalar!(
        "insert into eco_usage_adjustments (eco_id, period_start, segment, units, reason, request_id, api_calls)
         values ($1, $2, $3, $4, $5, $6, $7)
         returning api_calls",
        facts.eco_id,
        facts.period.start,
        i32::try_from(facts.closed.len()).unwrap_or(i32::MAX),
        asked.units,
        asked.reason,
        asked.request_id,
        facts.api_calls() + asked.units,
    )
    .fetch_one(db)
    .await
}
