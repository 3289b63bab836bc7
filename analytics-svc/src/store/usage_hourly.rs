//! `eco_usage_hourly`: the rollup that usage-svc keeps, read only.

use chrono::{NaiveDate, TimeDelta};
use nexus_core::id::EcoId;
use sqlx::PgConnection;

use crate::domain::{
    export::{ExportRange, HourCursor, HourlyUsage},
    history::Latency,
};

/// The rows after a place, at most so many, in the order of the table's key.
#[tracing::instrument(
    name = "db.eco_usage_hourly.page",
    skip_all,
    err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql")
)]
pub async fn page(
    connection: &mut PgConnection,
    range: &ExportRange,
    after: &HourCursor,
    limit: i64,
) -> sqlx::Result<Vec<HourlyUsage>> {
    let eco_id: &EcoId = &range.eco_id;
    sqlx::query!(
        r#"
        select hour, route, method, status_class, units_count, event_count, latency_sum_ms
        from eco_usage_hourly
        where eco_id = $1 and hour >= $2 and hour < $3
          and (hour, route, method, status_class) > ($2, $4, $5, $6)
        order by hour, route, method, status_class
        limit $7
        "#,
        eco_id.as_str(),
        after.hour,
        range.end,
        after.route,
        after.method,
        after.status_class,
        limit
    )
    .map(|row| HourlyUsage {
        place: HourCursor {
            hour: row.hour,
            route: row.route,
            method: row.method,
            status_class: row.status_class,
        },
        units: row.units_count,
        latency: Latency { sum_ms: row.latency_sum_ms, events: row.event_count },
    })
    .fetch_all(connection)
    .await
}

/// The last day of a range of which there is usage and no hours: they are kept as long as the raw log, days for longer.
#[tracing::instrument(
    name = "db.eco_usage_hourly.last_day_without",
    skip_all,
    err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql")
)]
pub async fn last_day_without(
    connection: &mut PgConnection,
    range: &ExportRange,
) -> sqlx::Result<Option<NaiveDate>> {
    let last = (range.end - TimeDelta::microseconds(1)).date_naive();
    sqlx::query_scalar!(
        r#"
        select d.day as "day!"
        from (select ($3::date - back) as day from generate_series(0, $3::date - $2::date) back) d
        where exists (select from eco_usage_daily u where u.eco_id = $1 and u.day = d.day)
          and not exists (select from eco_usage_hourly h
                          where h.eco_id = $1
                            and h.hour >= d.day::timestamp at time zone 'UTC'
                            and h.hour < (d.day + 1)::timestamp at time zone 'UTC')
        order by d.day desc
        limit 1
        "#,
        range.eco_id.as_str(),
        range.start.date_naive(),
        last,
    )
    .fetch_optional(connection)
    .await
}
