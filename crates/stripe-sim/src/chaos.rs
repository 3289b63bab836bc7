//! Faults by seed: which requests are struck, and how, follows from the seed, the endpoint and
//! how many requests it has had, so the same sequence of requests meets the same faults.

use std::collections::HashMap;
use std::sync::Mutex;

use serde::{Deserialize, Serialize};

use crate::chance::Chance;
use crate::faults::{Failure, Fault, LOCK_TIMEOUT, Outcome};
use crate::http::lock;

/// As `POST /_sim/chaos` has it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Chaos {
    seed: u64,
    /// All methods, if absent.
    method: Option<String>,
    /// A path, or a prefix that ends in `*`; all, if absent.
    path: Option<String>,
    rates: Rates,
    /// How long at most a struck request waits before it is executed.
    max_delay_ms: u32,
}

/// The share of requests that each fault strikes, from 0 to 1; together at most 1 without `delay`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Rates {
    /// The request never arrives.
    drop_before: f64,
    /// The request is executed, its answer lost.
    drop_after: f64,
    /// 500 before anything was executed; not kept for the key.
    error_500: f64,
    /// 503, likewise.
    error_503: f64,
    /// 500, kept for the key, without effect.
    stored_500: f64,
    /// 500, kept for the key, although it was executed.
    stored_500_after: f64,
    /// 409: another request is using the object.
    conflict: f64,
    /// 429 for the same reason.
    lock_timeout: f64,
    /// 429: too many requests.
    rate_limit: f64,
    /// The request waits, whatever becomes of it then.
    delay: f64,
}

impl Rates {
    /// The outcomes, in an order that does not change.
    fn outcomes(&self) -> [(f64, Outcome); 9] {
        let error = |status, code| Outcome::Error(Failure::new(status, code));
        let stored = |effect| Outcome::StoredError { effect, status: 500 };
        [
            (self.drop_before, Outcome::Drop { effect: false }),
            (self.drop_after, Outcome::Drop { effect: true }),
            (self.error_500, error(500, None)),
            (self.error_503, error(503, None)),
            (self.stored_500, stored(false)),
            (self.stored_500_after, stored(true)),
            (self.conflict, error(409, None)),
            (self.lock_timeout, error(429, Some(LOCK_TIMEOUT))),
            (self.rate_limit, error(429, None)),
        ]
    }
}

impl Chaos {
    /// # Errors
    /// When a rate is no share.
    pub(crate) fn check(&self) -> Result<(), String> {
        let outcomes = self.rates.outcomes();
        let mut shares = outcomes.iter().map(|(share, _)| *share).chain([self.rates.delay]);
        if shares.any(|share| !(0.0..=1.0).contains(&share)) {
            return Err("rates: each is between 0 and 1".to_owned());
        }
        if outcomes.iter().map(|(share, _)| share).sum::<f64>() > 1.0 {
            return Err("rates: without delay, together at most 1".to_owned());
        }
        Ok(())
    }

    /// What strikes the request of that number to an endpoint.
    fn fault(&self, endpoint: &str, number: u64) -> Option<Fault> {
        let chance = Chance::new(self.seed, &[endpoint, &number.to_string()]);
        let draw = chance.share("outcome");
        let mut reached = 0.0;
        let struck = self.rates.outcomes().into_iter().find(|(share, _)| {
            reached += share;
            draw < reached
        });
        let delay = chance.strikes("delay", self.rates.delay);
        let delay_ms = if delay { chance.below("how long", self.max_delay_ms.saturating_add(1)) } else { 0 };
        if struck.is_none() && !delay {
            return None;
        }
        let outcome = struck.map(|(_, outcome)| outcome).unwrap_or_default();
        Some(Fault::of_chaos(outcome, delay_ms.into()))
    }
}

/// The chaos that reigns, if any.
#[derive(Default)]
pub(crate) struct Reign {
    now: Mutex<Option<(Chaos, HashMap<String, u64>)>>,
}

impl Reign {
    /// Begins anew: every endpoint has had no request yet.
    pub(crate) fn begin(&self, chaos: Chaos) {
        *lock(&self.now) = Some((chaos, HashMap::new()));
    }

    pub(crate) fn end(&self) {
        *lock(&self.now) = None;
    }

    pub(crate) fn current(&self) -> Option<Chaos> {
        lock(&self.now).as_ref().map(|(chaos, _)| chaos.clone())
    }

    /// What strikes the next request to `endpoint`, if it is of the method and path that are struck.
    pub(crate) fn take(&self, method: &str, path: &str, endpoint: &str) -> Option<Fault> {
        let mut now = lock(&self.now);
        let (chaos, numbers) = now.as_mut()?;
        if !crate::faults::strikes(chaos.method.as_deref(), chaos.path.as_deref(), method, path) {
            return None;
        }
        let number = numbers.entry(endpoint.to_owned()).or_default();
        *number += 1;
        chaos.fault(endpoint, *number)
    }
}
