//! `/webhooks/*`: what others call when something happened on their side.

use std::time::Duration;

use axum::{
    Json,
    body::Bytes,
    extract::{FromRequest, Request, State},
};
use http::{HeaderMap, HeaderName};
use nexus_kit::validate::Violations;
use serde::Serialize;
use tokio::{sync::Semaphore, time::timeout};
use utoipa::ToSchema;

use crate::{App, body, error::Error, layer::declared_length};

/// Large webhooks that are read and handed on at once; others wait. Who sends one is known when it is whole, so that
/// this bounds what anybody can have held here.
const AT_ONCE: usize = 64;
/// Up to so many bytes, as nearly all of Stripe's have, it is not large: whoever holds up the large ones holds up no other.
const LARGE: u64 = 16 * 1024;
/// Longest time that one may take to come.
const READ_WITHIN: Duration = Duration::from_secs(10);

const SIGNATURE: HeaderName = HeaderName::from_static("stripe-signature");

#[derive(Serialize, ToSchema)]
pub(super) struct Received {
    received: bool,
    duplicate: bool,
}

/// Room for webhooks.
pub fn room() -> Semaphore {
    Semaphore::new(AT_ONCE)
}

/// An event of Stripe's
///
/// Answers once it is stored; a repeat is a duplicate and does nothing.
#[utoipa::path(post, path = "/webhooks/stripe", tag = "stripe",
    params(("Stripe-Signature" = String, Header, description = "`t=…,v1=…`, made within the last five minutes")),
    request_body(content = serde_json::Value, description = "The event, byte for byte as it was signed"),
    responses((status = 200, body = Received, description = "It is stored")))]
// The body goes on byte for byte: it is what was signed. Whether the signature is good, billing-svc knows.
pub(super) async fn stripe(State(app): State<App>, request: Request) -> Result<Json<Received>, Error> {
    let signature = signature(request.headers())?.to_owned();
    let _room = match declared_length(request.headers()) {
        Some(length) if length <= LARGE => None,
        _ => {
            let room = app.webhooks.acquire().await;
            Some(room.map_err(|_closed| Error::Internal("the room for webhooks is closed".to_owned()))?)
        }
    };
    let sent = timeout(READ_WITHIN, Bytes::from_request(request, &app)).await;
    let payload = sent.map_err(|_late| body::not_whole())?.map_err(body::unread)?;
    let stored = app.backend.handle_stripe_event(payload, &signature).await?;
    Ok(Json(Received { received: true, duplicate: stored.duplicate }))
}

fn signature(headers: &HeaderMap) -> Result<&str, Violations> {
    let mut signatures = headers.get_all(SIGNATURE).iter();
    let signature = signatures.next().and_then(|value| value.to_str().ok());
    match (signature, signatures.next()) {
        (Some(signature), None) => Ok(signature),
        _ => Err(Violations::one("Stripe-Signature", "must be sent, once")),
    }
}
