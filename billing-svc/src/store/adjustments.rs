//! `eco_usage_adjustments`: corrections of usage. Rows are never altered.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use crate::domain::{
    adjustment::{Adjustment, Place},
    overage::Facts,
};

/// A correction as it was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// Units.
    pub units: i64,
    /// Why.
    pub reason: String,
    /// Units of the period, with it.
    pub api_calls: i64,
    /// Start of the period.
    pub period_start: DateTime<Utc>,
    /// End of the period, as far as it has a summary.
    pub period_end: Option<DateTime<Utc>>,
    /// The segment.
    pub segment: i32,
}

impl Made {
    /// Whether it is where a correction is asked for: that what is not named was the current one then.
    pub fn is_where(&self, asked: &Adjustment) -> bool {
        let at = asked.period_time;
        at.is_none_or(|at| self.period_start <= at && self.period_end.is_none_or(|end| at < end))
            && asked.segment.is_none_or(|segment| i32::try_from(segment) == Ok(self.segment))
    }
}

/// The correction that a request has made.
#[tracing::instrument(name = "db.eco_usage_adjustments.find", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn find(db: &mut PgConnection, asked: &Adjustment) -> sqlx::Result<Option<Made>> {
    sqlx::query_as!(
        Made,
        r#"select a.units, a.reason, a.api_calls, a.period_start, r.period_end as "period_end?", a.segment
           from eco_usage_adjustments a
           left join eco_usage_records r on r.eco_id = a.eco_id and r.period_start = a.period_start
           where a.eco_id = $1 and a.request_id = $2"#,
        asked.eco_id.as_str(),
        asked.request_id,
    )
    .fetch_optional(db)
    .await
}

/// Makes a correction in a segment of a period, with the facts of before; returns the units of the period.
#[tracing::instrument(name = "db.eco_usage_adjustments.insert", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn insert(
    db: &mut PgConnection,
    asked: &Adjustment,
    facts: &Facts,
    place: Place,
) -> sqlx::Result<i64> {
    sqlx::query_scalar!(
        "insert into eco_usage_adjustments (eco_id, period_start, segment, units, reason, request_id, api_calls)
         values ($1, $2, $3, $4, $5, $6, $7)
         returning api_calls",
        facts.eco_id,
        facts.period.start,
        i32::try_from(place.segment).unwrap_or(i32::MAX),
        asked.units,
        asked.reason,
        asked.request_id,
        facts.api_calls() + asked.units,
    )
    .fetch_one(db)
    .await
}
