//! `eco_usage_totals`: what all accounts used by day, which usage-svc keeps, read only.

use sqlx::PgConnection;

use crate::domain::history::{DailyUsage, Latency};

/// The days with usage among the last `days` UTC days including today, oldest first.
#[tracing::instrument(
    name = "db.eco_usage_totals.days",
    skip_all,
    err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql")
)]
pub async fn days(connection: &mut PgConnection, days: i64) -> sqlx::Result<Vec<DailyUsage>> {
    sqlx::query!(
        r#"
        select day, sum(units_count)::bigint as "units!", sum(successful_units)::bigint as "successful!",
               sum(failed_units)::bigint as "failed!", sum(event_count)::bigint as "events!",
               sum(latency_sum_ms)::bigint as "latency_ms!"
        from eco_usage_totals, (select (now() at time zone 'UTC')::date as today) as clock
        where day > today - $1::bigint::int and day <= today
        group by day
        order by day
        "#,
        days
    )
    .map(|row| DailyUsage {
        day: row.day,
        total_units: row.units,
        successful_units: row.successful,
        failed_units: row.failed,
        latency: Latency { sum_ms: row.latency_ms, events: row.events },
        top_endpoints: Vec::new(),
    })
    .fetch_all(connection)
    .await
}
