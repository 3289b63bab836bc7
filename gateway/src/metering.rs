//! Around a tracked endpoint: whose key it is, a unit of the quota, the endpoint itself, and the event that
//! records the call. What cannot be admitted is refused and not recorded; what is admitted is answered and
//! recorded, as a rule before the answer goes out (see [`crate::recorder`]).

use std::{
    convert::Infallible,
    time::{Duration, Instant},
};

use axum::{
    extract::{FromRequestParts, MatchedPath},
    response::{IntoResponse, Response},
};
use chrono::Utc;
use http::{Method, request::Parts};
use nexus_client::headers::Quota;
use nexus_core::id::ApiKeyText;
use nexus_kit::convert::timestamp;
use nexus_proto::usage::v1::{UsageEvent, VerifyApiKeyResponse};
use uuid::Uuid;

use crate::{Gateway, convert::required_time, error::Error, layer::Arrival, recorder::Place};

/// Longest response time an event may carry.
const MAX_RESPONSE_TIME: Duration = Duration::from_secs(86_400);

/// Policy of keys in test mode, which are never limited.
const TEST_POLICY: &str = "test-monthly";

/// What an event tells of a call before it is answered.
pub struct Call {
    arrival: Instant,
    endpoint: String,
    method: Method,
}

impl<S: Sync> FromRequestParts<S> for Call {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let arrival = parts.extensions.get::<Arrival>().map_or_else(Instant::now, |arrival| arrival.0);
        let route = parts.extensions.get::<MatchedPath>().map(MatchedPath::as_str);
        let endpoint = route.unwrap_or(parts.uri.path()).to_owned();
        Ok(Self { arrival, endpoint, method: parts.method.clone() })
    }
}

/// A call that may be answered.
pub struct Admitted {
    /// Whose key it was made with.
    pub caller: VerifyApiKeyResponse,
    call: Call,
    quota: Quota,
    /// For the event; empty for a key in test mode, which has no quota.
    admission: String,
    place: Place,
}

impl Admitted {
    /// Verifies the key and takes a unit of its account's quota.
    pub async fn new(app: &Gateway, key: &ApiKeyText, call: Call) -> Result<Self, Error> {
        let (backend, place) = (&app.backend, app.recorder.reserve()?);
        let caller = backend.verify_api_key(key).await?;
        if caller.test_mode {
            let usage = backend.usage_of(&caller.eco_id).await?;
            let quota = Quota {
                policy: TEST_POLICY,
                limit: -1,
                remaining: -1,
                period_start: required_time("period_start", usage.period_start_time.as_ref())?,
                period_end: required_time("period_end", usage.period_end_time.as_ref())?,
            };
            return Ok(Self { caller, call, quota, admission: String::new(), place });
        }
        let admitted = backend.check_quota(&caller.eco_id).await?;
        let quota = Quota::of(&admitted)
            .ok_or_else(|| Error::Internal("the service admitted a call to no period".to_owned()))?;
        Ok(Self { caller, call, quota, admission: admitted.admission, place })
    }

    /// Records the call, then lets the answer go out with the headers of the quota.
    pub async fn answer(self, app: &Gateway, answer: impl IntoResponse) -> Response {
        let mut response = answer.into_response();
        let took = self.call.arrival.elapsed().min(MAX_RESPONSE_TIME);
        let now = Utc::now();
        let event = UsageEvent {
            eco_id: self.caller.eco_id,
            event_id: Uuid::now_v7().to_string(),
            event_time: Some(timestamp(now)),
            endpoint: self.call.endpoint,
            method: self.call.method.to_string(),
            status_code: i32::from(response.status().as_u16()),
            response_time_ms: i32::try_from(took.as_millis()).unwrap_or(i32::MAX),
            units_count: 1,
            api_key_id: self.caller.key_id,
            admission: self.admission,
        };
        app.recorder.record(self.place, event).await;
        self.quota.set(response.headers_mut(), now);
        response
    }
}
