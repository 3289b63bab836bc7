//! What the new rows of a flush add up to. Maps are ordered by key, so that all writers take row locks in
//! one order.

use std::{borrow::Cow, collections::BTreeMap};

use chrono::{DateTime, NaiveDate, Utc};
use nexus_core::{route, sketch::Sketch};
use uuid::Uuid;

use super::admission::Row;

/// Segment of a period; a plan change begins one.
pub const SEGMENT: i32 = 0;

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

/// Key of a rollup: account, UTC day, route template, method, status class.
pub type RollupKey<'a> = (&'a str, NaiveDate, Cow<'a, str>, &'a str, i16);

/// What is added to a rollup.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RollupDelta {
    /// Units.
    pub units: i64,
    /// Events.
    pub events: i64,
    /// Sum of their latencies.
    pub latency_ms: i64,
    /// Their latencies.
    pub sketch: Sketch,
}

/// All that a flush adds.
#[derive(Debug, Default)]
pub struct Deltas<'a> {
    /// To the counters.
    pub counters: BTreeMap<CounterKey<'a>, CounterDelta>,
    /// To the daily rollup; test-mode events are not in it.
    pub rollups: BTreeMap<RollupKey<'a>, RollupDelta>,
    /// Units booked against leases.
    pub booked: BTreeMap<Uuid, i64>,
}

impl<'a> Deltas<'a> {
    /// Of these rows.
    pub fn of<'r>(rows: impl Iterator<Item = &'r Row<'a>>) -> Self
    where
        'a: 'r,
    {
        let mut all = Self::default();
        for row in rows {
            all.count(row);
            if !row.placement.test_mode {
                all.roll_up(row);
            }
            if let Some(lease) = row.event.payload.admission.filter(|_| row.admitted_units > 0) {
                *all.booked.entry(lease).or_default() += row.admitted_units;
            }
        }
        all
    }

    fn count(&mut self, row: &Row<'a>) {
        let payload = &row.event.payload;
        let key = (row.event.eco_id.as_str(), row.placement.period_start, SEGMENT);
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

    fn roll_up(&mut self, row: &Row<'a>) {
        let payload = &row.event.payload;
        let key = (
            row.event.eco_id.as_str(),
            row.event.day(),
            route::template(&payload.endpoint),
            payload.method.as_str(),
            payload.status_code / 100,
        );
        let delta = self.rollups.entry(key).or_default();
        delta.units += payload.units_count;
        delta.events += 1;
        delta.latency_ms += i64::from(payload.response_time_ms);
        delta.sketch.add(payload.response_time_ms);
    }
}
