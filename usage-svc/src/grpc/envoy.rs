//! Envoy's rate limit service: an account's quota, for proxies. Its crate carries no descriptors, so that
//! reflection does not list it.
//!
//! Any domain is taken. A descriptor names an account by an entry `account` (its id) or `api_key` (the whole
//! key, secret included: an id alone would let anybody use up another's quota). One with neither is not
//! limited; an unknown account and a bad key are over a limit of 0, and more than 1,000,000 units over that.
//! It admits and does not record: the admission goes upstream in the request header `x-nexus-admission`, for
//! whoever records the call; of several accounts in a header each, `<admission>;account=<eco_id>`. The client
//! is told in `ratelimit-policy`, `ratelimit` and, if refused, `retry-after`; of several accounts by that which
//! has the least left.

use std::{collections::BTreeMap, time::Duration};

use envoy_types::pb::{
    envoy::{
        config::core::v3::HeaderValue,
        extensions::common::ratelimit::v3::RateLimitDescriptor,
        service::ratelimit::v3::{
            RateLimitRequest, RateLimitResponse,
            rate_limit_response::{Code, DescriptorStatus, RateLimit as Limit, rate_limit::Unit},
            rate_limit_service_server::{RateLimitService, RateLimitServiceServer},
        },
    },
    google::protobuf,
};
use nexus_core::{
    id::{ApiKeyText, EcoId},
    quota,
};
use nexus_kit::{
    auth::{Caller, Scope},
    serve::MAX_REQUEST_BYTES,
    status,
    validate::Violations,
};
use rand::Rng;
use tonic::{Request, Response, Status, codec::CompressionEncoding};
use uuid::Uuid;

use crate::{
    app::{
        quota::{Decision, Quota, Verdict},
        rate_limit::{self, Answer, Descriptor, MAX_UNITS, Subject},
        verify_api_key::Keys,
    },
    clock::BootTime,
};

/// Descriptors of a request, at most.
const MAX_DESCRIPTORS: usize = 32;
/// Names the admission to whoever records the call.
const ADMISSION: &str = "x-nexus-admission";
/// Refused clients are told to come back up to so much later than they could.
const JITTER_SECONDS: u64 = 60;

/// The service.
pub struct RateLimit {
    /// Units to admit.
    pub quota: Quota,
    /// The API keys.
    pub keys: Keys,
}

/// The tonic server.
pub fn server(service: RateLimit) -> RateLimitServiceServer<RateLimit> {
    RateLimitServiceServer::new(service)
        .max_decoding_message_size(MAX_REQUEST_BYTES)
        .accept_compressed(CompressionEncoding::Zstd)
        .accept_compressed(CompressionEncoding::Gzip)
        .send_compressed(CompressionEncoding::Gzip)
}

#[tonic::async_trait]
impl RateLimitService for RateLimit {
    async fn should_rate_limit(
        &self,
        request: Request<RateLimitRequest>,
    ) -> Result<Response<RateLimitResponse>, Status> {
        Caller::of(&request)?.require_scope(Scope::UsageCheck)?;
        let descriptors = descriptors(request.into_inner()).map_err(|v| status::invalid(&v))?;
        let answers = rate_limit::run(&self.quota, &self.keys, descriptors).await?;
        Ok(Response::new(response(&answers, &mut rand::rng())))
    }
}

/// What a request asks for.
pub fn descriptors(request: RateLimitRequest) -> Result<Vec<Descriptor>, Violations> {
    let mut v = Violations::new();
    if request.descriptors.is_empty() || request.descriptors.len() > MAX_DESCRIPTORS {
        return Err(Violations::one("descriptors", format!("must be 1 to {MAX_DESCRIPTORS} descriptors")));
    }
    let units = units(request.hits_addend.into());
    let mut descriptors = Vec::with_capacity(request.descriptors.len());
    for (index, pb) in request.descriptors.into_iter().enumerate() {
        if pb.is_negative_hits {
            v.add(
                format!("descriptors[{index}].is_negative_hits"),
                "is not supported: units are given back by nobody else",
            );
        }
        let units = match pb.hits_addend {
            Some(own) => self::units(own.value),
            None => units,
        };
        descriptors.push(Descriptor { subject: subject(pb), units });
    }
    v.finish().map(|()| descriptors)
}

/// Units; 0 is the default, 1. Too many are no error: a proxy may let pass what it gets an error for.
fn units(hits: u64) -> i64 {
    i64::try_from(hits).unwrap_or(i64::MAX).max(1)
}

/// Whom a descriptor names. Where an entry comes twice the last one counts: Envoy appends its own.
fn subject(descriptor: RateLimitDescriptor) -> Subject {
    let (mut account, mut key) = (None, None);
    for entry in descriptor.entries {
        match entry.key.as_str() {
            "account" => account = Some(EcoId::parse(&entry.value)),
            "api_key" => key = Some(ApiKeyText::parse(&entry.value)),
            _ => {}
        }
    }
    match (account.transpose(), key.transpose()) {
        (Err(_), _) | (_, Err(_)) => Subject::Unknown,
        (Ok(eco_id), Ok(Some(text))) => Subject::Key { text, eco_id },
        (Ok(Some(eco_id)), Ok(None)) => Subject::Account(eco_id),
        (Ok(None), Ok(None)) => Subject::Nobody,
    }
}

