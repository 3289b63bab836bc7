//! The events of the ingest benchmark: accounts by Zipf's law or uniform, routes uniform, UUIDv7 ids that
//! grow. The same seed gives the same accounts, routes, statuses and latencies in the same order.

use std::str::FromStr;

use chrono::{DateTime, Utc};
use rand::{Rng, SeedableRng, rngs::StdRng};
use uuid::Uuid;

const SEED: u64 = 2_026;

/// How calls spread over the accounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spread {
    /// The account of rank r has 1/r of the calls of the first.
    Zipf,
    /// All have the same.
    Uniform,
}

/// Accounts and how calls spread over them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Accounts that are called, from the first.
    pub(crate) accounts: u32,
    /// How calls spread over them.
    pub(crate) spread: Spread,
}

impl FromStr for Shape {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a shape such as 10000:zipf or 100000:uniform");
        let (accounts, spread) = text.split_once(':').ok_or_else(wrong)?;
        let spread = match spread {
            "zipf" => Spread::Zipf,
            "uniform" => Spread::Uniform,
            _ => return Err(wrong()),
        };
        let accounts = accounts.parse().ok().filter(|n| (1..=1_000_000).contains(n)).ok_or_else(wrong)?;
        Ok(Self { accounts, spread })
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let spread = match self.spread {
            Spread::Zipf => "zipf",
            Spread::Uniform => "uniform",
        };
        write!(f, "{}:{spread}", self.accounts)
    }
}

/// Id of the account of a number.
pub(crate) fn account(number: u32) -> String {
    format!("eco_bench_{number:06}")
}

/// One call.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    pub(crate) event_id: Uuid,
    pub(crate) event_time: DateTime<Utc>,
    pub(crate) eco_id: String,
    pub(crate) endpoint: String,
    pub(crate) status_code: i16,
    pub(crate) response_time_ms: i32,
}

/// Makes events without end.
pub(crate) struct Workload {
    rng: StdRng,
    /// Share of the calls that go to the accounts up to and including this one.
    cumulated: Vec<f64>,
    routes: u32,
}

impl Workload {
    pub(crate) fn new(shape: Shape, routes: u32) -> Self {
        Self::seeded(shape, routes, SEED)
    }

    pub(crate) fn seeded(shape: Shape, routes: u32, seed: u64) -> Self {
        let weight = |rank: u32| match shape.spread {
            Spread::Zipf => 1.0 / f64::from(rank),
            Spread::Uniform => 1.0,
        };
        let total: f64 = (1..=shape.accounts).map(weight).sum();
        let cumulated = (1..=shape.accounts).scan(0.0, |sum, rank| {
            *sum += weight(rank) / total;
            Some(*sum)
        });
        Self { rng: StdRng::seed_from_u64(seed), cumulated: cumulated.collect(), routes }
    }

    /// The next event, of now.
    pub(crate) fn event(&mut self) -> Event {
        let point: f64 = self.rng.random();
        let number = self.cumulated.partition_point(|sum| *sum < point).min(self.cumulated.len() - 1);
        Event {
            event_id: Uuid::now_v7(),
            event_time: Utc::now(),
            eco_id: account(number as u32),
            endpoint: format!("/v1/resource-{:02}", self.rng.random_range(0..self.routes)),
            status_code: if self.rng.random_bool(0.05) { 500 } else { 200 },
            response_time_ms: self.rng.random_range(1..400),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn calls(shape: &str, events: u32) -> HashMap<String, f64> {
        let mut workload = Workload::new(shape.parse().expect("a shape"), 20);
        let mut calls = HashMap::new();
        (0..events).for_each(|_| *calls.entry(workload.event().eco_id).or_default() += 1.0);
        calls
    }

    #[test]
    fn calls_spread_by_zipf_or_alike() {
        let zipf = calls("100:zipf", 100_000);
        let first = zipf[&account(0)];
        for rank in [2, 4, 10] {
            let ratio = first / zipf[&account(rank - 1)] / f64::from(rank);
            assert!((ratio - 1.0).abs() < 0.1, "the account of rank {rank} has {ratio} of its share");
        }
        let uniform = calls("100:uniform", 100_000);
        assert_eq!(uniform.len(), 100);
        assert!(uniform.values().all(|n| (n / 1_000.0 - 1.0).abs() < 0.2), "{uniform:?}");
    }

    #[test]
    fn the_same_calls_come_again_under_ids_that_grow() {
        let mut runs = [0, 0].map(|_| Workload::new("10:zipf".parse().expect("a shape"), 20));
        let mut last = Uuid::nil();
        for _ in 0..1_000 {
            let [one, other] = runs.each_mut().map(Workload::event);
            assert!(last < one.event_id && one.event_id < other.event_id);
            last = other.event_id;
            let call = |e: Event| (e.eco_id, e.endpoint, e.status_code, e.response_time_ms);
            assert_eq!(call(one), call(other));
        }
    }

    #[test]
    fn a_shape_reads_as_it_is_written() {
        for shape in ["100:uniform", "10000:zipf"] {
            assert_eq!(shape.parse::<Shape>().expect("a shape").to_string(), shape);
        }
        for wrong in ["", "100", "0:zipf", "100:other", "1000001:zipf", ":zipf"] {
            assert!(wrong.parse::<Shape>().is_err(), "{wrong}");
        }
    }
}
