//! `/webhooks/*`: what others call when something happened on their side.

use axum::{
    Json,
    extract::{Request, State},
};
use http::{HeaderMap, HeaderName};
use nexus_kit::{serve::MAX_WEBHOOK_BYTES, validate::Violations};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{App, address::Client, body, error::Error, layer::declared_length, per_address::PerAddress};

/// Bytes of large webhooks that are read and handed on at once, and those of one address. Who sends one is known when it
/// is whole, so that this bounds what anybody can have held here; nobody waits for others, but is told to come again.
const AT_ONCE: u32 = 64 * 1024 * 1024;
const OF_AN_ADDRESS: u32 = 2 * MAX_WEBHOOK_BYTES as u32;
/// Up to so many bytes, as nearly all of Stripe's have, it is not large: whoever holds up the large ones holds up no other.
const LARGE: u64 = 16 * 1024;

const SIGNATURE: HeaderName = HeaderName::from_static("stripe-signature");

#[derive(Serialize, ToSchema)]
pub(super) struct Received {
    received: bool,
    duplicate: bool,
}

/// Room for webhooks.
pub fn room() -> PerAddress {
    PerAddress::new(AT_ONCE, OF_AN_ADDRESS, "bytes of webhooks")
}

/// An event of Stripe's
///
/// Answers once it is stored; a repeat is a duplicate and does nothing.
#[utoipa::path(post, path = "/webhooks/stripe", tag = "stripe",
    params(("Stripe-Signature" = String, Header, description = "`t=…,v1=…`, made within the last five minutes")),
    request_body(content = serde_json::Value, description = "The event, byte for byte as it was signed"),
    responses((status = 200, body = Received, description = "It is stored")))]
pub(super) async fn stripe(State(app): State<App>, request: Request) -> Result<Json<Received>, Error> {
    let extensions = request.extensions().clone();
    let received = receive(&app, request).await;
    // Stripe is never held up: what it did not send is one more request of a stranger.
    if let Err(Error::BadRequest(_) | Error::PayloadTooLarge | Error::NoWebhookSecret) = &received {
        app.rates.stranger(&extensions)?;
    }
    received
}

// The body goes on byte for byte: it is what was signed. Whether the signature is good, billing-svc knows.
async fn receive(app: &App, request: Request) -> Result<Json<Received>, Error> {
    let signature = signature(request.headers())?.to_owned();
    let length = declared_length(request.headers());
    let _room = match length {
        Some(length) if length <= LARGE => None,
        length => {
            let most = MAX_WEBHOOK_BYTES as u32;
            let size =
                length.and_then(|length| u32::try_from(length).ok()).map_or(most, |size| size.min(most));
            let address = request.extensions().get().map(|Client(address)| *address);
            Some(app.webhooks.take(address, size)?)
        }
    };
    let payload = body::whole(request, app).await?;
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