fn response(answers: &[Answer], rng: &mut impl Rng) -> RateLimitResponse {
    let code = if answers.iter().all(Answer::passes) { Code::Ok } else { Code::OverLimit };
    let (mut admissions, mut retry, mut nearest) = (BTreeMap::new(), None, None);
    for answer in answers {
        let Answer::Decided(eco_id, decision) = answer else { continue };
        match decision.verdict {
            Verdict::Admitted(lease) if code == Code::Ok => {
                admissions.insert(eco_id, lease);
            }
            Verdict::Refused(after) => retry = retry.max(Some(after)),
            Verdict::Admitted(_) | Verdict::Open => {}
        }
        nearest = nearest.into_iter().chain([decision]).min_by_key(|d| left(d).unwrap_or(i64::MAX));
    }
    let mut to_client = nearest.map(quota_headers).unwrap_or_default();
    to_client.extend(retry.map(|after| header("retry-after", retry_after(after, rng).to_string())));
    RateLimitResponse {
        overall_code: code.into(),
        statuses: answers.iter().map(descriptor_status).collect(),
        request_headers_to_add: admission_headers(&admissions),
        response_headers_to_add: to_client,
        ..RateLimitResponse::default()
    }
}

/// An admission; of several accounts each says whose it is.
fn admission_headers(admissions: &BTreeMap<&EcoId, Uuid>) -> Vec<HeaderValue> {
    let only = admissions.len() == 1;
    let value = |(eco_id, lease): (&&EcoId, &Uuid)| {
        if only { lease.to_string() } else { format!("{lease};account={eco_id}") }
    };
    admissions.iter().map(|admission| header(ADMISSION, value(admission))).collect()
}

/// Seconds, spread over up to a minute so that those who wait do not come back all at once.
fn retry_after(after: Duration, rng: &mut impl Rng) -> u64 {
    let delay = seconds_up(after).max(1);
    delay + rng.random_range(0..=JITTER_SECONDS.min(delay))
}

/// An account's quota as REST answers tell it, by the IETF draft "RateLimit header fields for HTTP". The
/// `x-ratelimit` headers are Envoy's own, by the statuses.
fn quota_headers(decision: &Decision) -> Vec<HeaderValue> {
    let (plan, period) = (decision.terms.plan, decision.period);
    let window = (period.end - period.start).num_seconds();
    let (Some(limit), Some(left)) = (decision.terms.shown_limit(), left(decision)) else {
        return vec![header("ratelimit-policy", format!("\"{plan}-monthly\";w={window}"))];
    };
    let resets = seconds_up(decision.resets.since(BootTime::now()));
    vec![
        header("ratelimit-policy", format!("\"{plan}-monthly\";q={limit};w={window}")),
        header("ratelimit", format!("\"{plan}-monthly\";r={left};t={resets}")),
    ]
}

fn header(key: &str, value: String) -> HeaderValue {
    HeaderValue { key: key.to_owned(), value, ..HeaderValue::default() }
}

/// Units that are left; `None`: unlimited.
fn left(decision: &Decision) -> Option<i64> {
    decision.terms.shown_limit().map(|limit| quota::remaining(Some(limit), decision.consumed))
}

fn descriptor_status(answer: &Answer) -> DescriptorStatus {
    match answer {
        // No limit applies: there is none to tell.
        Answer::Unlimited => DescriptorStatus {
            code: Code::Ok.into(),
            limit_remaining: u32::MAX,
            ..DescriptorStatus::default()
        },
        Answer::Unknown => DescriptorStatus {
            code: Code::OverLimit.into(),
            current_limit: Some(limit("unknown", 0)),
            limit_remaining: 0,
            duration_until_reset: Some(duration(Duration::ZERO)),
            ..DescriptorStatus::default()
        },
        Answer::TooMany => DescriptorStatus {
            code: Code::OverLimit.into(),
            current_limit: Some(limit("call", clamp(Some(MAX_UNITS)))),
            limit_remaining: 0,
            duration_until_reset: Some(duration(Duration::ZERO)),
            ..DescriptorStatus::default()
        },
        Answer::Decided(_, decision) => decided(decision, answer.passes()),
    }
}

fn decided(decision: &Decision, passes: bool) -> DescriptorStatus {
    DescriptorStatus {
        code: if passes { Code::Ok } else { Code::OverLimit }.into(),
        current_limit: Some(limit(decision.terms.plan.as_str(), clamp(decision.terms.shown_limit()))),
        limit_remaining: clamp(left(decision)),
        duration_until_reset: Some(duration(decision.resets.since(BootTime::now()))),
        ..DescriptorStatus::default()
    }
}

/// A limit of a period, which is a month from the account's anchor.
fn limit(name: &str, requests: u32) -> Limit {
    Limit { name: name.to_owned(), requests_per_unit: requests, unit: Unit::Month.into() }
}

/// Units in Envoy's 32 bits; without a limit, the most there is.
fn clamp(units: Option<i64>) -> u32 {
    units.map_or(u32::MAX, |units| u32::try_from(units.max(0)).unwrap_or(u32::MAX))
}

fn duration(of: Duration) -> protobuf::Duration {
    let seconds = i64::try_from(of.as_secs()).unwrap_or(i64::MAX);
    protobuf::Duration { seconds, nanos: i32::try_from(of.subsec_nanos()).unwrap_or(0) }
}

fn seconds_up(of: Duration) -> u64 {
    of.as_secs() + u64::from(of.subsec_nanos() > 0)
}
