//! The counts of usage beside each other, read across tables: raw log, counters, segments, summary.

use chrono::{DateTime, Utc};
use futures::Stream;
use nexus_core::period::MAX_EVENT_AGE;
use sqlx::PgConnection;

use crate::domain::{books::RESOLVED_WITHIN, period::PeriodKey, reconciliation::Scope};

/// A segment whose counts differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentCounts {
    /// Account.
    pub eco_id: String,
    /// Start of the period.
    pub period_start: DateTime<Utc>,
    /// Number of the segment.
    pub segment: i32,
    /// Billable units on the first side.
    pub units: i64,
    /// And on the second.
    pub other_units: i64,
    /// Units of test keys on the first side.
    pub test_units: i64,
    /// And on the second.
    pub other_test_units: i64,
}

/// Segments of the raw log and of the counters that differ. An event is at most [`MAX_EVENT_AGE`] old when it is
/// recorded, and counts in a period that has begun: where days from that time before the period are gone from the
/// raw log, only more events than were counted are a difference. `first_start`: see [`Scope::first_start`].
pub fn events_counters<'a>(
    db: &'a mut PgConnection,
    scope: &'a Scope,
    first_start: DateTime<Utc>,
) -> impl Stream<Item = sqlx::Result<SegmentCounts>> + 'a {
    sqlx::query_as!(
        SegmentCounts,
        r#"select eco_id as "eco_id!", period_start as "period_start!", segment as "segment!",
                  coalesce(e.units, 0) as "units!", coalesce(c.units, 0) as "other_units!",
                  coalesce(e.test_units, 0) as "test_units!", coalesce(c.test_units, 0) as "other_test_units!"
           from (select eco_id, period_start, segment,
                        coalesce(sum(units_count) filter (where not test_mode), 0)::bigint as units,
                        coalesce(sum(units_count) filter (where test_mode), 0)::bigint as test_units
                 from eco_api_usage
                 where event_day >= ($1::timestamptz - $4::interval)::date - 1
                   and period_start >= $1 and ($2::timestamptz is null or period_start <= $2)
                   and ($3::text[] is null or eco_id = any ($3))
                 group by 1, 2, 3) e
           full join
                (select eco_id, period_start, segment, sum(recorded_units)::bigint as units,
                        sum(test_units)::bigint as test_units
                 from eco_usage_counters
                 where period_start >= $1 and ($2::timestamptz is null or period_start <= $2)
                   and ($3::text[] is null or eco_id = any ($3))
                 group by 1, 2, 3) c using (eco_id, period_start, segment)
           cross join eco_usage_retention t
           cross join (select installed_on from _sqlx_migrations where version = 3) m
           where (coalesce(e.units, 0), coalesce(e.test_units, 0))
                 is distinct from (coalesce(c.units, 0), coalesce(c.test_units, 0))
             and (t.raw_complete_from <= ((greatest(period_start, m.installed_on) - $4::interval) at time zone 'UTC')::date
                  or e.units > coalesce(c.units, 0) or e.test_units > coalesce(c.test_units, 0))
           order by 1, 2, 3"#,
        first_start,
        scope.period_time,
        scope.accounts.as_deref() as Option<&[String]>,
        MAX_EVENT_AGE as _,
    )
    .fetch(db)
}

