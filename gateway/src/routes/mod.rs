//! The endpoints.

use axum::{
    Router,
    extract::DefaultBodyLimit,
    middleware::{from_fn, from_fn_with_state},
};
use nexus_kit::serve::MAX_WEBHOOK_BYTES;
use utoipa::{OpenApi, openapi::OpenApi as Document};
use utoipa_axum::{
    router::{OpenApiRouter, UtoipaMethodRouterExt},
    routes,
};

use crate::{
    App, body, edge,
    error::Error,
    etag, layer, openapi,
    pages::{self, session::Anybody},
};

mod accounts;
mod admin;
mod charges;
mod cron;
mod docs;
pub mod export;
mod forecast;
pub mod grpc_web;
mod keys;
mod revenue;
mod secure;
mod service;
mod spend_cap;
mod subscriptions;
mod usage;
pub mod webhooks;

/// All endpoints, within the layers of every request.
pub fn router(app: App) -> Router {
    let (api, _document) = api().split_for_parts();
    let router = api
        .merge(docs::router())
        .merge(grpc_web::router())
        .merge(pages::router())
        .fallback(|_: Anybody| async { Error::NotFound("Not found") })
        .method_not_allowed_fallback(|_: Anybody| async { Error::MethodNotAllowed })
        .layer(DefaultBodyLimit::max(body::MAX_BYTES))
        .layer(from_fn_with_state(app.clone(), layer::around));
    let (origins, secure) = (app.origins.clone(), app.pages.is_secure());
    edge::around(router.with_state(app), &origins, secure)
}

/// What they are, for the document.
pub fn described() -> Document {
    api().into_openapi()
}

/// The endpoints of the API. No other way leads into it: what a handler does not say of itself has no route.
pub fn api() -> OpenApiRouter<App> {
    let stripe = routes!(webhooks::stripe).layer(DefaultBodyLimit::max(MAX_WEBHOOK_BYTES));
    OpenApiRouter::with_openapi(openapi::Frame::openapi())
        .routes(routes!(usage::current))
        .routes(routes!(usage::history))
        .routes(routes!(usage::endpoints))
        .routes(routes!(usage::overage))
        .routes(routes!(spend_cap::show, spend_cap::set))
        .routes(routes!(forecast::show))
        .routes(routes!(charges::list))
        .routes(routes!(charges::explain))
        .routes(routes!(subscriptions::current))
        .routes(routes!(subscriptions::checkout))
        .routes(routes!(subscriptions::cancel))
        .routes(routes!(subscriptions::reactivate))
        .routes(routes!(keys::generate))
        .routes(routes!(keys::list))
        .routes(routes!(keys::revoke))
        .routes(routes!(keys::rotate))
        .routes(routes!(admin::overview))
        .routes(routes!(admin::history))
        .routes(routes!(admin::users))
        .routes(routes!(revenue::show))
        .routes(routes!(accounts::show))
        .routes(routes!(charges::list_of))
        .routes(routes!(charges::explain_any))
        // Reads among those above have a tag; below, no answer is like another, or it is not JSON.
        .route_layer(from_fn(etag::conditional))
        .routes(routes!(export::download))
        .routes(routes!(secure::ping))
        .routes(routes!(cron::process_overage))
        .routes(stripe)
        .routes(routes!(service::healthz))
        .routes(routes!(service::readyz))
        .routes(routes!(service::document))
}
