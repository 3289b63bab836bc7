//! What happens around every RPC, in this order: a span that continues the caller's trace, a place among
//! the calls in flight, authentication, the call itself with panics caught; then one log line and the
//! metrics, when the last trailer is out or the caller is gone.

use std::{
    convert::Infallible,
    panic::AssertUnwindSafe,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use futures::{FutureExt, future::BoxFuture};
use http::{HeaderMap, Request, Response};
use http_body_util::BodyExt;
use tonic::{Code, Status, body::Body};
use tower::{Layer, Service};
use tracing::{Instrument, Span};

use crate::{
    auth::{AuthError, Authenticator},
    metrics::{InFlight, Metrics, RpcLabels},
    status, telemetry,
};

/// The layer; one for all services of a server.
#[derive(Clone)]
pub struct RequestLayer {
    /// Verifies callers.
    pub auth: Arc<Authenticator>,
    /// Counts calls.
    pub metrics: Metrics,
    /// Calls in flight beyond which new ones are refused.
    pub max_in_flight: u32,
}

impl<S> Layer<S> for RequestLayer {
    type Service = RequestService<S>;
    fn layer(&self, inner: S) -> Self::Service {
        RequestService { inner, layer: self.clone() }
    }
}

/// A service within the layer.
#[derive(Clone)]
pub struct RequestService<S> {
    inner: S,
    layer: RequestLayer,
}

impl<S> Service<Request<Body>> for RequestService<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        // The clone takes the place of the service that was polled ready.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let layer = self.layer.clone();
        let (service, method) = split_path(request.uri().path());
        let span = rpc_span(&service, &method);
        telemetry::continue_trace(&span, request.headers());
        let place = layer.metrics.enter(layer.max_in_flight);
        let call = Call {
            started: Instant::now(),
            labels: RpcLabels { service, method, code: String::new() },
            metrics: layer.metrics.clone(),
            span: span.clone(),
            done: false,
            _place: None,
        };
        let work = async move {
            let mut call = call;
            let Some(place) = place else {
                return call.finish_with(status::unavailable(
                    "OVERLOADED",
                    "too many calls in flight",
                    status::RETRY_SOON,
                ));
            };
            call._place = Some(place);
            if let Err(refusal) = admit(&layer.auth, &call.labels.service, &mut request) {
                return call.finish_with(refusal);
            }
            match AssertUnwindSafe(inner.call(request)).catch_unwind().await {
                Ok(Ok(response)) => call.follow(response),
                Ok(Err(never)) => match never {},
                Err(_panic) => {
                    tracing::error!("the handler panicked");
                    call.finish_with(status::internal())
                }
            }
        };
        Box::pin(work.map(Ok).instrument(span))
    }
}

fn rpc_span(service: &str, method: &str) -> Span {
    let short = service.rsplit('.').next().unwrap_or(service);
    tracing::info_span!(
        "rpc",
        otel.name = format!("rpc.{short}.{method}"),
        otel.kind = "server",
        rpc.system = "grpc",
        rpc.service = service,
        rpc.method = method,
        rpc.grpc.status_code = tracing::field::Empty,
        caller = tracing::field::Empty,
    )
}

fn split_path(path: &str) -> (String, String) {
    let (service, method) = path.trim_start_matches('/').split_once('/').unwrap_or(("", ""));
    // What a client made up must not become a label of its own.
    let known =
        service.starts_with("nexus.") || service.starts_with("grpc.") || service.starts_with("envoy.");
    let plain = method.len() <= 64 && method.bytes().all(|c| c.is_ascii_alphanumeric());
    if known && plain && service.len() <= 64 {
        (service.into(), method.into())
    } else {
        ("unknown".into(), "unknown".into())
    }
}

fn admit(auth: &Authenticator, service: &str, request: &mut Request<Body>) -> Result<(), Status> {
    let open = (auth.open_health && service.starts_with("grpc.health."))
        || (auth.open_reflection && service.starts_with("grpc.reflection."));
    if open {
        return Ok(());
    }
    let header = request.headers().get(http::header::AUTHORIZATION);
    let text = header.map(|h| h.to_str().map_err(|_| AuthError::Invalid)).transpose();
    match text.and_then(|text| auth.authenticate(text)) {
        Ok(caller) => {
            Span::current().record("caller", caller_name(&caller).as_str());
            request.extensions_mut().insert(caller);
            Ok(())
        }
        Err(error) => Err(status::unauthenticated(error.to_string())),
    }
}

fn caller_name(caller: &crate::auth::Caller) -> String {
    use crate::auth::Caller;
    match caller {
        Caller::User { eco_id, .. } => eco_id.to_string(),
        Caller::Service { name, .. } => name.clone(),
        Caller::ApiKey(key) => key.key_id().to_owned(),
    }
}

/// A call until its last trailer is out. Dropped before: the caller went away.
struct Call {
    started: Instant,
    labels: RpcLabels,
    metrics: Metrics,
    span: Span,
    done: bool,
    _place: Option<InFlight>,
}

impl Call {
    fn finish_with(mut self, status: Status) -> Response<Body> {
        self.finish(status.code(), status.message());
        status.into_http()
    }

    /// Waits for the status: in the headers of a trailers-only answer, else in the trailers.
    fn follow(mut self, response: Response<Body>) -> Response<Body> {
        if let Some(status) = grpc_status(response.headers()) {
            self.finish(status.code(), status.message());
            return response;
        }
        let (parts, body) = response.into_parts();
        let body = body.map_frame(move |frame| {
            if let Some(status) = frame.trailers_ref().and_then(grpc_status) {
                self.finish(status.code(), status.message());
            }
            frame
        });
        Response::from_parts(parts, Body::new(body))
    }

    fn finish(&mut self, code: Code, message: &str) {
        self.done = true;
        let took = self.started.elapsed();
        self.span.record("rpc.grpc.status_code", code as i32);
        self.labels.code = format!("{code:?}");
        self.metrics.observe(self.labels.clone(), took);
        let _in_span = self.span.enter();
        let duration_ms = took.as_secs_f64() * 1e3;
        match code {
            Code::Ok => tracing::info!(code = ?code, duration_ms, "call"),
            Code::Internal | Code::Unknown | Code::DataLoss => {
                tracing::error!(code = ?code, duration_ms, reason = message, "call")
            }
            _ => tracing::info!(code = ?code, duration_ms, reason = message, "call"),
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if !self.done {
            self.finish(Code::Cancelled, "the caller went away");
        }
    }
}

fn grpc_status(headers: &HeaderMap) -> Option<Status> {
    Status::from_header_map(headers)
}
