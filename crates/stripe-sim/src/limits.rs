//! Rate limits, by the clock of the stand-in: so many requests a second for each endpoint, and
//! for all together. Off until asked for.

use std::collections::HashMap;
use std::sync::Mutex;

use serde::{Deserialize, Serialize};

use crate::http::lock;

/// As `POST /_sim/limits` has them; what is absent is not limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Rates {
    /// For each endpoint. Stripe's default: 25.
    per_endpoint: Option<u32>,
    /// For all requests together. Stripe: 25 in a sandbox, 100 in live mode.
    together: Option<u32>,
}

#[derive(Default)]
pub(crate) struct Limits {
    now: Mutex<(Rates, HashMap<String, Bucket>)>,
}

/// A second's worth of requests, filled again as time passes.
struct Bucket {
    /// In thousandths of a request.
    level: i64,
    /// When it had that level, in milliseconds.
    at: i64,
}

impl Bucket {
    fn take(&mut self, rate: u32, now: i64) -> bool {
        let rate = i64::from(rate);
        let gained = (now - self.at).max(0).saturating_mul(rate);
        self.level = self.level.saturating_add(gained).min(rate * 1000);
        self.at = now;
        if self.level < 1000 {
            return false;
        }
        self.level -= 1000;
        true
    }
}

impl Limits {
    pub(crate) fn set(&self, rates: Rates) {
        *lock(&self.now) = (rates, HashMap::new());
    }

    pub(crate) fn rates(&self) -> Rates {
        lock(&self.now).0
    }

    /// # Errors
    /// What limit a request to `endpoint` at `now`, in milliseconds, is over.
    pub(crate) fn check(&self, endpoint: &str, now: i64) -> Result<(), &'static str> {
        let mut guard = lock(&self.now);
        let (rates, buckets) = &mut *guard;
        let limits = [("", rates.together, "global-rate"), (endpoint, rates.per_endpoint, "endpoint-rate")];
        for (name, rate, reason) in limits {
            let Some(rate) = rate else { continue };
            let full = Bucket { level: i64::from(rate) * 1000, at: now };
            if !buckets.entry(name.to_owned()).or_insert(full).take(rate, now) {
                return Err(reason);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Limits, Rates};

    #[test]
    fn each_endpoint_has_its_own_seconds_worth() {
        let limits = Limits::default();
        limits.set(Rates { per_endpoint: Some(25), together: None });
        let passed =
            |endpoint: &str, now: i64| (0..100).filter(|_| limits.check(endpoint, now).is_ok()).count();
        assert_eq!(passed("a", 0), 25);
        assert_eq!(passed("b", 0), 25);
        assert_eq!(passed("a", 200), 5);
        assert_eq!(passed("a", 100_000), 25);
        assert_eq!(limits.check("a", 100_000), Err("endpoint-rate"));
    }
}
