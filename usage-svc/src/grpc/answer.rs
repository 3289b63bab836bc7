//! From the domain's types to the contract's answers.

use std::{collections::HashMap, time::Duration};

use chrono::{DateTime, SecondsFormat, Utc};
use nexus_core::{id::EcoId, period::Period, quota};
use nexus_kit::{
    convert::{plan_to_proto, timestamp},
    status,
    validate::Violations,
};
use nexus_proto::usage::v1::{
    BatchRecordUsageResponse, CheckQuotaResponse, EventOutcome, EventResult, GetCurrentUsageResponse,
    LeaseQuotaResponse, RecordUsageResponse,
};
use prost_types::Timestamp;
use tonic::Status;

use crate::{
    app::{
        lease_quota::Answer,
        quota::{Decision, Verdict},
    },
    domain::{
        event::Outcome,
        judge::Refusal,
        quota::{Standing, Terms},
    },
    error::Error,
};

const UPGRADE_URL: &str = "/dashboard/billing";

/// The answer to one event: an outcome that is no success is an error of the call.
pub(super) fn recorded(
    outcomes: &[Outcome],
    server_time: Option<Timestamp>,
) -> Result<RecordUsageResponse, Error> {
    let success = |outcome: EventOutcome, duplicate_count| {
        Ok(RecordUsageResponse { outcome: outcome.into(), duplicate_count, server_time })
    };
    match outcomes {
        [Outcome::Accepted] => success(EventOutcome::Accepted, 0),
        [Outcome::Duplicate] => success(EventOutcome::Duplicate, 1),
        [Outcome::Conflict] => Err(Error::EventConflict),
        [Outcome::Refused(refusal)] => Err(Error::from(*refusal)),
        _ => unreachable!("the writer answers each event once"),
    }
}

/// The answer to a batch: counts, and a result for every event that was not simply accepted.
pub(super) fn batch_recorded(
    ids: Vec<String>,
    places: Vec<Result<usize, Violations>>,
    outcomes: Vec<Outcome>,
    server_time: Option<Timestamp>,
) -> BatchRecordUsageResponse {
    let mut answer = BatchRecordUsageResponse { server_time, ..BatchRecordUsageResponse::default() };
    for (index, (event_id, place)) in ids.into_iter().zip(places).enumerate() {
        let (outcome, field, message) = match place {
            Err(violations) => {
                let field = violations.0.first().map(|v| v.field.clone()).unwrap_or_default();
                (EventOutcome::Invalid, field, violations.to_string())
            }
            Ok(place) => {
                let (outcome, field, message) = described(outcomes[place]);
                (outcome, field.to_owned(), message.to_owned())
            }
        };
        match outcome {
            EventOutcome::Accepted => {
                answer.accepted_count += 1;
                continue;
            }
            EventOutcome::Duplicate => answer.duplicate_count += 1,
            _ => answer.rejected_count += 1,
        }
        let index = i32::try_from(index).expect("a batch has at most 10,000 events");
        answer.results.push(EventResult { index, event_id, outcome: outcome.into(), field, message });
    }
    answer
}

/// An outcome, the field at fault and the reason in words.
fn described(outcome: Outcome) -> (EventOutcome, &'static str, &'static str) {
    match outcome {
        Outcome::Accepted => (EventOutcome::Accepted, "", ""),
        Outcome::Duplicate => (EventOutcome::Duplicate, "", "was recorded before"),
        Outcome::Conflict => {
            (EventOutcome::Conflict, "", "another event was recorded under this event_id, account and day")
        }
        Outcome::Refused(refusal) => match refusal {
            Refusal::UnknownAccount => (EventOutcome::UnknownAccount, "", "there is no such account"),
            Refusal::ClosedAccount => (EventOutcome::ClosedAccount, "", "the account is closed"),
            Refusal::TooOld => (EventOutcome::TooOld, "", "is older than 35 days"),
            Refusal::InTheFuture => {
                (EventOutcome::InTheFuture, "", "is more than 5 minutes ahead of the server's clock")
            }
            Refusal::ForeignKey => {
                (EventOutcome::Invalid, "api_key_id", "api_key_id: must be a key of the event's account")
            }
        },
    }
}

