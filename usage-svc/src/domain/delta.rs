//! What the new rows of a flush add up to. All is in the order of its keys, so that all writers take row locks
//! in one order.

use std::collections::BTreeMap;

use chrono::{DateTime, NaiveDate, Utc};
use nexus_core::{method, sketch};
use uuid::Uuid;

use super::admission::Row;

const HOUR: i64 = 3600;

/// Key of a counter: account, start of the period, segment.
pub type CounterKey<'a> = (&'a str, DateTime<Utc>, i32);

/// What is added to a counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CounterDelta {
    /// Units recorded.
    pub recorded: i64,
    /// Of them, consumed by being recorded.
    pub unadmitted: i64,
    /// Units of test-mode keys, in neither of the above.
    pub test: i64,
    /// Newest event that is recorded; 1970 where all are of test-mode keys.
    pub last_event_time: DateTime<Utc>,
}

/// What is added to a rollup of an hour (`T` is its start) or of a UTC day.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rollup<'a, T> {
    /// Account.
    pub eco_id: &'a str,
    /// Route template.
    pub route: &'a str,
    /// Method, or that of all which are made up.
    pub method: &'a str,
    /// First digit of the status.
    pub status_class: i16,
    /// The hour or day.
    pub at: T,
    /// Units.
    pub units: i64,
    /// Events.
    pub events: i64,
    /// Sum of their latencies.
    pub latency_ms: i64,
    /// Their latencies, as a sketch is stored.
    pub sketch: Vec<i64>,
}

/// All that a flush adds.
#[derive(Debug, Default)]
pub struct Deltas<'a> {
    /// To the counters.
    pub counters: BTreeMap<CounterKey<'a>, CounterDelta>,
    /// To the hourly rollup; test-mode events are not in it.
    pub hourly: Vec<Rollup<'a, DateTime<Utc>>>,
    /// To the daily rollup: the same by day.
    pub daily: Vec<Rollup<'a, NaiveDate>>,
    /// Units booked against leases.
    pub booked: BTreeMap<Uuid, i64>,
}

impl<'a> Deltas<'a> {
    /// Of these rows.
    pub fn of(rows: impl Iterator<Item = &'a Row<'a>>) -> Self {
        let mut all = Self::default();
        let mut latencies = Vec::new();
        for row in rows {
            all.count(row);
            if !row.placement.test_mode {
                latencies.push(Latency::of(row));
            }
            if let Some(lease) = row.event.payload.admission.filter(|_| row.admitted_units > 0) {
                *all.booked.entry(lease).or_default() += row.admitted_units;
            }
        }
        latencies.sort_unstable_by(Latency::compare);
        all.hourly = latencies.chunk_by(Latency::same_hour).map(hourly).collect();
        all.daily = all.hourly.chunk_by(same_day).map(daily).collect();
        all
    }

    fn count(&mut self, row: &'a Row<'a>) {
        let payload = &row.event.payload;
        let key = (row.event.eco_id.as_str(), row.placement.period_start, row.placement.segment);
        let delta = self.counters.entry(key).or_insert(CounterDelta {
            recorded: 0,
            unadmitted: 0,
            test: 0,
            last_event_time: DateTime::UNIX_EPOCH,
        });
        if row.placement.test_mode {
            delta.test += payload.units_count;
        } else {
            delta.last_event_time = delta.last_event_time.max(payload.event_time);
            delta.recorded += payload.units_count;
            delta.unadmitted += payload.units_count - row.admitted_units;
        }
    }
}

/// A row on its way into the rollups.
struct Latency<'a> {
    row: &'a Row<'a>,
    method: &'a str,
    hour: i64,
    bucket: i64,
}

impl<'a> Latency<'a> {
    fn of(row: &'a Row<'a>) -> Self {
        let payload = &row.event.payload;
        Self {
            row,
            method: method::in_rollups(&payload.method),
            hour: payload.event_time.timestamp().div_euclid(HOUR),
            bucket: sketch::bucket(payload.response_time_ms),
        }
    }

    /// All but the hour.
    fn series(&self) -> (&'a str, &'a str, &'a str, i16) {
        let event = self.row.event;
        (event.eco_id.as_str(), &self.row.route, self.method, event.payload.status_code / 100)
    }

    fn compare(&self, other: &Self) -> std::cmp::Ordering {
        (self.series(), self.hour, self.bucket).cmp(&(other.series(), other.hour, other.bucket))
    }

    fn same_hour(&self, other: &Self) -> bool {
        self.hour == other.hour && self.series() == other.series()
    }
}

/// Adds up the latencies of one hour, which are sorted by bucket.
fn hourly<'a>(latencies: &[Latency<'a>]) -> Rollup<'a, DateTime<Utc>> {
    let (eco_id, route, method, status_class) = latencies[0].series();
    let payloads = || latencies.iter().map(|l| &l.row.event.payload);
    Rollup {
        eco_id,
        route,
        method,
        status_class,
        at: DateTime::from_timestamp(latencies[0].hour * HOUR, 0).expect("it is the hour of a time"),
        units: payloads().map(|p| p.units_count).sum(),
        events: latencies.len() as i64,
        latency_ms: payloads().map(|p| i64::from(p.response_time_ms)).sum(),
        sketch: latencies
            .chunk_by(|a, b| a.bucket == b.bucket)
            .map(|same| sketch::entry(same[0].bucket, same.len() as i64))
            .collect(),
    }
}

fn same_day(a: &Rollup<'_, DateTime<Utc>>, b: &Rollup<'_, DateTime<Utc>>) -> bool {
    let series = |r: &Rollup<'_, DateTime<Utc>>| (r.at.date_naive(), r.status_class);
    series(a) == series(b) && (a.eco_id, a.route, a.method) == (b.eco_id, b.route, b.method)
}

/// Adds up the hours of one day.
fn daily<'a>(hours: &[Rollup<'a, DateTime<Utc>>]) -> Rollup<'a, NaiveDate> {
    let Rollup { eco_id, route, method, status_class, at, .. } = hours[0];
    Rollup {
        eco_id,
        route,
        method,
        status_class,
        at: at.date_naive(),
        units: hours.iter().map(|h| h.units).sum(),
        events: hours.iter().map(|h| h.events).sum(),
        latency_ms: hours.iter().map(|h| h.latency_ms).sum(),
        sketch: hours.iter().flat_map(|h| h.sketch.iter().copied()).collect(),
    }
}
