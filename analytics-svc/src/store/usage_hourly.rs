//! `eco_usage_hourly`: the rollup that usage-svc keeps, read only.

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