/// Segments that a change of plan has closed, whose counters with their adjustments are not what they were closed with.
pub fn segments_counters<'a>(
    db: &'a mut PgConnection,
    scope: &'a Scope,
    first_start: DateTime<Utc>,
) -> impl Stream<Item = sqlx::Result<SegmentCounts>> + 'a {
    sqlx::query_as!(
        SegmentCounts,
        r#"select g.eco_id, g.period_start, g.segment, g.recorded_units as "units!",
                  c.units + j.units as "other_units!", 0::bigint as "test_units!", 0::bigint as "other_test_units!"
           from eco_usage_segments g
           cross join lateral (
               select coalesce(sum(u.recorded_units), 0)::bigint as units from eco_usage_counters u
               where u.eco_id = g.eco_id and u.period_start = g.period_start and u.segment = g.segment) c
           cross join lateral (
               select coalesce(sum(a.units), 0)::bigint as units from eco_usage_adjustments a
               where a.eco_id = g.eco_id and a.period_start = g.period_start and a.segment = g.segment) j
           where g.period_start >= $1 and ($2::timestamptz is null or g.period_start <= $2)
             and ($3::text[] is null or g.eco_id = any ($3))
             and g.recorded_units <> c.units + j.units
           order by 1, 2, 3"#,
        first_start,
        scope.period_time,
        scope.accounts.as_deref() as Option<&[String]>,
    )
    .fetch(db)
}

/// What the summary says of a period.
#[derive(Debug, Clone)]
pub struct Summary {
    /// Account and start of the period.
    pub key: PeriodKey,
    /// Units; `None`: there is no summary.
    pub api_calls: Option<i64>,
    /// Its copy of the ledger's sum.
    pub billed_micros: i64,
    /// Whether the period was settled.
    pub settled: bool,
    /// Whether it is to be refreshed.
    pub queued: bool,
    /// Whether its usage was corrected since the last daily run, perhaps.
    pub just_adjusted: bool,
}

/// The periods in scope that have counters or a summary, in the order of their keys, after a key.
#[tracing::instrument(name = "db.eco_usage_records.summaries", skip_all, err(level = "debug"), fields(otel.kind = "client", db.system.name = "postgresql"))]
pub async fn summaries(
    db: &mut PgConnection,
    scope: &Scope,
    first_start: DateTime<Utc>,
    after: Option<&PeriodKey>,
    limit: i64,
) -> sqlx::Result<Vec<Summary>> {
    let rows = sqlx::query!(
        r#"with keys as (
               select eco_id, period_start from (
                   (select eco_id, period_start from eco_usage_counters
                    where ($4::text is null or (eco_id, period_start) > ($4, $5))
                      and period_start >= $1 and ($2::timestamptz is null or period_start <= $2)
                      and ($3::text[] is null or eco_id = any ($3))
                    group by 1, 2 order by 1, 2 limit $6)
                   union
                   (select eco_id, period_start from eco_usage_records
                    where ($4::text is null or (eco_id, period_start) > ($4, $5))
                      and period_start >= $1 and ($2::timestamptz is null or period_start <= $2)
                      and ($3::text[] is null or eco_id = any ($3))
                    order by 1, 2 limit $6)) both_sides
               order by 1, 2 limit $6)
           select k.eco_id as "eco_id!", k.period_start as "period_start!", r.api_calls as "api_calls?",
                  coalesce(r.billed_micros, 0) as "billed_micros!", r.settled_time is not null as "settled!",
                  q.eco_id is not null as "queued!",
                  exists (select from eco_usage_adjustments a
                          where a.eco_id = k.eco_id and a.period_start = k.period_start
                            and a.created_time > now() - $7::interval) as "just_adjusted!"
           from keys k
           left join eco_usage_records r on r.eco_id = k.eco_id and r.period_start = k.period_start
           left join (select distinct eco_id, period_start from eco_usage_changes) q
               on q.eco_id = k.eco_id and q.period_start = k.period_start
           order by 1, 2"#,
        first_start,
        scope.period_time,
        scope.accounts.as_deref() as Option<&[String]>,
        after.map(|key| key.eco_id.as_str()),
        after.map(|key| key.start),
        limit,
        RESOLVED_WITHIN as _,
    )
    .fetch_all(db)
    .await?;
    let rows = rows.into_iter().map(|row| Summary {
        key: PeriodKey { eco_id: row.eco_id, start: row.period_start },
        api_calls: row.api_calls,
        billed_micros: row.billed_micros,
        settled: row.settled,
        queued: row.queued,
        just_adjusted: row.just_adjusted,
    });
    Ok(rows.collect())
}
