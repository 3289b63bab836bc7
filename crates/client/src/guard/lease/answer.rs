//! Reads answers of LeaseQuota. A server that says what it must not is not believed: nothing is used on its word.

use std::time::Duration;

use nexus_lease::clock::BootTime;
use nexus_proto::usage::v1::LeaseQuotaResponse;

use super::held::View;
use crate::headers::{self, Quota};

/// No server may let units be used unheard for longer than this.
const LONGEST_VALID: Duration = Duration::from_secs(600);
/// No period is longer.
const LONGEST_PERIOD: Duration = Duration::from_secs(400 * 86_400);
/// No server may have a client wait for longer.
const LONGEST_RETRY: Duration = Duration::from_secs(60);

/// A lease that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Want {
    pub(super) lease_id: String,
    pub(super) units: i64,
}

/// A request that is not answered yet.
#[derive(Debug)]
pub(super) struct Asked {
    /// When it was sent.
    pub(super) at: BootTime,
    /// It settles the lease that is due first.
    pub(super) settles: bool,
    pub(super) want: Option<Want>,
    /// The stream ends with its answer.
    pub(super) releases: bool,
}

/// What an answer says.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) view: View,
    /// Units of the lease that was wanted.
    pub(super) granted: i64,
    /// Where none were granted: when to ask again.
    pub(super) retry: Duration,
}

/// Reads the answer to a request; the reason where it is none of this contract.
pub(super) fn read(asked: &Asked, answer: &LeaseQuotaResponse) -> Result<Answer, &'static str> {
    let time = |at| headers::time(at).ok_or("no period");
    let period_start = time(answer.period_start_time.as_ref())?;
    let period_end = time(answer.period_end_time.as_ref())?;
    if period_end <= period_start {
        return Err("a period that ends before it begins");
    }
    let figures = [
        answer.granted_count,
        answer.retry_delay_ms,
        answer.valid_ms,
        answer.period_left_ms,
        answer.consumed_count,
    ];
    if figures.iter().any(|figure| *figure < 0) || answer.limit_count < -1 {
        return Err("a negative figure");
    }
    let granted = match &asked.want {
        _ if answer.granted_count == 0 => 0,
        Some(want) if answer.lease_id == want.lease_id && answer.granted_count <= want.units => {
            answer.granted_count
        }
        _ => return Err("units that were not asked for"),
    };
    let quota = Quota {
        policy: headers::policy(headers::word(answer.plan())),
        limit: answer.limit_count,
        remaining: 0,
        period_start,
        period_end,
    };
    let after = |ms, longest| asked.at.after(milliseconds(ms).min(longest));
    let ends = after(answer.period_left_ms, LONGEST_PERIOD);
    let valid = after(answer.valid_ms, LONGEST_VALID);
    let view = View { quota, consumed: answer.consumed_count, ends, valid };
    Ok(Answer { view, granted, retry: milliseconds(answer.retry_delay_ms).min(LONGEST_RETRY) })
}

fn milliseconds(count: i64) -> Duration {
    Duration::from_millis(u64::try_from(count).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use prost_types::Timestamp;

    use super::*;

    const SENT: BootTime = BootTime::at_nanos(5_000_000_000);

    fn asked() -> Asked {
        let want = Want { lease_id: "mine".to_owned(), units: 10 };
        Asked { at: SENT, settles: false, want: Some(want), releases: false }
    }

    fn good() -> LeaseQuotaResponse {
        LeaseQuotaResponse {
            lease_id: "mine".to_owned(),
            granted_count: 10,
            valid_ms: 60_000,
            period_left_ms: 90_000,
            limit_count: 1_000,
            consumed_count: 12,
            period_start_time: Some(Timestamp { seconds: 0, nanos: 0 }),
            period_end_time: Some(Timestamp { seconds: 100, nanos: 0 }),
            ..LeaseQuotaResponse::default()
        }
    }

    #[test]
    fn times_count_from_when_the_request_was_sent() {
        let answer = read(&asked(), &good()).expect("a good answer");
        assert_eq!((answer.granted, answer.view.consumed, answer.view.quota.limit), (10, 12, 1_000));
        assert_eq!(answer.view.valid, SENT.after(Duration::from_secs(60)));
        assert_eq!(answer.view.ends, SENT.after(Duration::from_secs(90)));
    }

    #[test]
    fn what_a_server_must_not_say_is_not_believed() {
        type Change = fn(&mut LeaseQuotaResponse);
        let cases: [(&str, Change); 11] = [
            ("more than was wanted", |a| a.granted_count = 11),
            ("negative units", |a| a.granted_count = -1),
            ("another lease", |a| a.lease_id = "another".to_owned()),
            ("no lease", |a| a.lease_id.clear()),
            ("no start", |a| a.period_start_time = None),
            ("no end", |a| a.period_end_time = None),
            ("no time at all", |a| a.period_end_time = Some(Timestamp { seconds: i64::MAX, nanos: -1 })),
            ("a period turned round", |a| a.period_end_time = Some(Timestamp { seconds: -1, nanos: 0 })),
            ("a negative limit", |a| a.limit_count = -2),
            ("negative consumption", |a| a.consumed_count = i64::MIN),
            ("a negative time", |a| a.valid_ms = -1),
        ];
        for (what, change) in cases {
            let mut answer = good();
            change(&mut answer);
            assert!(read(&asked(), &answer).is_err(), "{what}");
        }
        let unasked = Asked { want: None, ..asked() };
        assert!(read(&unasked, &good()).is_err(), "units of nobody's wish");
        let mut endless = good();
        (endless.valid_ms, endless.period_left_ms) = (i64::MAX, i64::MAX);
        let endless = read(&asked(), &endless).expect("a good answer");
        assert_eq!(endless.view.valid, SENT.after(LONGEST_VALID));
        assert_eq!(endless.view.ends, SENT.after(LONGEST_PERIOD));
    }
}
