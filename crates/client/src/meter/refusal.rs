//! Answers of our own, to HTTP and to gRPC: the limit is reached, or the check failed. They are not recorded.

use std::time::Duration;

use chrono::{DateTime, Utc};
use http::{
    HeaderValue, Response, StatusCode,
    header::{CONTENT_TYPE, RETRY_AFTER},
};
use http_body::Body;
use rand::Rng;
use serde_json::{Value, json};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::body::MeteredBody;
use crate::{guard::Refused, headers::rfc3339};

/// When a call that could not be checked may come again.
const RETRY_SOON: Duration = Duration::from_secs(1);

/// The quota is used up.
pub(super) fn over_limit<B: Body>(
    refused: Refused,
    grpc: bool,
    now: DateTime<Utc>,
    rng: &mut impl Rng,
) -> Response<MeteredBody<B>> {
    let Refused { quota, retry, .. } = refused;
    let mut response = if grpc {
        refused.status.into_http()
    } else {
        let body = json!({
            "error": "API limit exceeded",
            "message": refused.status.message(),
            "reason": refused.reason.as_str(),
            "current_usage": refused.current_usage,
            "limit": quota.limit,
            "period_end": rfc3339(quota.period_end),
            "upgrade_url": refused.upgrade_url,
        });
        json_response(StatusCode::TOO_MANY_REQUESTS, &body)
    };
    quota.set(response.headers_mut(), now);
    quota.set_retry_after(response.headers_mut(), retry, now, rng);
    response
}

/// The units could not be checked.
pub(super) fn unavailable<B: Body>(grpc: bool) -> Response<MeteredBody<B>> {
    let mut response = if grpc {
        let mut details = ErrorDetails::with_retry_info(Some(RETRY_SOON));
        details.set_error_info("METERING_UNAVAILABLE", nexus_proto::ERROR_DOMAIN, []);
        Status::with_error_details(Code::Unavailable, "the call cannot be metered now", details).into_http()
    } else {
        json_response(StatusCode::SERVICE_UNAVAILABLE, &json!({ "error": "Metering unavailable" }))
    };
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(RETRY_SOON.as_secs()));
    response
}

fn json_response<B: Body>(status: StatusCode, body: &Value) -> Response<MeteredBody<B>> {
    let mut response = Response::new(MeteredBody::made(body.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
