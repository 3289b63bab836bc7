//! Answers, before the headers that all of them have.

use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use serde_json::Value;

use crate::faults::{Failure, error_of_status};
use crate::http::error::ApiError;

const RATE_LIMITED_REASON: HeaderName = HeaderName::from_static("stripe-rate-limited-reason");
const SHOULD_RETRY: HeaderName = HeaderName::from_static("stripe-should-retry");

pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) body: String,
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
}

pub(crate) fn success(value: &Value) -> Answer {
    Answer { status: StatusCode::OK, body: value.to_string(), headers: Vec::new() }
}

pub(crate) fn failure(error: &ApiError, request_id: &str, now: i64) -> Answer {
    let mut headers = Vec::new();
    if error.status == StatusCode::UNAUTHORIZED {
        let realm = HeaderValue::from_static("Basic realm=\"Stripe\"");
        headers.push((header::WWW_AUTHENTICATE, realm));
    }
    if error.code.as_deref() == Some("idempotency_key_in_use") {
        headers.push((SHOULD_RETRY, HeaderValue::from_static("true")));
    }
    Answer { status: error.status, body: error.body(request_id, now).to_string(), headers }
}

pub(crate) fn planned_failure(planned: &Failure, request_id: &str, now: i64) -> Answer {
    let mut answer = failure(&planned.error(), request_id, now);
    if let Some(seconds) = planned.retry_after {
        answer.headers.push((header::RETRY_AFTER, HeaderValue::from(seconds)));
    }
    if let Some(retry) = planned.should_retry {
        let value = HeaderValue::from_static(if retry { "true" } else { "false" });
        answer.headers.push((SHOULD_RETRY, value));
    }
    answer
}

/// 429, with the limit that the request is over.
pub(crate) fn rate_limited(reason: &'static str, request_id: &str, now: i64) -> Answer {
    let error = ApiError { executed: false, ..error_of_status(429) };
    let mut answer = failure(&error, request_id, now);
    answer.headers.push((RATE_LIMITED_REASON, HeaderValue::from_static(reason)));
    answer
}

pub(crate) fn header_value(text: &str) -> Option<HeaderValue> {
    HeaderValue::from_str(text).ok()
}
