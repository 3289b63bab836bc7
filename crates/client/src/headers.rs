//! An account's quota in headers: `X-RateLimit-*`, and `RateLimit-Policy` and `RateLimit` of the IETF draft
//! "RateLimit header fields for HTTP". Unlimited: -1 in the first, the policy alone in the others.

use std::time::Duration;

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use http::{HeaderMap, HeaderName, HeaderValue, header::RETRY_AFTER};
use nexus_proto::{common::v1::Plan, usage::v1::CheckQuotaResponse};
use prost_types::Timestamp;
use rand::Rng;

/// Clients that were refused together do not come back together.
const JITTER_SECONDS: u64 = 60;

const LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");
const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");

/// An account's quota, as an answer tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// Name of the policy, e.g. `free-monthly`.
    pub policy: &'static str,
    /// Units included in the period, or those that the account's spend cap allows; -1: unlimited.
    pub limit: i64,
    /// Units left; -1: unlimited.
    pub remaining: i64,
    /// Start of the period.
    pub period_start: DateTime<Utc>,
    /// End of the period, exclusive: the reset.
    pub period_end: DateTime<Utc>,
}

impl Quota {
    /// What an answer of `CheckQuota` tells; `None`: it lacks the period.
    pub fn of(admitted: &CheckQuotaResponse) -> Option<Self> {
        Some(Self {
            policy: policy(word(admitted.plan())),
            limit: admitted.limit_count,
            remaining: admitted.remaining_count,
            period_start: time(admitted.period_start_time.as_ref())?,
            period_end: time(admitted.period_end_time.as_ref())?,
        })
    }

    /// Sets the headers of every metered answer.
    pub fn set(&self, headers: &mut HeaderMap, now: DateTime<Utc>) {
        let Self { policy, limit, remaining, period_start, period_end } = self;
        let window = (*period_end - *period_start).num_seconds();
        headers.insert(LIMIT, HeaderValue::from(*limit));
        headers.insert(REMAINING, HeaderValue::from(*remaining));
        headers.insert(RESET, text(rfc3339(*period_end)));
        if *limit < 0 {
            headers.insert(POLICY, text(format!("\"{policy}\";w={window}")));
        } else {
            headers.insert(POLICY, text(format!("\"{policy}\";q={limit};w={window}")));
            let reset = seconds_until(*period_end, now);
            headers.insert(RATE_LIMIT, text(format!("\"{policy}\";r={remaining};t={reset}")));
        }
    }

    /// Sets when a refused client may come back: at the reset, or after `sooner` where units may come back
    /// before; and up to a minute later.
    pub fn set_retry_after(
        &self,
        headers: &mut HeaderMap,
        sooner: Option<Duration>,
        now: DateTime<Utc>,
        rng: &mut impl Rng,
    ) {
        let reset = seconds_until(self.period_end, now);
        let delay = sooner.map_or(reset, |d| seconds_up(d).min(reset)).max(1);
        let jitter = rng.random_range(0..=JITTER_SECONDS.min(delay));
        headers.insert(RETRY_AFTER, HeaderValue::from(delay + jitter));
    }
}

/// A time as the contract writes it.
pub(crate) fn rfc3339(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::AutoSi, true)
}

/// Name of the policy of a plan, by the plan's word.
pub(crate) fn policy(plan: &str) -> &'static str {
    match plan {
        "free" => "free-monthly",
        "pro" => "pro-monthly",
        "enterprise" => "enterprise-monthly",
        _ => "monthly",
    }
}

pub(crate) fn word(plan: Plan) -> &'static str {
    match plan {
        Plan::Free => "free",
        Plan::Pro => "pro",
        Plan::Enterprise => "enterprise",
        Plan::Unspecified => "",
    }
}

pub(crate) fn time(at: Option<&Timestamp>) -> Option<DateTime<Utc>> {
    let at = at?;
    DateTime::from_timestamp(at.seconds, u32::try_from(at.nanos).ok()?)
}

fn seconds_until(at: DateTime<Utc>, now: DateTime<Utc>) -> u64 {
    seconds_up((at - now).max(TimeDelta::zero()).to_std().unwrap_or_default())
}

fn seconds_up(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
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

    fn quota(plan: Plan, limit: i64, remaining: i64) -> Quota {
        Quota { policy: policy(word(plan)), limit, remaining, period_start: at(0), period_end: at(2_592_000) }
    }

    fn shown(quota: Quota, now: DateTime<Utc>) -> Vec<(String, String)> {
        let mut headers = HeaderMap::new();
        quota.set(&mut headers, now);
        let text = |value: &HeaderValue| value.to_str().unwrap_or_default().to_owned();
        let mut shown: Vec<_> = headers.iter().map(|(n, v)| (n.to_string(), text(v))).collect();
        shown.sort();
        shown
    }

    #[test]
    fn a_limited_plan_tells_policy_and_rest() {
        let expected = [
            ("ratelimit", r#""free-monthly";r=12;t=101"#),
            ("ratelimit-policy", r#""free-monthly";q=1000;w=2592000"#),
            ("x-ratelimit-limit", "1000"),
            ("x-ratelimit-remaining", "12"),
            ("x-ratelimit-reset", "1970-01-31T00:00:00Z"),
        ];
        let shown = shown(quota(Plan::Free, 1_000, 12), at(2_591_900) - TimeDelta::milliseconds(1));
        assert_eq!(shown, expected.map(|(n, v)| (n.to_owned(), v.to_owned())));
    }

    #[test]
    fn an_unlimited_plan_tells_the_policy_alone() {
        let expected = [
            ("ratelimit-policy", r#""enterprise-monthly";w=2592000"#),
            ("x-ratelimit-limit", "-1"),
            ("x-ratelimit-remaining", "-1"),
            ("x-ratelimit-reset", "1970-01-31T00:00:00Z"),
        ];
        let shown = shown(quota(Plan::Enterprise, -1, -1), at(0));
        assert_eq!(shown, expected.map(|(n, v)| (n.to_owned(), v.to_owned())));
    }

    #[test]
    fn a_refused_client_waits_for_the_reset_or_for_units_that_come_back() {
        let delay = |sooner: Option<u64>, seed| {
            let (mut headers, mut rng) = (HeaderMap::new(), StdRng::seed_from_u64(seed));
            let now = at(2_592_000 - 1_000);
            let sooner = sooner.map(Duration::from_secs);
            quota(Plan::Free, 1, 0).set_retry_after(&mut headers, sooner, now, &mut rng);
            headers[RETRY_AFTER].to_str().ok().and_then(|v| v.parse::<u64>().ok())
        };
        assert!((0..100).all(|seed| delay(None, seed).is_some_and(|d| (1_000..=1_060).contains(&d))));
        assert!((0..100).any(|seed| delay(None, seed) != delay(None, 0)), "jitter spreads the clients");
        assert!((0..100).all(|seed| delay(Some(5), seed).is_some_and(|d| (5..=10).contains(&d))));
        assert!((0..100).all(|seed| delay(Some(5_000), seed).is_some_and(|d| d >= 1_000)));
    }
}
