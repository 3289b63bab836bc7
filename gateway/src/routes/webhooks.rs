//! `/webhooks/*`: what others call when something happened on their side.

use axum::{
    Json,
    body::Bytes,
    extract::{State, rejection::BytesRejection},
};
use http::{HeaderMap, HeaderName};
use nexus_kit::validate::Violations;
use serde::Serialize;

use crate::{App, body, error::Error};

const SIGNATURE: HeaderName = HeaderName::from_static("stripe-signature");

#[derive(Serialize)]
pub(super) struct Received {
    received: bool,
    duplicate: bool,
}

/// The body goes on byte for byte: it is what was signed. Whether the signature is good, billing-svc knows.
pub(super) async fn stripe(
    State(app): State<App>,
    headers: HeaderMap,
    sent: Result<Bytes, BytesRejection>,
) -> Result<Json<Received>, Error> {
    let payload = sent.map_err(body::unread)?;
    let mut signatures = headers.get_all(SIGNATURE).iter();
    let signature = signatures.next().and_then(|value| value.to_str().ok());
    let (Some(signature), None) = (signature, signatures.next()) else {
        return Err(Violations::one("Stripe-Signature", "must be sent, once").into());
    };
    let stored = app.backend.handle_stripe_event(payload, signature).await?;
    Ok(Json(Received { received: true, duplicate: stored.duplicate }))
}
