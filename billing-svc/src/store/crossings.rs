//! `eco_usage_crossings`: the thresholds that were reached, each once.

use std::collections::HashSet;

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::PgConnection;

use crate::domain::{overage::Facts, threshold::Reached};

/// Writes down what is not there yet, and returns that.
#[tracing::instrument(name = "db.eco_usage_crossings.add", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn add<'a>(
    db: &mut PgConnection,
    reached: Vec<(&'a Facts, Reached)>,
) -> sqlx::Result<Vec<(&'a Facts, Reached)>> {
    let eco_ids: Vec<&str> = reached.iter().map(|(facts, _)| facts.eco_id.as_str()).collect();
    let starts: Vec<DateTime<Utc>> = reached.iter().map(|(facts, _)| facts.period.start).collect();
    let percents: Vec<i32> = reached.iter().map(|(_, reached)| reached.percent).collect();
    let limits: Vec<i64> = reached.iter().map(|(_, reached)| reached.limit).collect();
    let calls: Vec<i64> = reached.iter().map(|(facts, _)| facts.api_calls()).collect();
    // Most are there: those are passed over before the insert, and not by its conflict.
    let rows = sqlx::query!(
        "insert into eco_usage_crossings as c (eco_id, period_start, percent, limit_units, api_calls)
         select u.* from unnest($1::text[], $2::timestamptz[], $3::int[], $4::bigint[], $5::bigint[])
             as u (eco_id, period_start, percent, limit_units, api_calls)
         where not exists (select from eco_usage_crossings k
                           where k.eco_id = u.eco_id and k.period_start = u.period_start
                             and k.percent = u.percent and k.limit_units = u.limit_units)
         order by u.eco_id, u.period_start, u.percent, u.limit_units
         on conflict do nothing
         returning c.eco_id, c.period_start, c.percent, c.limit_units",
        &eco_ids as &[&str],
        &starts,
        &percents,
        &limits,
        &calls,
    )
    .fetch_all(db)
    .await?;
    let added: HashSet<_> = rows
        .iter()
        .map(|row| (row.eco_id.as_str(), row.period_start, row.percent, row.limit_units))
        .collect();
    let is_new = |(facts, reached): &(&Facts, Reached)| {
        added.contains(&(facts.eco_id.as_str(), facts.period.start, reached.percent, reached.limit))
    };
    Ok(reached.into_iter().filter(is_new).collect())
}

/// Deletes up to `limit` of periods that ended longer ago than `keep`; returns how many.
#[tracing::instrument(name = "db.eco_usage_crossings.delete_old", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn delete_old(db: &mut PgConnection, keep: TimeDelta, limit: i64) -> sqlx::Result<u64> {
    let done = sqlx::query!(
        "delete from eco_usage_crossings
         where ctid = any (array(
             select c.ctid from eco_usage_crossings c
             join eco_usage_records r on r.eco_id = c.eco_id and r.period_start = c.period_start
             where c.crossed_time < now() - $1::interval and r.period_end < now() - $1::interval
             order by c.crossed_time limit $2
             for update of c skip locked))",
        keep as _,
        limit,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected())
}
