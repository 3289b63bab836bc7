//! What must hold after a seed: what clients were told, the raw log, counters, rollups and leases are one and the
//! same numbers.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use chrono::NaiveDate;
use sqlx::{AssertSqlSafe, PgConnection};
use uuid::Uuid;

use crate::client::journal::{Fate, History};

/// Differences of one kind that are shown.
const SHOWN: usize = 5;

/// What was found.
pub(crate) struct Checked {
    /// Events that clients were told are counted.
    pub(crate) acknowledged: usize,
    /// Differences.
    pub(crate) failures: Vec<String>,
}

/// Statements that return a line for each difference.
const DIFFERENCES: [&str; 9] = [
    "select format('%s, period of %s, segment %s: %s units recorded, %s in the raw log', eco_id, period_start, segment,
                   coalesce(c.units, 0), coalesce(r.units, 0))
     from (select eco_id, period_start, segment, sum(recorded_units) as units from eco_usage_counters group by 1, 2, 3) c
          full join (select eco_id, period_start, segment, sum(units_count) as units from eco_api_usage
                     where not test_mode group by 1, 2, 3) r using (eco_id, period_start, segment)
     where coalesce(c.units, 0) <> coalesce(r.units, 0)",
    "select format('%s, %s: daily rollup has %s, the raw log %s (units, events, ms)', eco_id, day,
                   coalesce(d.sums, '{}'), coalesce(r.sums, '{}'))
     from (select eco_id, day, array[sum(units_count), sum(event_count), sum(latency_sum_ms)] as sums
           from eco_usage_daily group by 1, 2) d
          full join (select eco_id, event_day as day, array[sum(units_count), count(*), sum(response_time_ms)] as sums
                     from eco_api_usage where not test_mode group by 1, 2) r using (eco_id, day)
     where d.sums is distinct from r.sums",
    "select format('%s: the totals have %s, the daily rollup %s (units, 2xx, errors, events, ms)', day,
                   coalesce(t.sums, '{}'), coalesce(d.sums, '{}'))
     from (select day, array[sum(units_count), sum(successful_units), sum(failed_units), sum(event_count),
                             sum(latency_sum_ms)] as sums
           from eco_usage_totals group by 1) t
          full join (select day, array[sum(units_count), coalesce(sum(units_count) filter (where status_class = 2), 0),
                                       coalesce(sum(units_count) filter (where status_class >= 4), 0),
                                       sum(event_count), sum(latency_sum_ms)] as sums
                     from eco_usage_daily group by 1) d using (day)
     where t.sums is distinct from d.sums",
    "select format('%s, %s: hourly rollup has %s, the raw log %s (units, events, ms)', eco_id, hour,
                   coalesce(h.sums, '{}'), coalesce(r.sums, '{}'))
     from (select eco_id, hour, array[sum(units_count), sum(event_count), sum(latency_sum_ms)] as sums
           from eco_usage_hourly group by 1, 2) h
          full join (select eco_id, date_trunc('hour', event_time, 'UTC') as hour,
                            array[sum(units_count), count(*), sum(response_time_ms)] as sums
                     from eco_api_usage where not test_mode group by 1, 2) r using (eco_id, hour)
     where h.sums is distinct from r.sums",
    "select format('lease %s: %s units booked, %s granted, %s returned', lease_id, booked_units, granted_units,
                   returned_units)
     from eco_quota_leases where booked_units > granted_units - returned_units",
    "select format('%s, period of %s: %s units handed out, %s on leases', eco_id, period_start, q.held,
                   coalesce(l.held, 0))
     from (select eco_id, period_start, granted_units - returned_units as held from eco_quota_usage) q
          left join (select eco_id, period_start, sum(granted_units - returned_units) as held from eco_quota_leases
                     group by 1, 2) l using (eco_id, period_start)
     where q.held <> coalesce(l.held, 0)",
    "select format('%s, period of %s: %s units recorded, %s booked on leases and %s unadmitted', eco_id, period_start,
                   c.recorded, coalesce(l.booked, 0), c.unadmitted)
     from (select eco_id, period_start, sum(recorded_units) as recorded, sum(unadmitted_units) as unadmitted
           from eco_usage_counters group by 1, 2) c
          left join (select eco_id, period_start, sum(booked_units) as booked from eco_quota_leases group by 1, 2) l
              using (eco_id, period_start)
     where c.recorded <> coalesce(l.booked, 0) + c.unadmitted",
    "select format('%s, period of %s: %s units recorded, %s consumed', eco_id, period_start, c.recorded,
                   coalesce(q.held, 0) + c.unadmitted)
     from (select eco_id, period_start, sum(recorded_units) as recorded, sum(unadmitted_units) as unadmitted
           from eco_usage_counters group by 1, 2) c
          left join (select eco_id, period_start, granted_units - returned_units as held from eco_quota_usage) q
              using (eco_id, period_start)
     where c.recorded > coalesce(q.held, 0) + c.unadmitted",
    "select format('%s of %s is in quarantine: %s', event_id, eco_id, reason) from eco_usage_quarantine",
];

