//! What happens around every RPC, in this order: a span that continues the caller's trace, authentication, a
//! place among the calls in flight, the turn of the account that calls, the call itself within its deadline and with
//! panics caught; then one log line and the metrics, when the last trailer is out or the caller is gone.

use std::{
    convert::Infallible,
    panic::AssertUnwindSafe,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures::{FutureExt, future::BoxFuture};
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use http_body_util::BodyExt;
use nexus_core::id::{ApiKeyText, EcoId};
use tokio::sync::oneshot;
use tonic::{Code, Status, body::Body, codegen::Bytes};
use tower::{Layer, Service};
use tracing::{Instrument, Span};

use crate::{
    arriving::{Arriving, Packing},
    auth::{AuthError, Authenticator, Caller, KeyVerifier},
    db,
    leaving::Leaving,
    metrics::{InFlight, Metrics, RpcLabels},
    rpc::Rpc,
    share::{Share, Shares},
    status, telemetry,
    turn::{Turn, Turns},
};

const SHARE_IS_HELD: &str = "too many calls of this account in flight";
const TOO_MANY_WAIT: &str = "too many calls of this account wait for their turn";

/// The layer; one for all services of a server.
#[derive(Clone)]
pub struct RequestLayer {
    /// Verifies callers.
    pub auth: Arc<Authenticator>,
    /// Verifies API keys; `None`: this server takes none.
    pub api_keys: Option<KeyVerifier>,
    /// Counts calls.
    pub metrics: Metrics,
    /// Calls in flight beyond which new ones are refused.
    pub max_in_flight: u32,
    /// Of these, what each account has.
    pub shares: Shares,
    /// Of these again, what the users of each account have at work.
    pub turns: Turns,
    /// What its keys have: who has a key is not to keep those from their turn who could revoke it.
    pub key_turns: Turns,
    /// Bounds messages that arrive.
    pub arriving: Arriving,
    /// Bounds answers that leave.
    pub leaving: Leaving,
    /// Longest time until a call is answered; a stream may go on after its first answer.
    pub request_timeout: Duration,
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
        let rpc = Rpc::by_path(request.uri().path());
        let span = rpc_span(rpc);
        telemetry::continue_trace(&span, request.headers());
        let call = Call {
            started: Instant::now(),
            rpc,
            metrics: layer.metrics.clone(),
            span: span.clone(),
            done: false,
            leaving: None,
            _place: None,
            _share: None,
        };
        let work = async move {
            let mut call = call;
            let caller = match caller(&layer.auth, &rpc.service, request.headers()) {
                Ok(caller) => caller,
                Err(refusal) => return call.finish_with(refusal),
            };
            if let Some(caller) = &caller {
                Span::current().record("caller", caller_name(caller).as_str());
                let Some(place) = layer.metrics.enter(layer.max_in_flight) else {
                    return call.finish_with(status::overloaded("too many calls in flight"));
                };
                call._place = Some(place);
                if let Caller::User { eco_id, .. } = caller {
                    match layer.shares.enter(eco_id) {
                        Some(share) => call._share = Some(share),
                        None => return call.finish_with(status::overloaded(SHARE_IS_HELD)),
                    }
                }
                request.extensions_mut().insert(caller.clone());
            }
            let account = match &caller {
                Some(Caller::User { eco_id, .. }) => Some(eco_id.clone()),
                _ => None,
            };
            let limit = time_limit(request.headers(), layer.request_timeout);
            let answer = async {
                let share = match caller {
                    Some(Caller::ApiKey(text)) => Some(verify(&layer, text, &mut request).await?),
                    _ => None,
                };
                let eco_id = share.as_ref().map(Share::eco_id).or(account.as_ref());
                if let Some(eco_id) = eco_id {
                    layer.leaving.check(eco_id)?;
                }
                let leaving = eco_id.map(|eco_id| (layer.leaving.clone(), eco_id.clone()));
                let turn = match eco_id {
                    Some(eco_id) if rpc.in_turn => {
                        let turns = if share.is_some() { &layer.key_turns } else { &layer.turns };
                        let turn = turns.take(eco_id).await;
                        Some(turn.ok_or_else(|| status::overloaded(TOO_MANY_WAIT))?)
                    }
                    _ => None,
                };
                let packing = Packing::of(request.headers());
                let request = request.map(|body| match rpc.client_streams {
                    true => layer.arriving.bound_stream(body, rpc.max_message_bytes, eco_id, packing),
                    false => layer.arriving.bound(body, rpc.max_message_bytes, eco_id),
                });
                let answered = inner.call(request);
                let response = match turn {
                    Some(turn) => in_turn(answered, turn).await?,
                    None => answered.await.unwrap_or_else(|never| match never {}),
                };
                Ok::<_, Status>((response, share, leaving))
            };
            let answer = AssertUnwindSafe(answer).catch_unwind();
            match tokio::time::timeout(limit, answer).await {
                Err(_elapsed) => call.finish_with(status::deadline_exceeded()),
                Ok(Ok(Ok((response, share, leaving)))) => {
                    call.leaving = leaving;
                    call._share = call._share.take().or(share);
                    call.follow(response)
                }
                Ok(Ok(Err(refusal))) => call.finish_with(refusal),
                Ok(Err(_panic)) => {
                    tracing::error!("the handler panicked");
                    call.finish_with(status::internal())
                }
            }
        };
        Box::pin(work.map(Ok).instrument(span))
    }
}

