//! The quota in headers: `X-RateLimit-*`, and `RateLimit-Policy` and `RateLimit` of the IETF draft
//! "RateLimit header fields for HTTP".
//!
//! The draft's policy needs a quota `q`; an unlimited plan has none, so its policy tells the window alone
//! and there is no `RateLimit`.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use http::{HeaderMap, HeaderName, HeaderValue, header::RETRY_AFTER};
use nexus_core::{period::Period, plan::Plan};
use rand::Rng;

use crate::format;

/// Policy of keys in test mode, which are never limited.
pub const TEST_POLICY: &str = "test-monthly";

/// Clients that were refused together do not come back together.
const JITTER_SECONDS: u64 = 60;

const LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");
const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");

/// An account's quota as an answer tells it.
#[derive(Debug, Clone, Copy)]
pub struct Quota {
    /// Name of the policy.
    pub policy: &'static str,
    /// Units included; -1: unlimited.
    pub limit: i64,
    /// Units left; -1: unlimited.
    pub remaining: i64,
    /// The current period.
    pub period: Period,
}

/// Name of a plan's policy.
pub fn policy_name(plan: Plan) -> &'static str {
    match plan {
        Plan::Free => "free-monthly",
        Plan::Pro => "pro-monthly",
        Plan::Enterprise => "enterprise-monthly",
    }
}

/// The headers of every metered answer.
pub fn headers(quota: &Quota, now: DateTime<Utc>) -> HeaderMap {
    let Quota { policy, limit, remaining, period } = quota;
    let window = (period.end - period.start).num_seconds();
    let mut headers = HeaderMap::new();
    headers.insert(LIMIT, HeaderValue::from(*limit));
    headers.insert(REMAINING, HeaderValue::from(*remaining));
    headers.insert(RESET, text(format::time(period.end)));
    if *limit < 0 {
        headers.insert(POLICY, text(format!("\"{policy}\";w={window}")));
    } else {
        headers.insert(POLICY, text(format!("\"{policy}\";q={limit};w={window}")));
        let reset = seconds_until(period.end, now);
        headers.insert(RATE_LIMIT, text(format!("\"{policy}\";r={remaining};t={reset}")));
    }
    headers
}

/// When a refused client may come back: at the reset, or after `sooner` where units may come back before;
/// and up to a minute later.
pub fn add_retry_after(
    headers: &mut HeaderMap,
    reset: DateTime<Utc>,
    sooner: Option<Duration>,
    now: DateTime<Utc>,
    rng: &mut impl Rng,
) {
    let until_reset = seconds_until(reset, now);
    let delay = sooner.map_or(until_reset, |d| format::seconds_up(d).min(until_reset)).max(1);
    let jitter = rng.random_range(0..=JITTER_SECONDS.min(delay));
    headers.insert(RETRY_AFTER, HeaderValue::from(delay + jitter));
}

fn seconds_until(at: DateTime<Utc>, now: DateTime<Utc>) -> u64 {
    format::seconds_up((at - now).max(TimeDelta::zero()).to_std().unwrap_or_default())
}

fn text(value: String) -> HeaderValue {
    HeaderValue::try_from(value).expect("digits, dates and policy names are plain ASCII")
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + TimeDelta::seconds(seconds)
    }

    fn quota(limit: i64, remaining: i64) -> Quota {
        let period = Period { start: at(0), end: at(2_592_000) };
        Quota { policy: policy_name(Plan::Free), limit, remaining, period }
    }

    fn shown(quota: &Quota, now: DateTime<Utc>) -> Vec<(String, String)> {
        let headers = headers(quota, now);
        let mut shown: Vec<_> = headers
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_str().unwrap_or_default().to_owned()))
            .collect();
        shown.sort();
        shown
    }

    #[test]
    fn a_limited_plan_tells_policy_and_rest() {
        let headers = shown(&quota(1_000, 12), at(2_591_900) - TimeDelta::milliseconds(1));
        let expected = [
            ("ratelimit", r#""free-monthly";r=12;t=101"#),
            ("ratelimit-policy", r#""free-monthly";q=1000;w=2592000"#),
            ("x-ratelimit-limit", "1000"),
            ("x-ratelimit-remaining", "12"),
            ("x-ratelimit-reset", "1970-01-31T00:00:00Z"),
        ];
        assert_eq!(headers, expected.map(|(n, v)| (n.to_owned(), v.to_owned())));
    }

    #[test]
    fn an_unlimited_plan_tells_the_policy_alone() {
        let headers = shown(&quota(-1, -1), at(0));
        let expected = [
            ("ratelimit-policy", r#""free-monthly";w=2592000"#),
            ("x-ratelimit-limit", "-1"),
            ("x-ratelimit-remaining", "-1"),
            ("x-ratelimit-reset", "1970-01-31T00:00:00Z"),
        ];
        assert_eq!(headers, expected.map(|(n, v)| (n.to_owned(), v.to_owned())));
    }

    #[test]
    fn a_refused_client_waits_for_the_reset_or_for_units_that_come_back() {
        let delay = |sooner: Option<u64>, seed| {
            let mut headers = HeaderMap::new();
            let mut rng = StdRng::seed_from_u64(seed);
            add_retry_after(&mut headers, at(1_000), sooner.map(Duration::from_secs), at(0), &mut rng);
            headers[RETRY_AFTER].to_str().ok().and_then(|v| v.parse::<u64>().ok())
        };
        let to_reset: Vec<_> = (0..100).map(|seed| delay(None, seed)).collect();
        assert!(to_reset.iter().all(|d| d.is_some_and(|d| (1_000..=1_060).contains(&d))), "{to_reset:?}");
        assert!(to_reset.iter().any(|d| *d != to_reset[0]), "jitter spreads the clients");
        assert!((0..100).all(|seed| delay(Some(5), seed).is_some_and(|d| (5..=10).contains(&d))));
        assert!((0..100).all(|seed| delay(Some(5_000), seed).is_some_and(|d| d >= 1_000)));
    }
}