/// Compares everything with everything, once all is at rest.
///
/// `spools`: replicas have spools, and acknowledge what they take there as new.
pub(crate) async fn run(
    connection: &mut PgConnection,
    histories: &[History],
    spools: bool,
) -> Result<Checked> {
    let fates: BTreeMap<Uuid, &Fate> =
        histories.iter().flat_map(|history| &history.fates).map(|(id, fate)| (*id, fate)).collect();
    let mut failures: Vec<String> = histories.iter().flat_map(|history| history.violations.clone()).collect();
    shown(&mut failures, fates.values().filter_map(|fate| misjudged(fate, spools)));
    shown(&mut failures, raw_log(connection, &fates).await?);
    for statement in DIFFERENCES {
        let found: Vec<String> =
            sqlx::query_scalar(AssertSqlSafe(statement)).fetch_all(&mut *connection).await?;
        shown(&mut failures, found);
    }
    shown(&mut failures, rebuilt(connection).await?);
    Ok(Checked { acknowledged: fates.values().filter(|fate| fate.acknowledged).count(), failures })
}

/// Rebuilds all rollups from the raw log; nothing in them may change, latency sketches included.
async fn rebuilt(connection: &mut PgConnection) -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    for (table, time) in [("eco_usage_daily", "day"), ("eco_usage_hourly", "hour")] {
        let rows = format!(
            "select format('%s, %s, %s %s %sxx: %s units, %s events, %s ms, sketch %s', eco_id, {time}, method, route,
                           status_class, units_count, event_count, latency_sum_ms, nexus_sketch_compact(sketch))
             from {table} order by 1"
        );
        let read = || sqlx::query_scalar::<_, String>(AssertSqlSafe(rows.clone()));
        let flushed: BTreeSet<_> = read().fetch_all(&mut *connection).await?.into_iter().collect();
        sqlx::query("select count(aggregate_daily_usage(day)) from (select distinct event_day from eco_api_usage) d (day)")
            .execute(&mut *connection)
            .await?;
        let rebuilt: BTreeSet<_> = read().fetch_all(&mut *connection).await?.into_iter().collect();
        wrong.extend(flushed.symmetric_difference(&rebuilt).map(|row| {
            let whose =
                if rebuilt.contains(row) { "only after its rebuild" } else { "no more after its rebuild" };
            format!("{table} has {whose}: {row}")
        }));
    }
    Ok(wrong)
}

fn shown(failures: &mut Vec<String>, found: impl IntoIterator<Item = String>) {
    let mut found = found.into_iter();
    failures.extend(found.by_ref().take(SHOWN));
    match found.count() {
        0 => {}
        more => failures.push(format!("… and {more} more of this kind")),
    }
}

/// What is wrong with what a client was told of its call.
fn misjudged(fate: &Fate, spools: bool) -> Option<String> {
    let id = fate.call.id;
    match (fate.call.valid, fate) {
        (_, fate) if fate.is_open() => Some(format!("{id} got no answer")),
        (_, Fate { counted: 2.., .. }) if !spools => {
            Some(format!("{id} was acknowledged as new {} times", fate.counted))
        }
        (true, Fate { refused: Some(reason), .. }) => Some(format!("{id} was refused: {reason}")),
        (false, Fate { acknowledged: true, .. }) => Some(format!("{id} was to be refused, and acknowledged")),
        _ => None,
    }
}

/// The raw log against what is acknowledged: each event there once, as it was sent, and nothing else.
async fn raw_log(connection: &mut PgConnection, fates: &BTreeMap<Uuid, &Fate>) -> Result<Vec<String>> {
    let rows: Vec<(Uuid, String, NaiveDate, i64)> =
        sqlx::query_as("select event_id, eco_id, event_day, units_count from eco_api_usage")
            .fetch_all(connection)
            .await?;
    let mut wrong = Vec::new();
    let mut seen = BTreeSet::new();
    for (id, eco_id, day, units) in rows {
        if !seen.insert(id) {
            wrong.push(format!("{id} is more than once in the raw log"));
        }
        match fates.get(&id) {
            None => wrong.push(format!("{id} is in the raw log and was never sent")),
            Some(Fate { acknowledged: false, .. }) => {
                wrong.push(format!("{id} is in the raw log and was not acknowledged"));
            }
            Some(Fate { call, .. }) => {
                if (&call.eco_id, call.time.date_naive(), call.units()) != (&eco_id, day, units) {
                    wrong.push(format!("{id} is in the raw log as {units} units of {eco_id} on {day}"));
                }
            }
        }
    }
    let acknowledged = fates.iter().filter(|(_, fate)| fate.acknowledged);
    wrong.extend(
        acknowledged
            .filter(|(id, _)| !seen.contains(id))
            .map(|(id, _)| format!("{id} is acknowledged and not in the raw log")),
    );
    Ok(wrong)
}
