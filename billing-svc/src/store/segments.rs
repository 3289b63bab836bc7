//! `eco_usage_segments`: the segments that changes of plan, or of whether it is granted, have ended. Only a correction of usage alters their counts.

use chrono::{DateTime, Utc};
use nexus_core::id::EcoId;
use sqlx::PgConnection;

use crate::domain::{
    of_a_day::OfADay,
    overage::{ClosedSegment, Facts},
    period::PeriodKey,
};

/// Closes the open segment of a period with what the facts say of it.
#[tracing::instrument(name = "db.eco_usage_segments.close", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn close(db: &mut PgConnection, facts: &Facts, now: DateTime<Utc>) -> sqlx::Result<()> {
    sqlx::query!(
        "insert into eco_usage_segments
             (eco_id, period_start, segment, plan, plan_version, closed_time, recorded_units, overage_units, granted)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        facts.eco_id,
        facts.period.start,
        i32::try_from(facts.closed.len()).unwrap_or(i32::MAX),
        facts.plan.as_str(),
        facts.plan_version,
        now,
        facts.open_units,
        facts.open_overage(),
        facts.granted,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Gives the closed segments of a period other counts, and what has accrued in the period with them.
#[tracing::instrument(name = "db.eco_usage_segments.correct", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn correct(db: &mut PgConnection, key: &PeriodKey, closed: &[ClosedSegment]) -> sqlx::Result<()> {
    let units: Vec<i64> = closed.iter().map(|segment| segment.units).collect();
    let overage_units: Vec<i64> = closed.iter().map(|segment| segment.overage_units).collect();
    let granted: Vec<bool> = closed.iter().map(|segment| segment.granted).collect();
    sqlx::query!(
        "with corrected as (
             select k.segment - 1 as segment, k.recorded_units, k.overage_units, k.granted
             from unnest($3::bigint[], $4::bigint[], $5::bool[])
                 with ordinality as k (recorded_units, overage_units, granted, segment)),
         before as (
             select coalesce(sum(overage_units), 0)::bigint as overage_units from eco_usage_segments
             where eco_id = $1 and period_start = $2),
         written as (
             update eco_usage_segments g
             set recorded_units = c.recorded_units, overage_units = c.overage_units, granted = c.granted
             from corrected c
             where g.eco_id = $1 and g.period_start = $2 and g.segment = c.segment)
         update eco_usage_records r
         set overage_units = greatest(r.overage_units - b.overage_units
                                      + (select coalesce(sum(c.overage_units), 0)::bigint from corrected c), 0)
         from before b
         where r.eco_id = $1 and r.period_start = $2",
        key.eco_id,
        key.start,
        &units,
        &overage_units,
        &granted,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// The segments of an account that were closed within 24 hours.
#[tracing::instrument(name = "db.eco_usage_segments.of_a_day", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn of_a_day(db: &mut PgConnection, eco_id: &EcoId) -> sqlx::Result<OfADay> {
    sqlx::query_as!(
        OfADay,
        r#"select count(*) as "count!",
                  coalesce(extract(epoch from min(closed_time) + interval '24 hours' - now()) * 1000, 0)::bigint
                      as "oldest_leaves_in_ms!"
           from eco_usage_segments where eco_id = $1 and closed_time > now() - interval '24 hours'"#,
        eco_id.as_str(),
    )
    .fetch_one(db)
    .await
}

/// Keeps the plan of the last segment of the period that ends with a change which waited for it, before that is
/// applied. The segment goes on taking late events.
#[tracing::instrument(name = "db.eco_usage_segments.end_with_period", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn end_with_period(db: &mut PgConnection, subscription_id: i64) -> sqlx::Result<()> {
    sqlx::query!(
        "insert into eco_usage_segments (eco_id, period_start, segment, plan, plan_version, closed_time)
         select s.eco_id, p.start,
                (select count(*) from eco_usage_segments g where g.eco_id = s.eco_id and g.period_start = p.start),
                s.plan, s.plan_version, s.next_plan_time
         from eco_subscriptions s
         cross join lateral nexus_period_start(s.anchor_time, s.next_plan_time - interval '1 microsecond') as p (start)
         where s.subscription_id = $1",
        subscription_id,
    )
    .execute(db)
    .await?;
    Ok(())
}
