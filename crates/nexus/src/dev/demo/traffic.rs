//! When the demo accounts call, and events that sum to the very totals decided.

use std::collections::HashMap;

use chrono::{DateTime, Datelike, NaiveDate, TimeDelta, Timelike, Utc, Weekday};
use nexus_core::{plan::Plan, sketch::Sketch};
use rand::{Rng, SeedableRng, rngs::StdRng};
use uuid::{Builder, Uuid};

use super::{
    accounts::{Account, DAYS},
    endpoints::{self, Endpoint},
};

/// Days ago on which the service had trouble, for everybody.
const TROUBLE_DAYS_AGO: i64 = 17;

/// A raw event of the current period.
pub(super) struct Event {
    pub(super) id: Uuid,
    pub(super) account: String,
    pub(super) time: DateTime<Utc>,
    pub(super) period_start: DateTime<Utc>,
    pub(super) units: i64,
    pub(super) endpoint: &'static Endpoint,
    /// As it was called; `None`: the route itself.
    pub(super) path: Option<String>,
    pub(super) status: i16,
    pub(super) latency_ms: i32,
    pub(super) api_key_id: String,
}

/// Key of a rollup row within an account.
pub(super) type RollupKey = (NaiveDate, &'static str, &'static str, i16);

/// A rollup row of the time before the current period.
#[derive(Default)]
pub(super) struct Rollup {
    pub(super) units: i64,
    pub(super) events: i64,
    pub(super) latency_sum_ms: i64,
    pub(super) sketch: Sketch,
}

/// All an account did.
pub(super) struct Traffic {
    /// In the current period, in order of time.
    pub(super) events: Vec<Event>,
    /// Before it.
    pub(super) rollups: HashMap<RollupKey, Rollup>,
}

/// Makes an account's traffic up to `now`.
pub(super) fn of(account: &Account, api_key_id: &str, now: DateTime<Utc>) -> Traffic {
    let mut rng = StdRng::seed_from_u64(account.seed);
    let begin = (now - TimeDelta::days(DAYS)).max(account.created);
    // The last minute stays free: nothing must lie in the future of the database's clock.
    let hours = Hours::new(account, begin, now - TimeDelta::minutes(1), now, &mut rng);
    let (before, current) = hours.split(account.period.start);

    let events = current_events(account, api_key_id, &current, now, &mut rng);
    let rollups = earlier_rollups(account, &before, &current, now, &mut rng);
    Traffic { events, rollups }
}

fn current_events(
    account: &Account,
    api_key_id: &str,
    hours: &Hours,
    now: DateTime<Utc>,
    rng: &mut StdRng,
) -> Vec<Event> {
    let calls = calls(account.plan, account.events, account.units, hours, rng);
    let event = |(time, endpoint, units): (DateTime<Utc>, &'static Endpoint, i64)| {
        let outcome = endpoint.call(trouble(time, now), rng);
        let mut random = [0; 10];
        rng.fill(&mut random);
        Event {
            id: Builder::from_unix_timestamp_millis(time.timestamp_millis().unsigned_abs(), &random)
                .into_uuid(),
            account: account.eco_id.clone(),
            time,
            period_start: account.period.start,
            units,
            endpoint,
            path: endpoint.path(rng),
            status: outcome.status,
            latency_ms: outcome.latency_ms,
            api_key_id: api_key_id.to_owned(),
        }
    };
    calls.into_iter().map(event).collect()
}

/// The time before goes on at the pace of the current period, less growth, and within the plan.
fn earlier_rollups(
    account: &Account,
    before: &Hours,
    current: &Hours,
    now: DateTime<Utc>,
    rng: &mut StdRng,
) -> HashMap<RollupKey, Rollup> {
    let mut rollups: HashMap<RollupKey, Rollup> = HashMap::new();
    if account.events == 0 || before.total() == 0 || current.total() == 0 {
        return rollups;
    }
    let share = |n: i64| (i128::from(n) * i128::from(before.total()) / i128::from(current.total())) as i64;
    let days = i64::try_from(before.hours.len()).expect("90 days have few hours") / 24;
    let units = share(account.units).min(account.earlier_units_a_day.saturating_mul(days));
    let events = share(account.events).min(units);
    for (time, endpoint, units) in calls(account.plan, events, units, before, rng) {
        let outcome = endpoint.call(trouble(time, now), rng);
        let key = (time.date_naive(), endpoint.route, endpoint.method, outcome.status / 100);
        let row = rollups.entry(key).or_default();
        row.units += units;
        row.events += 1;
        row.latency_sum_ms += i64::from(outcome.latency_ms);
        row.sketch.add(outcome.latency_ms);
    }
    rollups
}

/// So many calls within the hours, in order of time, of together exactly so many units: one each, the rest
/// spread over the bulk calls.
fn calls(
    plan: Plan,
    events: i64,
    units: i64,
    hours: &Hours,
    rng: &mut StdRng,
) -> Vec<(DateTime<Utc>, &'static Endpoint, i64)> {
    let mut times: Vec<_> = (0..events).map(|_| hours.pick(rng)).collect();
    times.sort_unstable();
    let mut calls: Vec<_> = times.into_iter().map(|time| (time, endpoints::pick(plan, rng), 1)).collect();
    let rest = units - events;
    let mut bulk: Vec<usize> = (0..calls.len()).filter(|i| calls[*i].1.bulk).collect();
    if bulk.is_empty() {
        bulk.extend(calls.len().checked_sub(1));
    }
    let weights: Vec<i64> = bulk.iter().map(|_| rng.random_range(1..=1_000)).collect();
    let whole: i64 = weights.iter().sum();
    let (mut weight, mut given) = (0, 0);
    for (index, more) in bulk.into_iter().zip(weights) {
        weight += more;
        let due = (i128::from(rest) * i128::from(weight) / i128::from(whole)) as i64;
        calls[index].2 += due - given;
        given = due;
    }
    calls
}

