//! About this server: whether it lives and is ready, and what it can do.

use std::sync::LazyLock;

use axum::{
    extract::{Request, State},
    http::{StatusCode, header::RETRY_AFTER},
    response::{IntoResponse, Response},
};
use nexus_kit::serve;

use crate::{App, error::Error, fixed::Fixed, openapi};

/// Whether this server lives
#[utoipa::path(get, path = "/healthz", tag = "service", responses(
    (status = 200, description = "It does", body = String, content_type = "text/plain"),
))]
pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

/// Whether this server is ready
///
/// It is once it has reached every service, for as long as it reaches one.
#[utoipa::path(get, path = "/readyz", tag = "service", responses(
    (status = 200, description = "It is; `degraded`: without a part", body = String, content_type = "text/plain"),
    (status = 503, description = "It is not yet, or reaches nothing", body = String, content_type = "text/plain"),
))]
pub(super) async fn readyz(State(app): State<App>, request: Request) -> Result<Response, Error> {
    // The services are asked each time.
    app.rates.stranger(request.extensions())?;
    let ready = serve::ready(app.readiness.clone()).await;
    Ok(match ready.0 {
        StatusCode::OK => ready.into_response(),
        _ => ([(RETRY_AFTER, "1")], ready).into_response(),
    })
}

/// This document
#[utoipa::path(get, path = "/openapi.json", tag = "service", responses(
    (status = 200, description = "OpenAPI 3.1", body = serde_json::Value),
))]
pub(super) async fn document(State(app): State<App>, request: Request) -> Result<Response, Error> {
    static DOCUMENT: LazyLock<Fixed> = LazyLock::new(|| {
        let document = openapi::document(super::described()).expect("our own words are JSON");
        Fixed::new("application/json", document.to_string())
    });
    app.rates.stranger(request.extensions())?;
    DOCUMENT.answer(request.headers()).await
}
