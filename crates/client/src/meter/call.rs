//! The event of a call.

use std::{
    thread,
    time::{Duration, Instant, SystemTime},
};

use axum::extract::MatchedPath;
use http::{HeaderMap, header::CONTENT_TYPE, request::Parts};
use nexus_proto::usage::v1::UsageEvent;
use prost_types::Timestamp;
use tonic::{Code, Status};

use super::{Caller, MeterLayer};
use crate::{clock::ServerClock, tracker::Tracker};

/// Longest response time an event may carry.
const MAX_RESPONSE_TIME: Duration = Duration::from_secs(86_400);
/// The route of what no route took: clients make such paths up, so they are one.
const UNMATCHED: &str = "{unmatched}";
/// Longest method an event may carry.
const MAX_METHOD_LETTERS: usize = 16;

/// A call until it is recorded.
pub(super) struct Call {
    tracker: Tracker,
    clock: ServerClock,
    started: Instant,
    event: UsageEvent,
}

impl Call {
    pub(super) fn new(layer: &MeterLayer, started: Instant, caller: Caller, parts: &Parts) -> Self {
        let (endpoint, method) = match is_grpc(&parts.headers) {
            true => (parts.uri.path(), "GRPC"),
            false => {
                let route = parts.extensions.get::<MatchedPath>().map(MatchedPath::as_str);
                (route.unwrap_or(UNMATCHED), method(parts.method.as_str()))
            }
        };
        let event = UsageEvent {
            eco_id: caller.eco_id,
            endpoint: endpoint.to_owned(),
            method: method.to_owned(),
            units_count: caller.units,
            api_key_id: caller.api_key_id,
            ..UsageEvent::default()
        };
        Self { tracker: layer.tracker.clone(), clock: layer.clock().clone(), started, event }
    }

    pub(super) fn admitted(&mut self, admission: String) {
        self.event.admission = admission;
    }

    /// Records that the call was answered with this HTTP status.
    fn record(mut self, status: u16) {
        let took = self.started.elapsed().min(MAX_RESPONSE_TIME);
        self.event.status_code = i32::from(status);
        self.event.response_time_ms = i32::try_from(took.as_millis()).unwrap_or(i32::MAX);
        self.event.event_time = Some(Timestamp::from(SystemTime::from(self.clock.now())));
        // What is dropped is in the tracker's figures; the call is answered all the same.
        self.tracker.track(self.event).ok();
    }

    /// Records a gRPC call that ended with this code.
    fn record_grpc(mut self, code: Code) {
        if code == Code::Unimplemented {
            self.event.endpoint = UNMATCHED.to_owned();
        }
        self.record(http_status(code));
    }
}

/// A call that is being served. Dropped before it ends: its client went away, or the service panicked.
pub(super) struct Serving(Option<Call>);

impl Serving {
    pub(super) fn new(call: Call) -> Self {
        Self(Some(call))
    }

    /// Of a call that has ended, or is not recorded.
    pub(super) fn nothing() -> Self {
        Self(None)
    }

    /// It was answered with this HTTP status.
    pub(super) fn end(&mut self, status: u16) {
        if let Some(call) = self.0.take() {
            call.record(status);
        }
    }

    /// It was a gRPC call and ended with this code.
    pub(super) fn end_grpc(&mut self, code: Code) {
        if let Some(call) = self.0.take() {
            call.record_grpc(code);
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.end_grpc(if thread::panicking() { Code::Unknown } else { Code::Cancelled });
    }
}

/// Methods are letters; what is none is a client's own invention.
fn method(method: &str) -> &str {
    let letters = method.bytes().all(|c| c.is_ascii_alphabetic());
    if letters && method.len() <= MAX_METHOD_LETTERS { method } else { "OTHER" }
}

/// Whether a request is gRPC (and not grpc-web, whose status is in the body).
pub(super) fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let rest = kind.and_then(|kind| kind.strip_prefix("application/grpc"));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['+', ';']))
}

/// The status in the trailers, or in the headers of an answer that has trailers only.
pub(super) fn grpc_code(headers: &HeaderMap) -> Option<Code> {
    Status::from_header_map(headers).map(|status| status.code())
}

/// The HTTP status that a gRPC code means, by `google/rpc/code.proto`.
fn http_status(code: Code) -> u16 {
    match code {
        Code::Ok => 200,
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => 400,
        Code::Unauthenticated => 401,
        Code::PermissionDenied => 403,
        Code::NotFound => 404,
        Code::AlreadyExists | Code::Aborted => 409,
        Code::ResourceExhausted => 429,
        Code::Cancelled => 499,
        Code::Unknown | Code::Internal | Code::DataLoss => 500,
        Code::Unimplemented => 501,
        Code::Unavailable => 503,
        Code::DeadlineExceeded => 504,
    }
}
