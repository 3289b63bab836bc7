//! `eco_usage_daily`, the rollup.

use std::collections::BTreeMap;

use chrono::NaiveDate;
use sqlx::PgConnection;

use crate::domain::delta::{RollupDelta, RollupKey};

/// Keeps rebuilds of these days out until the transaction ends. `days` are in order, so that no two
/// flushes and rebuilds wait for each other in a circle.
#[tracing::instrument(name = "db.eco_usage_daily.lock", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn lock_days_shared(connection: &mut PgConnection, days: &[NaiveDate]) -> sqlx::Result<()> {
    sqlx::query!(
        "select pg_advisory_xact_lock_shared(hashtext('nexus_usage_day'), day - date '2000-01-01')
         from unnest($1::date[]) as day",
        days,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Adds to the rollup, in the order of the keys.
#[tracing::instrument(name = "db.eco_usage_daily.upsert", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql", rows = deltas.len()))]
pub async fn add(
    connection: &mut PgConnection,
    deltas: &BTreeMap<RollupKey<'_>, RollupDelta>,
) -> sqlx::Result<()> {
    // Sketches differ in length, so they come in one array with the end of each.
    let mut pairs: Vec<i64> = Vec::new();
    let mut ends: Vec<i32> = Vec::with_capacity(deltas.len());
    for delta in deltas.values() {
        pairs.extend(delta.sketch.to_pairs());
        ends.push(i32::try_from(pairs.len()).expect("a flush has at most two numbers per event"));
    }
    let starts: Vec<i32> = std::iter::once(0).chain(ends.iter().copied()).take(ends.len()).collect();
    sqlx::query!(
        "insert into eco_usage_daily as d
             (eco_id, day, route, method, status_class, units_count, event_count, latency_sum_ms, latency_sketch)
         select u.eco_id, u.day, u.route, u.method, u.status_class, u.units, u.events, u.latency_ms,
                ($11::bigint[])[u.sketch_start + 1 : u.sketch_end]
         from unnest($1::text[], $2::date[], $3::text[], $4::text[], $5::smallint[], $6::bigint[], $7::bigint[],
                     $8::bigint[], $9::int[], $10::int[])
              with ordinality as u (eco_id, day, route, method, status_class, units, events, latency_ms,
                                    sketch_start, sketch_end, position)
         order by u.position
         on conflict (eco_id, day, route, method, status_class) do update set
             units_count    = d.units_count + excluded.units_count,
             event_count    = d.event_count + excluded.event_count,
             latency_sum_ms = d.latency_sum_ms + excluded.latency_sum_ms,
             latency_sketch = nexus_sketch_merge(d.latency_sketch, excluded.latency_sketch)",
        &deltas.keys().map(|k| k.0).collect::<Vec<_>>() as &[&str],
        &deltas.keys().map(|k| k.1).collect::<Vec<_>>(),
        &deltas.keys().map(|k| k.2.as_ref()).collect::<Vec<_>>() as &[&str],
        &deltas.keys().map(|k| k.3).collect::<Vec<_>>() as &[&str],
        &deltas.keys().map(|k| k.4).collect::<Vec<_>>(),
        &deltas.values().map(|d| d.units).collect::<Vec<_>>(),
        &deltas.values().map(|d| d.events).collect::<Vec<_>>(),
        &deltas.values().map(|d| d.latency_ms).collect::<Vec<_>>(),
        &starts,
        &ends,
        &pairs,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Rebuilds one day from the raw log; returns the rows written. May take as long as the day is large.
#[tracing::instrument(name = "db.eco_usage_daily.rebuild", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn rebuild(connection: &mut PgConnection, day: NaiveDate) -> sqlx::Result<i64> {
    sqlx::query!("set local statement_timeout = 0").execute(&mut *connection).await?;
    sqlx::query_scalar!(r#"select aggregate_daily_usage($1) as "rows!""#, day).fetch_one(connection).await
}
