//! The endpoints.

use axum::{
    Router,
    extract::{DefaultBodyLimit, State},
    http::StatusCode,
    middleware,
    routing::{get, post},
};
use nexus_kit::serve::{self, MAX_REQUEST_BYTES, MAX_WEBHOOK_BYTES};

use crate::{App, error::Error, layer, pages};

mod admin;
mod cron;
mod keys;
mod secure;
mod spend_cap;
mod subscriptions;
mod usage;
pub mod webhooks;

/// All endpoints, within the layer of every request.
pub fn router(app: App) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/api/usage/current", get(usage::current))
        .route("/api/usage/history", get(usage::history))
        .route("/api/usage/endpoints", get(usage::endpoints))
        .route("/api/usage/overage", get(usage::overage))
        .route("/api/usage/spend-cap", get(spend_cap::show).put(spend_cap::set))
        .route("/api/subscriptions/current", get(subscriptions::current))
        .route("/api/subscriptions/checkout", post(subscriptions::checkout))
        .route("/api/subscriptions/cancel", post(subscriptions::cancel))
        .route("/api/subscriptions/reactivate", post(subscriptions::reactivate))
        .route("/api/admin/analytics/overview", get(admin::overview))
        .route("/api/admin/analytics/users", get(admin::users))
        .route("/api/cron/process-overage", post(cron::process_overage))
        .route("/api/keys/generate", post(keys::generate))
        .route("/api/keys/list", get(keys::list))
        .route("/api/keys/revoke", post(keys::revoke))
        .route("/api/keys/rotate", post(keys::rotate))
        .route("/api/secure/ping", get(secure::ping))
        .route("/webhooks/stripe", post(webhooks::stripe).layer(DefaultBodyLimit::max(MAX_WEBHOOK_BYTES)))
        .merge(pages::router())
        .fallback(|| async { Error::NotFound("Not found") })
        .method_not_allowed_fallback(|| async { Error::MethodNotAllowed })
        .layer(DefaultBodyLimit::max(MAX_REQUEST_BYTES))
        .layer(middleware::from_fn_with_state(app.clone(), layer::around))
        .with_state(app)
}

async fn ready(State(app): State<App>) -> (StatusCode, &'static str) {
    serve::ready(app.readiness.clone()).await
}
