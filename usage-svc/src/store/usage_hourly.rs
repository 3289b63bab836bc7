//! `eco_usage_hourly`, the rollup by hour.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use super::rollup_arrays::RollupArrays;
use crate::domain::delta::Rollup;

/// Adds to the rollup, in the order given.
#[tracing::instrument(name = "db.eco_usage_hourly.upsert", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql", rows = rollups.len()))]
pub async fn add(connection: &mut PgConnection, rollups: &[Rollup<'_, DateTime<Utc>>]) -> sqlx::Result<()> {
    // A function scan yields the rows in the arrays' order.
    let arrays = RollupArrays::of(rollups);
    sqlx::query!(
        "insert into eco_usage_hourly as d
             (eco_id, hour, route, method, status_class, units_count, event_count, latency_sum_ms, sketch)
         select u.eco_id, u.at, u.route, u.method, u.status_class, u.units, u.events, u.latency_ms,
                ($11::bigint[])[u.sketch_start : u.sketch_end]
         from unnest($1::text[], $2::timestamptz[], $3::text[], $4::text[], $5::smallint[], $6::bigint[], $7::bigint[],
                     $8::bigint[], $9::int[], $10::int[])
              as u (eco_id, at, route, method, status_class, units, events, latency_ms, sketch_start, sketch_end)
         on conflict (eco_id, hour, route, method, status_class) do update set
             units_count    = d.units_count + excluded.units_count,
             event_count    = d.event_count + excluded.event_count,
             latency_sum_ms = d.latency_sum_ms + excluded.latency_sum_ms,
             sketch         = nexus_sketch_add(d.sketch, excluded.sketch)",
        &arrays.eco_ids as &[&str],
        &arrays.at,
        &arrays.routes as &[&str],
        &arrays.methods as &[&str],
        &arrays.status_classes,
        &arrays.units,
        &arrays.events,
        &arrays.latencies_ms,
        &arrays.starts,
        &arrays.ends,
        &arrays.entries,
    )
    .execute(connection)
    .await?;
    Ok(())
}