/// Failures on our side, per mille.
fn trouble(time: DateTime<Utc>, now: DateTime<Utc>) -> u32 {
    let days_ago = (now.date_naive() - time.date_naive()).num_days();
    match (days_ago, time.hour()) {
        (TROUBLE_DAYS_AGO, 13..=15) => 140,
        _ => 4,
    }
}

/// Stretches of at most an hour with the weight of each: how likely a call is then.
struct Hours {
    hours: Vec<(DateTime<Utc>, DateTime<Utc>)>,
    /// Sum of the weights up to and with each.
    cumulative: Vec<i64>,
}

impl Hours {
    fn new(
        account: &Account,
        begin: DateTime<Utc>,
        end: DateTime<Utc>,
        now: DateTime<Utc>,
        rng: &mut StdRng,
    ) -> Self {
        let mut hours = Vec::new();
        let mut cumulative = Vec::new();
        let (mut at, mut sum) = (begin, 0);
        let mut day_factor = (begin.date_naive(), 100);
        while at < end {
            let mut next = (at + TimeDelta::hours(1)).min(end);
            // No stretch reaches over the period's start, nor over midnight.
            if at < account.period.start && account.period.start < next {
                next = account.period.start;
            }
            let midnight = at.date_naive().and_time(chrono::NaiveTime::MIN).and_utc() + TimeDelta::days(1);
            next = next.min(midnight);
            if day_factor.0 != at.date_naive() {
                day_factor = (at.date_naive(), rng.random_range(75..=125));
            }
            let seconds = (next - at).num_seconds();
            sum += weight(account, at, now) * day_factor.1 * seconds / 3_600;
            hours.push((at, next));
            cumulative.push(sum);
            at = next;
        }
        Self { hours, cumulative }
    }

    /// Those before an instant, and those from it on.
    fn split(mut self, at: DateTime<Utc>) -> (Self, Self) {
        let first = self.hours.partition_point(|(start, _)| *start < at);
        let hours = self.hours.split_off(first);
        let cumulative = self.cumulative.split_off(first);
        let before = self.total();
        (self, Self { hours, cumulative: cumulative.into_iter().map(|sum| sum - before).collect() })
    }

    fn total(&self) -> i64 {
        self.cumulative.last().copied().unwrap_or_default()
    }

    fn pick(&self, rng: &mut StdRng) -> DateTime<Utc> {
        let chosen = rng.random_range(0..self.total());
        let (start, end) = self.hours[self.cumulative.partition_point(|sum| *sum <= chosen)];
        start + TimeDelta::milliseconds(rng.random_range(0..(end - start).num_milliseconds()))
    }
}

/// Weight of an hour: by the account's own clock, its weekend, and growth.
fn weight(account: &Account, at: DateTime<Utc>, now: DateTime<Utc>) -> i64 {
    let local = at + TimeDelta::hours(account.utc_offset_hours);
    let of_hour = match local.hour() {
        0..=5 => 8,
        6..=8 => 40,
        9..=11 => 100,
        12..=13 => 85,
        14..=17 => 105,
        18..=21 => 50,
        _ => 20,
    };
    let of_day = match (local.weekday(), account.plan) {
        // People who try something out do so at the weekend.
        (Weekday::Sat | Weekday::Sun, Plan::Free) => 115,
        (Weekday::Sat | Weekday::Sun, _) => 35,
        _ => 100,
    };
    // Two thirds more within the 90 days.
    let growth = 100 + 67 * (DAYS - (now - at).num_days()) / DAYS;
    of_hour * of_day * growth / 100
}

#[cfg(test)]
mod tests {
    use super::{super::accounts, *};

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp(1_790_000_000, 0).expect("a time")
    }

    #[test]
    fn events_sum_to_the_totals_within_the_current_period() {
        for account in accounts::all(now()) {
            let traffic = of(&account, "key", now());
            let units: i64 = traffic.events.iter().map(|e| e.units).sum();
            assert_eq!(units, account.units, "{account:?}");
            assert_eq!(traffic.events.len() as i64, account.events, "{account:?}");
            for event in &traffic.events {
                assert!(account.period.contains(event.time) && event.time < now());
                assert!((1..=1_000_000).contains(&event.units));
            }
            let start_day = account.period.start.date_naive();
            assert!(traffic.rollups.keys().all(|(day, ..)| *day <= start_day), "{account:?}");
        }
    }

    #[test]
    fn no_earlier_period_was_over_a_limit() {
        for account in accounts::all(now()) {
            let limit = match account.plan {
                Plan::Free => 1_000,
                Plan::Pro => 100_000,
                Plan::Enterprise => continue,
            };
            let mut by_day: Vec<_> =
                of(&account, "key", now()).rollups.into_iter().map(|((day, ..), r)| (day, r.units)).collect();
            by_day.sort_unstable();
            // A period has 31 days at most; with both ends cut it touches 32.
            for (first, _) in &by_day {
                let within = |day: &NaiveDate| (0..32).contains(&(*day - *first).num_days());
                let units: i64 = by_day.iter().filter(|(day, _)| within(day)).map(|(_, units)| units).sum();
                assert!(units <= limit, "{}: {units} from {first} on", account.eco_id);
            }
        }
    }

    #[test]
    fn the_same_day_gives_the_same_traffic() {
        let account = &accounts::all(now())[0];
        let ids = || of(account, "key", now()).events.iter().map(|e| e.id).collect::<Vec<_>>();
        assert_eq!(ids(), ids());
    }
}