/// The answer to a check; a refusal is the error of a quota that is used up.
pub(super) fn checked(
    eco_id: &EcoId,
    decision: &Decision,
    now: Option<DateTime<Utc>>,
) -> Result<CheckQuotaResponse, Status> {
    let admission = match decision.verdict {
        Verdict::Admitted(lease) => lease.to_string(),
        Verdict::Open => String::new(),
        Verdict::Refused(retry) => return Err(exceeded(eco_id, decision, retry, now)),
    };
    let position = position(&decision.terms, decision.period, decision.consumed, now);
    Ok(CheckQuotaResponse { admission, ..position })
}

/// The answer to a test-mode key: no admission is needed.
pub(super) fn unlimited(standing: &Standing) -> CheckQuotaResponse {
    position(&standing.terms, standing.period, standing.consumption.consumed(), Some(standing.now))
}

fn position(terms: &Terms, period: Period, consumed: i64, now: Option<DateTime<Utc>>) -> CheckQuotaResponse {
    CheckQuotaResponse {
        admission: String::new(),
        limit_count: quota::shown_limit(terms.shown_limit()),
        remaining_count: quota::remaining(terms.shown_limit(), consumed),
        consumed_count: consumed,
        period_start_time: Some(timestamp(period.start)),
        period_end_time: Some(timestamp(period.end)),
        plan: plan_to_proto(terms.plan).into(),
        server_time: now.map(timestamp),
    }
}

/// The answer to a client that leases units.
pub(super) fn leased(answer: Answer, server_time: Option<Timestamp>) -> LeaseQuotaResponse {
    let Answer { granted, retry, position } = answer;
    let (lease_id, granted_count) =
        granted.map_or_else(Default::default, |(id, units)| (id.to_string(), units));
    LeaseQuotaResponse {
        lease_id,
        granted_count,
        retry_delay_ms: milliseconds(retry),
        recall: false,
        valid_ms: milliseconds(position.valid),
        period_left_ms: milliseconds(position.left),
        limit_count: quota::shown_limit(position.terms.shown_limit()),
        consumed_count: position.consumed,
        period_start_time: Some(timestamp(position.period.start)),
        period_end_time: Some(timestamp(position.period.end)),
        plan: plan_to_proto(position.terms.plan).into(),
        server_time,
    }
}

fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn exceeded(eco_id: &EcoId, decision: &Decision, retry: Duration, now: Option<DateTime<Utc>>) -> Status {
    let limit = quota::shown_limit(decision.terms.shown_limit());
    let rfc3339 = |at: DateTime<Utc>| at.to_rfc3339_opts(SecondsFormat::AutoSi, true);
    let end = rfc3339(decision.period.end);
    let (reason, whose, help) = if decision.terms.is_capped() {
        ("spend_cap_reached", " that the spend cap allows", "Raise or remove the spend cap")
    } else {
        ("plan_limit_reached", "", "Upgrade the plan")
    };
    let mut metadata = HashMap::from([
        ("limit".to_owned(), limit.to_string()),
        ("current_usage".to_owned(), decision.consumed.to_string()),
        ("period_start".to_owned(), rfc3339(decision.period.start)),
        ("period_end".to_owned(), end.clone()),
        ("plan".to_owned(), decision.terms.plan.to_string()),
        ("reason".to_owned(), reason.to_owned()),
    ]);
    metadata.extend(now.map(|now| ("server_time".to_owned(), rfc3339(now))));
    status::quota_exceeded(status::QuotaExceeded {
        eco_id: eco_id.as_str(),
        message: format!(
            "{} of {limit} units{whose} are used and {} more do not fit; the period ends at {end}",
            decision.consumed, decision.units
        ),
        metadata,
        retry,
        help,
        upgrade_url: UPGRADE_URL,
    })
}

/// An account's usage now.
pub(super) fn current_usage(eco_id: &EcoId, standing: &Standing) -> GetCurrentUsageResponse {
    let included = standing.terms.included;
    GetCurrentUsageResponse {
        eco_id: eco_id.as_str().to_owned(),
        api_calls_count: standing.recorded,
        limit_count: quota::shown_limit(included),
        remaining_count: quota::remaining(included, standing.recorded),
        overage_count: standing.overage(),
        usage_percentage: quota::percentage(included, standing.recorded),
        period_start_time: Some(timestamp(standing.period.start)),
        period_end_time: Some(timestamp(standing.period.end)),
        plan: plan_to_proto(standing.terms.plan).into(),
        consumed_count: standing.consumption.consumed(),
        forfeited_count: standing.forfeited,
        server_time: Some(timestamp(standing.now)),
        hard_limit_count: quota::shown_limit(standing.terms.hard_limit()),
    }
}
