//! What happens around every request, in this order: an id, a span that continues the caller's trace, a
//! place among the requests in flight, which a long answer has until it is taken, the handler with a time limit and panics
//! caught; then the headers that every answer has, one log line, and the metrics.

use std::{borrow::Cow, panic::AssertUnwindSafe, time::Instant};

use axum::{
    extract::{MatchedPath, Request, State},
    http::{
        HeaderMap, HeaderName, HeaderValue, Method, StatusCode,
        header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_SECURITY_POLICY, X_CONTENT_TYPE_OPTIONS},
    },
    middleware::Next,
    response::{IntoResponse, Response},
};
use futures::FutureExt;
use nexus_core::id::KEY_PREFIX as API_KEY_PREFIX;
use nexus_kit::{
    metrics::{Metrics, RpcLabels},
    serve::MAX_WEBHOOK_BYTES,
    telemetry,
};
use tracing::{Instrument, Span};

use crate::{
    App,
    address::Peer,
    auth,
    error::Error,
    pages, places,
    problem::{self, Failure},
};

/// What is longer, or more, has an answer that says so; the server takes twice as much, and no more.
pub const MAX_HEADERS: usize = 100;
/// Names and values of all headers.
pub const MAX_HEADER_BYTES: usize = 32 * 1024;
const MAX_URI_BYTES: usize = 8 * 1024;

/// Largest body a request may have; but for webhooks, routes take less.
const MAX_BODY_BYTES: usize = MAX_WEBHOOK_BYTES;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const MAX_REQUEST_ID: usize = 128;
/// What a request is logged and counted as whose client did not wait for the answer.
const CLIENT_CLOSED_REQUEST: u16 = 499;

/// When a request arrived.
#[derive(Debug, Clone, Copy)]
pub struct Arrival(pub Instant);

/// Answers a request within all that surrounds it.
pub async fn around(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let arrival = Instant::now();
    let id = request_id(request.headers());
    let route = request.extensions().get::<MatchedPath>().map_or("unmatched", MatchedPath::as_str).to_owned();
    let wants_problem = problem::is_wanted(request.headers());
    let wants_page = pages::failure::is_wanted(request.headers(), request.uri().path());
    let span = http_span(request.method(), &route, request.uri().path(), &id);
    telemetry::continue_trace(&span, request.headers());
    request.extensions_mut().insert(Arrival(arrival));
    if let Some(Peer(peer)) = request.extensions().get().copied() {
        if app.proxies.first_not_believed(peer, request.headers()) {
            tracing::warn!(
                %peer,
                "it says whom a request is from and is not believed: if it is a proxy, name it in TRUSTED_PROXIES, or all who come through it are one address"
            );
        }
        let client = app.proxies.client(peer, request.headers());
        request.extensions_mut().insert(client);
    }
    let record = Record { arrival, route, metrics: app.metrics.clone(), span: span.clone(), done: false };
    let work = async {
        let response = limited(&app, request, next).await;
        let response = match response {
            response if wants_problem => problem::convert(response),
            response if wants_page => pages::failure::convert(response),
            response => response,
        };
        record.finish(&response);
        response
    };
    let mut response = work.instrument(span).await;
    add_headers(response.headers_mut(), &id);
    response
}

async fn limited(app: &App, mut request: Request, next: Next) -> Response {
    if request.uri().path_and_query().is_some_and(|target| target.as_str().len() > MAX_URI_BYTES) {
        return Error::UriTooLong.into_response();
    }
    if request.headers().len() > MAX_HEADERS || header_bytes(request.headers()) > MAX_HEADER_BYTES {
        return Error::HeadersTooLarge.into_response();
    }
    let place = match app.places.enter(&auth::sender(app, &request)) {
        Ok(place) => place,
        Err(error) => return error.into_response(),
    };
    if declared_length(request.headers()).is_some_and(|length| length > MAX_BODY_BYTES as u64) {
        return Error::PayloadTooLarge.into_response();
    }
    request.extensions_mut().insert(place.clone());
    let answer = AssertUnwindSafe(next.run(request)).catch_unwind();
    let mut response = match tokio::time::timeout(app.limits.request_timeout, answer).await {
        Ok(Ok(response)) => response,
        Ok(Err(_panic)) => Error::Internal("the handler panicked".to_owned()).into_response(),
        Err(_elapsed) => Error::unavailable("the request took too long").into_response(),
    };
    if !places::is_small(response.body()) {
        response.extensions_mut().insert(place);
    }
    response
}