fn rpc_span(rpc: &Rpc) -> Span {
    tracing::info_span!(
        "rpc",
        otel.name = rpc.span_name,
        otel.kind = "server",
        rpc.system = "grpc",
        rpc.service = rpc.service,
        rpc.method = rpc.method,
        rpc.grpc.status_code = tracing::field::Empty,
        caller = tracing::field::Empty,
    )
}

/// Answers a call in its turn. When the caller goes away or its time is over, its work ends, but not at once what it has
/// sent: a statement that waits for a lock keeps its connection until that is given up. So long the account keeps the turn.
async fn in_turn(
    answered: impl Future<Output = Result<Response<Body>, Infallible>> + Send + 'static,
    turn: Turn,
) -> Result<Response<Body>, Status> {
    let (caller, gone) = oneshot::channel::<()>();
    let work = async move {
        let response = tokio::select! {
            Ok(response) = answered => Some(response),
            _ = gone => None,
        };
        if response.is_none() {
            tokio::time::sleep(db::LOCK_TIMEOUT).await;
        }
        drop(turn);
        response
    };
    let answer = tokio::spawn(work.in_current_span()).await;
    drop(caller);
    match answer {
        Ok(Some(response)) => Ok(response),
        Ok(None) => Err(status::deadline_exceeded()),
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        // The runtime ends.
        Err(_cancelled) => Err(status::internal()),
    }
}

/// How long a call may take: what the caller asks for in `grpc-timeout`, and our own bound at most. Cut by a
/// hair, so that our answer is the one that is sent when the transport's own timer for that header is due.
fn time_limit(headers: &HeaderMap, bound: Duration) -> Duration {
    let asked = headers.get("grpc-timeout").and_then(|value| grpc_timeout(value.to_str().ok()?));
    let limit = asked.unwrap_or(bound).min(bound);
    limit - (limit / 10).min(Duration::from_millis(5))
}

