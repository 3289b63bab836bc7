//! `/api/secure/*`: tracked endpoints, called with an API key.

use axum::{Json, extract::State, response::Response};
use chrono::Utc;
use serde::Serialize;

use crate::{
    App,
    auth::ApiKey,
    error::Error,
    format,
    metering::{Admitted, Call},
};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Pong {
    message: &'static str,
    eco_id: String,
    api_key_id: String,
    timestamp: String,
}

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