fn header_bytes(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum()
}

/// The length that a body is said to have.
pub fn declared_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn http_span(method: &Method, route: &str, path: &str, id: &str) -> Span {
    tracing::info_span!(
        "http",
        otel.name = format!("{method} {route}"),
        otel.kind = "server",
        http.request.method = %method,
        http.route = route,
        url.path = %without_secrets(path),
        http.response.status_code = tracing::field::Empty,
        request_id = id,
        caller = tracing::field::Empty,
        failed_call = tracing::field::Empty,
    )
}

/// The path, but for what follows the id of an API key that somebody has put there.
fn without_secrets(path: &str) -> Cow<'_, str> {
    match path.find(API_KEY_PREFIX) {
        None => Cow::Borrowed(path),
        Some(at) => Cow::Owned(format!("{}{API_KEY_PREFIX}…", &path[..at])),
    }
}

/// The client's id of the request where it is one that can be logged, else a new one.
fn request_id(headers: &HeaderMap) -> String {
    let allowed = |c: u8| c.is_ascii_alphanumeric() || b"-_.:+/=".contains(&c);
    headers
        .get(REQUEST_ID)
        .and_then(|v| v.to_str().ok())
        .filter(|id| !id.is_empty() && id.len() <= MAX_REQUEST_ID && id.bytes().all(allowed))
        .map_or_else(new_request_id, str::to_owned)
}

/// What an answer has that was made around the routes, as those to browsers that ask what they may.
pub async fn complete(mut response: Response) -> Response {
    if !response.headers().contains_key(REQUEST_ID) {
        add_headers(response.headers_mut(), &new_request_id());
    }
    response
}

fn new_request_id() -> String {
    uuid::Uuid::now_v7().to_string()
}

fn add_headers(headers: &mut HeaderMap, id: &str) {
    headers.insert(REQUEST_ID, HeaderValue::try_from(id).expect("checked or made here: plain ASCII"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    // Pages, their files and some routes say otherwise.
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    let policy = HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'");
    headers.entry(CONTENT_SECURITY_POLICY).or_insert(policy);
}

/// A request until it is answered. Dropped before: the client went away.
struct Record {
    arrival: Instant,
    route: String,
    metrics: Metrics,
    span: Span,
    done: bool,
}

impl Record {
    fn finish(mut self, response: &Response) {
        let reason = response.extensions().get::<Failure>().map(|f| f.reason.as_str());
        self.write(response.status().as_u16(), reason);
    }

    fn write(&mut self, status: u16, reason: Option<&str>) {
        self.done = true;
        let took = self.arrival.elapsed();
        let labels = RpcLabels {
            service: "http".into(),
            method: self.route.clone().into(),
            code: status.to_string().into(),
        };
        self.metrics.observe(labels, took);
        self.span.record("http.response.status_code", status);
        let _in_span = self.span.enter();
        let duration_ms = telemetry::milliseconds(took);
        if status == StatusCode::INTERNAL_SERVER_ERROR.as_u16() {
            tracing::error!(status, duration_ms, reason, "request");
        } else if self.route == "/healthz" || self.route == "/readyz" {
            tracing::debug!(status, duration_ms, reason, "request");
        } else {
            tracing::info!(status, duration_ms, reason, "request");
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if !self.done {
            self.write(CLIENT_CLOSED_REQUEST, Some("the client went away"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_in_a_path_is_not_told() {
        assert_eq!(without_secrets("/api/usage/current"), "/api/usage/current");
        assert_eq!(without_secrets("/api/eco_api_0123456789.secret/x"), "/api/eco_api_…");
    }
}
