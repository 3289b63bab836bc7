//! `/api/secure/*`: tracked endpoints, called with an API key.

use axum::{Json, extract::State, response::Response};
use chrono::Utc;
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    App,
    auth::ApiKey,
    error::Error,
    format,
    metering::{Admitted, Call},
};

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Pong {
    message: &'static str,
    eco_id: String,
    api_key_id: String,
    #[schema(format = DateTime)]
    timestamp: String,
}

/// A tracked endpoint
///
/// Each answered call is metered, and takes one unit of the account's quota.
#[utoipa::path(get, path = "/api/secure/ping", tag = "tracked", responses(
    (status = 200, body = Pong, description = "Whose key it is"),
    (status = 403, description = "The account is closed"),
    (status = 404, description = "The account does not exist"),
))]
pub(super) async fn ping(State(app): State<App>, ApiKey(key): ApiKey, call: Call) -> Result<Response, Error> {
    let admitted = Admitted::new(&app, &key, call).await?;
    let pong = Pong {
        message: "pong",
        eco_id: admitted.caller.eco_id.clone(),
        api_key_id: admitted.caller.key_id.clone(),
        timestamp: format::time(Utc::now()),
    };
    Ok(admitted.answer(&app, Json(pong)).await)
}
