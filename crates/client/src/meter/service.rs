//! Around one call.

use std::{
    future::Future,
    mem,
    pin::Pin,
    task::{Context, Poll},
    time::Instant,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Body;
use tower::Service;

use super::{
    ADMISSION, Caller, MeterLayer, OnTrouble,
    body::MeteredBody,
    call::{Call, Serving, grpc_code, is_grpc},
    refusal,
};
use crate::{
    guard::{Decision, Refused},
    headers::Quota,
};

/// A service within the layer.
#[derive(Debug, Clone)]
pub struct MeterService<S> {
    inner: S,
    layer: MeterLayer,
}

impl<S> MeterService<S> {
    pub(super) fn new(inner: S, layer: MeterLayer) -> Self {
        Self { inner, layer }
    }
}

/// What a check comes to.
enum Verdict {
    /// Served, with what goes into the event and what the headers tell.
    Serve {
        admission: String,
        quota: Option<Quota>,
    },
    OverLimit(Box<Refused>),
    Unavailable,
}

impl<S, B, R> Service<Request<B>> for MeterService<S>
where
    S: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send,
    B: Send + 'static,
    R: Body<Data = Bytes> + Send + 'static,
{
    type Response = Response<MeteredBody<R>>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let started = Instant::now();
        // The clone takes the place of the service that was polled ready.
        let clone = self.inner.clone();
        let mut inner = mem::replace(&mut self.inner, clone);
        let layer = self.layer.clone();
        let (parts, body) = request.into_parts();
        let Some(caller) = (layer.caller)(&parts) else {
            let answer = inner.call(Request::from_parts(parts, body));
            return Box::pin(async move { Ok(answer.await?.map(MeteredBody::passed)) });
        };
        let grpc = is_grpc(&parts.headers);
        let from_envoy = layer.behind_envoy.then(|| admission(&parts.headers, &caller.eco_id)).flatten();
        let mut call = Call::new(&layer, started, caller.clone(), &parts);
        Box::pin(async move {
            let quota = match layer.verdict(&caller, from_envoy).await {
                Verdict::Serve { admission, quota } => {
                    call.admitted(admission);
                    quota
                }
                Verdict::OverLimit(refused) => {
                    return Ok(refusal::over_limit(*refused, grpc, layer.clock().now(), &mut rand::rng()));
                }
                Verdict::Unavailable => return Ok(refusal::unavailable(grpc)),
            };
            let mut call = Serving::new(call);
            let answer = inner.call(Request::from_parts(parts, body)).await;
            let mut response = match answer {
                Ok(response) => record(response, call, grpc),
                Err(error) => {
                    call.end(500);
                    return Err(error);
                }
            };
            if let Some(quota) = quota {
                quota.set(response.headers_mut(), layer.clock().now());
            }
            Ok(response)
        })
    }
}

impl MeterLayer {
    async fn verdict(&self, caller: &Caller, from_envoy: Option<String>) -> Verdict {
        let unchecked = |admission| Verdict::Serve { admission, quota: None };
        if let Some(admission) = from_envoy {
            return unchecked(admission);
        }
        let Some(guard) = self.guard.as_ref().filter(|_| !caller.test_mode) else {
            return unchecked(String::new());
        };
        match guard.check(&caller.eco_id, caller.units).await {
            Ok(Decision::Admitted(admitted)) => {
                Verdict::Serve { admission: admitted.admission, quota: Some(admitted.quota) }
            }
            Ok(Decision::Refused(refused)) => Verdict::OverLimit(refused),
            Err(error) => {
                tracing::warn!(%error, eco_id = caller.eco_id, "a call could not be checked");
                match self.on_trouble {
                    OnTrouble::Serve => unchecked(String::new()),
                    OnTrouble::Refuse => Verdict::Unavailable,
                }
            }
        }
    }
}

/// The admission that Envoy added for this account, or for no other: the last one, after any that the client sent.
/// Where it asked for several accounts, each says whose it is: `<admission>;account=<eco_id>`.
fn admission(headers: &HeaderMap, eco_id: &str) -> Option<String> {
    let mine = |value: &HeaderValue| {
        let text = value.to_str().ok()?;
        let (admission, whose) = text.split_once(";account=").unwrap_or((text, eco_id));
        (whose == eco_id && !admission.is_empty()).then(|| admission.to_owned())
    };
    headers.get_all(ADMISSION).iter().rev().find_map(mine)
}

/// Records a call that is answered; a gRPC call when its status is known.
fn record<R: Body>(response: Response<R>, mut call: Serving, grpc: bool) -> Response<MeteredBody<R>> {
    if !grpc {
        call.end(response.status().as_u16());
        return response.map(MeteredBody::passed);
    }
    match grpc_code(response.headers()) {
        Some(code) => {
            call.end_grpc(code);
            response.map(MeteredBody::passed)
        }
        None => response.map(|body| MeteredBody::watched(body, call)),
    }
}
