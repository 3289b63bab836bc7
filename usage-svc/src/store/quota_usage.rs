//! `eco_quota_usage`: units handed out per account and period.

use chrono::{DateTime, Utc};
use nexus_core::{id::EcoId, quota::Limit};
use sqlx::PgConnection;

/// Grants units if they fit under the limit, and locks the row until the transaction ends; returns the
/// units consumed since, these included. `None`: they do not fit, or the period has no row yet.
///
/// A concurrent grant waits for this one's end and is then checked against the row as it is, so that no
/// two can pass on the same units.
#[tracing::instrument(name = "db.eco_quota_usage.update", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn grant(
    connection: &mut PgConnection,
    eco_id: &EcoId,
    period_start: DateTime<Utc>,
    units: i64,
    limit: Limit,
) -> sqlx::Result<Option<i64>> {
    sqlx::query_scalar!(
        r#"with unadmitted as (
               select coalesce(sum(unadmitted_units), 0)::bigint as units
               from eco_usage_counters where eco_id = $1 and period_start = $2
           )
           update eco_quota_usage q set granted_units = q.granted_units + $3
           from unadmitted u
           where q.eco_id = $1 and q.period_start = $2
             and ($4::bigint is null or q.granted_units - q.returned_units + u.units + $3 <= $4)
           returning q.granted_units - q.returned_units + u.units as "consumed!""#,
        eco_id.as_str(),
        period_start,
        units,
        limit,
    )
    .fetch_optional(connection)
    .await
}

/// Begins the account's period, unless another has.
#[tracing::instrument(name = "db.eco_quota_usage.insert", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn begin_period(
    connection: &mut PgConnection,
    eco_id: &EcoId,
    period_start: DateTime<Utc>,
) -> sqlx::Result<()> {
    sqlx::query!(
        "insert into eco_quota_usage (eco_id, period_start) values ($1, $2) on conflict do nothing",
        eco_id.as_str(),
        period_start,
    )
    .execute(connection)
    .await?;
    Ok(())
}