/// `TimeoutValue TimeoutUnit` of the gRPC protocol over HTTP/2: at most eight digits and one letter.
fn grpc_timeout(text: &str) -> Option<Duration> {
    let (value, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let value: u64 = value.parse().ok().filter(|_| value.len() <= 8)?;
    Some(match unit {
        "H" => Duration::from_secs(value * 3600),
        "M" => Duration::from_secs(value * 60),
        "S" => Duration::from_secs(value),
        "m" => Duration::from_millis(value),
        "u" => Duration::from_micros(value),
        "n" => Duration::from_nanos(value),
        _ => return None,
    })
}

/// Who is calling, by the credentials of the request; `None`: nobody needs to be, for health and reflection are
/// open. A stream of these lasts as long as whoever wants, and has no place that others may lack.
fn caller(auth: &Authenticator, service: &str, headers: &HeaderMap) -> Result<Option<Caller>, Status> {
    let open = (auth.open_health && service.starts_with("grpc.health."))
        || (auth.open_reflection && service.starts_with("grpc.reflection."));
    if open {
        return Ok(None);
    }
    let header = headers.get(http::header::AUTHORIZATION);
    let text = header.map(|h| h.to_str().map_err(|_| AuthError::Invalid)).transpose();
    text.and_then(|text| auth.authenticate(text))
        .map(Some)
        .map_err(|error| status::unauthenticated(error.to_string()))
}

/// Finds out whose an API key is, before anything of the message is read.
async fn verify(
    layer: &RequestLayer,
    text: ApiKeyText,
    request: &mut Request<Body>,
) -> Result<Share, Status> {
    let verifier = layer.api_keys.as_ref();
    let verifier = verifier.ok_or_else(|| status::permission_denied("this service takes no API keys"))?;
    let key = verifier(text).await?;
    let share = layer.shares.enter(&key.eco_id).ok_or_else(|| status::overloaded(SHARE_IS_HELD))?;
    request.extensions_mut().insert(key);
    Ok(share)
}

fn caller_name(caller: &Caller) -> String {
    match caller {
        Caller::User { eco_id, .. } => eco_id.to_string(),
        Caller::Service { name, .. } => name.clone(),
        Caller::ApiKey(key) => key.key_id().to_owned(),
    }
}

/// A call until its last trailer is out. Dropped before: the caller went away.
struct Call {
    started: Instant,
    rpc: &'static Rpc,
    metrics: Metrics,
    span: Span,
    done: bool,
    /// Bounds what an account does not take of its answers.
    leaving: Option<(Leaving, EcoId)>,
    _place: Option<InFlight>,
    _share: Option<Share>,
}

impl Call {
    fn finish_with(mut self, status: Status) -> Response<Body> {
        self.finish(status.code(), status.message());
        status.into_http()
    }

    /// Waits for the status: in the headers of a trailers-only answer, else in the trailers.
    fn follow(mut self, response: Response<Body>) -> Response<Body> {
        if let Some(status) = grpc_status(response.headers()) {
            if status.code() != Code::Ok && status.details().is_empty() {
                return self.finish_with(status::from_transport(&status));
            }
            self.finish(status.code(), status.message());
            return response;
        }
        let leaving = self.leaving.take();
        response.map(|body| {
            Body::new(body.map_frame(move |frame| {
                let frame = match (frame.into_data(), &leaving) {
                    (Ok(data), Some((leaving, eco_id))) => match leaving.piece(data, eco_id) {
                        Ok(data) => Frame::data(data),
                        Err(status) => Frame::trailers(trailers(&status)),
                    },
                    (Ok(data), None) => Frame::data(data),
                    (Err(frame), _) => with_reason(frame),
                };
                if let Some(status) = frame.trailers_ref().and_then(grpc_status) {
                    self.finish(status.code(), status.message());
                }
                frame
            }))
        })
    }

    fn finish(&mut self, code: Code, message: &str) {
        self.done = true;
        let took = self.started.elapsed();
        self.span.record("rpc.grpc.status_code", code as i32);
        let labels = RpcLabels {
            service: self.rpc.service.as_str().into(),
            method: self.rpc.method.as_str().into(),
            code: code_word(code).into(),
        };
        self.metrics.observe(labels, took);
        let _in_span = self.span.enter();
        let (duration_ms, word) = (telemetry::milliseconds(took), code_word(code));
        match code {
            // A probe every few seconds: worth a line only when it does not go well.
            Code::Ok if self.rpc.service.starts_with("grpc.health.") => {
                tracing::debug!(code = word, duration_ms, "call");
            }
            Code::Ok => tracing::info!(code = word, duration_ms, "call"),
            Code::Internal | Code::Unknown | Code::DataLoss => {
                tracing::error!(code = word, duration_ms, reason = message, "call")
            }
            _ => tracing::info!(code = word, duration_ms, reason = message, "call"),
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

/// A code as the metrics name it.
fn code_word(code: Code) -> &'static str {
    match code {
        Code::Ok => "Ok",
        Code::Cancelled => "Cancelled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}

fn trailers(status: &Status) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    // It fails for a message that no header can carry; ours can.
    if status.add_header(&mut trailers).is_err() {
        trailers.clear();
    }
    trailers
}

/// Trailers of a status that the transport made, with a reason as every other has.
fn with_reason(frame: Frame<Bytes>) -> Frame<Bytes> {
    match frame.trailers_ref().and_then(grpc_status) {
        Some(status) if status.code() != Code::Ok && status.details().is_empty() => {
            Frame::trailers(trailers(&status::from_transport(&status)))
        }
        _ => frame,
    }
}

fn grpc_status(headers: &HeaderMap) -> Option<Status> {
    Status::from_header_map(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_callers_deadline_shortens_ours_and_never_lengthens_it() {
        let bound = Duration::from_secs(60);
        let limit = |text: &str| {
            let headers = HeaderMap::from_iter([(
                "grpc-timeout".parse().expect("a name"),
                text.parse().expect("a value"),
            )]);
            time_limit(&headers, bound)
        };
        assert_eq!(limit("2S"), Duration::from_millis(1_995));
        assert_eq!(limit("1n"), Duration::from_nanos(1));
        let unheard = bound - Duration::from_millis(5);
        for text in ["1H", "99999999S", "123456789m", "5", "S", "x", "-1S", ""] {
            assert_eq!(limit(text), unheard, "{text}");
        }
    }
}
