//! `eco_usage_daily`, the rollup by UTC day, with `eco_usage_totals`, its sums over all accounts, and the locks of a day's
//! rollups.

use chrono::NaiveDate;
use sqlx::PgConnection;

use super::rollup_arrays::RollupArrays;
use crate::domain::delta::Rollup;

/// Keeps rebuilds of these days out until the transaction ends. Waits for none: returns those of the days that are
/// being rebuilt, or are to be next; of them nothing is held.
#[tracing::instrument(name = "db.eco_usage_daily.lock", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn try_lock_days_shared(
    connection: &mut PgConnection,
    days: &[NaiveDate],
) -> sqlx::Result<Vec<NaiveDate>> {
    sqlx::query_scalar!(
        r#"select day as "day!" from unnest($1::date[]) as day
           where not pg_try_advisory_xact_lock_shared(hashtext('nexus_usage_day'), day - date '2000-01-01')"#,
        days,
    )
    .fetch_all(connection)
    .await
}

/// Keeps rebuilds of this day out until the transaction ends. Waits in turn with those who rebuild it.
#[tracing::instrument(name = "db.eco_usage_daily.wait", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn lock_day_shared(connection: &mut PgConnection, day: NaiveDate) -> sqlx::Result<()> {
    sqlx::query!(
        "select pg_advisory_xact_lock_shared(hashtext('nexus_usage_day'), $1::date - date '2000-01-01')",
        day,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Adds to the rollup, in the order given, and to the totals of the days in this slot.
#[tracing::instrument(name = "db.eco_usage_daily.upsert", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql", rows = rollups.len()))]
pub async fn add(
    connection: &mut PgConnection,
    slot: i16,
    rollups: &[Rollup<'_, NaiveDate>],
) -> sqlx::Result<()> {
    // A function scan yields the rows in the arrays' order.
    let arrays = RollupArrays::of(rollups);
    sqlx::query!(
        "with added as (
             select * from unnest($1::text[], $2::date[], $3::text[], $4::text[], $5::smallint[], $6::bigint[],
                                  $7::bigint[], $8::bigint[], $9::int[], $10::int[])
                 as u (eco_id, at, route, method, status_class, units, events, latency_ms, sketch_start, sketch_end)
         ), daily as (
             insert into eco_usage_daily as d
                 (eco_id, day, route, method, status_class, units_count, event_count, latency_sum_ms, sketch)
             select eco_id, at, route, method, status_class, units, events, latency_ms,
                    ($11::bigint[])[sketch_start : sketch_end]
             from added
             on conflict (eco_id, day, route, method, status_class) do update set
                 units_count    = d.units_count + excluded.units_count,
                 event_count    = d.event_count + excluded.event_count,
                 latency_sum_ms = d.latency_sum_ms + excluded.latency_sum_ms,
                 sketch         = nexus_sketch_add(d.sketch, excluded.sketch)
         )
         insert into eco_usage_totals as t
             (day, slot, units_count, successful_units, failed_units, event_count, latency_sum_ms)
         select at, $12, sum(units), coalesce(sum(units) filter (where status_class = 2), 0),
                coalesce(sum(units) filter (where status_class >= 4), 0), sum(events), sum(latency_ms)
         from added
         group by at
         on conflict (day, slot) do update set
             units_count      = t.units_count + excluded.units_count,
             successful_units = t.successful_units + excluded.successful_units,
             failed_units     = t.failed_units + excluded.failed_units,
             event_count      = t.event_count + excluded.event_count,
             latency_sum_ms   = t.latency_sum_ms + excluded.latency_sum_ms",
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
        slot,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Rebuilds one day, hours and all, from the raw log; returns the rows of the day. May take as long as the day is large.
#[tracing::instrument(name = "db.eco_usage_daily.rebuild", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn rebuild(connection: &mut PgConnection, day: NaiveDate) -> sqlx::Result<i64> {
    sqlx::query!("set local statement_timeout = 0").execute(&mut *connection).await?;
    sqlx::query_scalar!(r#"select aggregate_daily_usage($1) as "rows!""#, day).fetch_one(connection).await
}
