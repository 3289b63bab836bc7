//! `/nexus.…`: the services' RPCs for browsers, as gRPC-Web. It stands here, and not at the services' own ports, as browsers
//! come to this one: with its TLS, its origins, its rates. Who may call what, the services decide by the same header.
//!
//! Only gRPC-Web is taken. Programs that speak gRPC itself call the services.

use std::{convert::Infallible, error::Error as StdError, iter, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    response::{IntoResponse, Response},
    routing::post,
};
use http::{Extensions, HeaderMap, HeaderName, Version, header};
use http_body_util::BodyExt;
use nexus_core::id::EcoId;
use nexus_kit::{auth::Caller, rpc, status, telemetry};
use tokio::time::timeout;
use tonic::{Status, TimeoutExpired, metadata::MetadataMap};
use tonic_web::GrpcWebLayer;
use tower::{Layer, ServiceExt, service_fn};
use tracing::Span;

use crate::{
    App, auth,
    backend::{Backend, Service},
    error::Error,
    places::Few,
};

/// What a call may be.
const TYPES: [&[u8]; 4] = [
    b"application/grpc-web",
    b"application/grpc-web+proto",
    b"application/grpc-web-text",
    b"application/grpc-web-text+proto",
];
/// What is handed on: no cookies, nothing of the connection.
const HANDED_ON: [HeaderName; 7] = [
    header::ACCEPT,
    header::AUTHORIZATION,
    header::CONTENT_TYPE,
    HeaderName::from_static("grpc-accept-encoding"),
    HeaderName::from_static("grpc-encoding"),
    HeaderName::from_static("grpc-timeout"),
    HeaderName::from_static("x-grpc-web"),
];

/// The three services; others that their ports have are not for browsers.
pub(super) fn router() -> Router<App> {
    let to = |service: Service| post(move |State(app): State<App>, request| call(app, service, request));
    Router::new()
        .route("/nexus.usage.v1.UsageService/{method}", to(Service::Usage))
        .route("/nexus.billing.v1.BillingService/{method}", to(Service::Billing))
        .route("/nexus.analytics.v1.AnalyticsService/{method}", to(Service::Analytics))
}

/// Calls at once, fewer than a connection takes, and those of one account: a sixtieth.
const AT_ONCE: u32 = 960;
const OF_AN_ACCOUNT: u32 = 16;

/// Places of calls.
pub fn places() -> Few {
    Few::new(AT_ONCE, OF_AN_ACCOUNT, "calls of gRPC-Web")
}

async fn call(app: App, service: Service, request: Request) -> Result<Response, Error> {
    let content_type = request.headers().get(header::CONTENT_TYPE).map(|value| value.as_bytes());
    if !content_type.is_some_and(|value| TYPES.contains(&value)) {
        return Err(Error::UnsupportedMediaType("application/grpc-web+proto or application/grpc-web-text"));
    }
    let place = match account(&app, request.headers(), request.extensions()).await? {
        Some(eco_id) => Some(app.web_calls.enter(&eco_id)?),
        None => None,
    };
    let backend = app.backend.clone();
    let translated =
        GrpcWebLayer::new().layer(service_fn(move |request| reached(backend.clone(), service, request)));
    let patience = app.backend.patience(request.uri().path());
    let answer =
        translated.oneshot(handed_on(request, patience)).await.unwrap_or_else(|never| match never {});
    // The account has its place for as long as the stream lasts.
    Ok(answer
        .map(|body| {
            Body::new(body.map_frame(move |frame| {
                let _place = &place;
                frame
            }))
        })
        .into_response())
}

/// The account that a call counts for; none: somebody's whom the service will refuse, or a program's of ours.
async fn account(app: &App, headers: &HeaderMap, extensions: &Extensions) -> Result<Option<EcoId>, Error> {
    let caller = match auth::authorization(headers) {
        Ok(header) => app.auth.authenticate(Some(header)),
        Err(error) => Err(error),
    };
    match caller {
        Ok(Caller::User { eco_id, .. }) => {
            app.rates.account(&eco_id)?;
            Span::current().record("caller", eco_id.as_str());
            Ok(Some(eco_id))
        }
        Ok(Caller::ApiKey(key)) => {
            Span::current().record("caller", key.key_id());
            match auth::verified(app, &key, extensions).await {
                Ok((eco_id, _)) => Ok(Some(eco_id)),
                // The service refuses a bad key in the form that its callers read.
                Err(Error::InvalidApiKey) => Ok(None),
                Err(error) => Err(error),
            }
        }
        Ok(Caller::Service { .. }) | Err(_) => {
            app.rates.stranger(extensions)?;
            // Of several headers the service would read one.
            if headers.get_all(header::AUTHORIZATION).iter().count() > 1 {
                return Err(Error::Unauthorized);
            }
            Ok(None)
        }
    }
}

/// The beginning of the service's answer, or the status that tells that it is away, or that no browser can make such a call.
async fn reached(
    backend: Arc<Backend>,
    service: Service,
    request: http::Request<tonic::body::Body>,
) -> Result<http::Response<tonic::body::Body>, Infallible> {
    let path = request.uri().path();
    if rpc::client_streams(path) {
        let refused = "gRPC-Web has no calls whose caller sends a stream: make it over gRPC, at the service";
        return Ok(Status::unimplemented(refused).into_http());
    }
    let answer = timeout(backend.patience(path), backend.web_channel(service).oneshot(request)).await;
    Ok(match answer {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) if is_late(&error) => late(),
        Ok(Err(error)) => {
            tracing::warn!(%error, "a service is away");
            status::unavailable("SERVICE_AWAY", "the service is away", status::RETRY_SOON).into_http()
        }
        Err(_elapsed) => late(),
    })
}

fn late() -> http::Response<tonic::body::Body> {
    Status::deadline_exceeded("no answer within the deadline").into_http()
}

/// Whether the channel's own timer was the first.
fn is_late(error: &(dyn StdError + 'static)) -> bool {
    let mut causes = iter::successors(Some(error), |error: &&(dyn StdError + 'static)| (*error).source());
    causes.any(|error| error.is::<TimeoutExpired>())
}

/// With the caller's deadline or, without one, ours, so that the service does not go on for nobody.
fn handed_on(request: Request, patience: Duration) -> Request {
    let (mut parts, body) = request.into_parts();
    let mut headers = HeaderMap::new();
    for name in HANDED_ON {
        if let Some(value) = parts.headers.get(&name) {
            headers.insert(name, value.clone());
        }
    }
    let has_deadline = headers.contains_key("grpc-timeout");
    let metadata = MetadataMap::from_headers(headers);
    let mut request = tonic::Request::from_parts(metadata, tonic::Extensions::new(), ());
    if !has_deadline {
        request.set_timeout(patience);
    }
    telemetry::propagate_trace_to_rpc(request.metadata_mut());
    parts.headers = request.into_parts().0.into_headers();
    parts.version = Version::HTTP_2;
    Request::from_parts(parts, body)
}
