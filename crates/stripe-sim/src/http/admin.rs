//! The `/_sim` part, which only the stand-in has: faults, the clock, poisoned customers, and a
//! look at the state and the request log. It asks for no key.

use std::sync::Arc;

use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::faults::Fault;
use crate::http::App;
use crate::http::error::ApiError;
use crate::http::forms::Params;
use crate::http::log::Entry;
use crate::objects::customers;
use crate::state::{Tx, View};
use crate::store::Ending;

type Reply = Result<Json<Value>, AdminError>;

pub(crate) fn router() -> Router<Arc<App>> {
    Router::new()
        .route("/faults", post(add_fault).get(list_faults).delete(clear_faults))
        .route("/held", get(held))
        .route("/release", post(release))
        .route("/customers/{id}", post(poison_customer))
        .route("/clock", post(advance_clock).get(clock))
        .route("/state", get(state))
        .route("/requests", get(requests))
        .route("/idle", get(idle))
}

/// A plain error: this part is not Stripe's.
struct AdminError(StatusCode, String);

impl AdminError {
    fn bad_request(message: impl Into<String>) -> Self {
        Self(StatusCode::BAD_REQUEST, message.into())
    }

    fn internal(error: impl std::fmt::Display) -> Self {
        Self(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
    }
}

impl IntoResponse for AdminError {
    fn into_response(self) -> Response {
        (self.0, Json(json!({ "error": { "message": self.1 } }))).into_response()
    }
}

impl From<JsonRejection> for AdminError {
    fn from(rejection: JsonRejection) -> Self {
        Self::bad_request(rejection.body_text())
    }
}

async fn add_fault(State(app): State<Arc<App>>, body: Result<Json<Fault>, JsonRejection>) -> Reply {
    let Json(fault) = body?;
    fault.check().map_err(AdminError::bad_request)?;
    app.faults.add(fault);
    list_faults(State(app)).await
}

async fn list_faults(State(app): State<Arc<App>>) -> Reply {
    Ok(Json(json!({ "faults": app.faults.coming() })))
}

async fn clear_faults(State(app): State<Arc<App>>) -> Reply {
    app.faults.clear();
    list_faults(State(app)).await
}

#[derive(Deserialize)]
struct Held {
    #[serde(default = "one")]
    at_least: usize,
}

fn one() -> usize {
    1
}

/// Answers once enough requests are held, so that a test need not poll.
async fn held(State(app): State<Arc<App>>, Query(query): Query<Held>) -> Reply {
    Ok(Json(json!({ "held": app.faults.until_held(query.at_least).await })))
}

async fn release(State(app): State<Arc<App>>) -> Reply {
    app.faults.release();
    Ok(Json(json!({})))
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Poison {
    Declined(bool),
    Deleted(bool),
}

async fn poison_customer(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    body: Result<Json<Poison>, JsonRejection>,
) -> Reply {
    let Json(poison) = body?;
    let work = |tx: &mut Tx<'_>| match poison {
        Poison::Declined(declined) => customers::set_declined(tx, &id, declined),
        Poison::Deleted(true) => customers::delete(tx, &id, Params::default()),
        Poison::Deleted(false) => Err(ApiError::refused("A deleted customer stays deleted.")),
    };
    let mut store = app.store.lock().await;
    let now = app.now(&store);
    let result = store.transact(now, |tx| match work(tx) {
        Ok(value) => (Ok(value), Ending::Commit(None)),
        Err(error) => (Err(error), Ending::RollBack(None)),
    });
    match result.map_err(AdminError::internal)? {
        Ok(value) => Ok(Json(value)),
        Err(error) => Err(AdminError(error.status, error.message.into())),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Advance {
    advance_seconds: u32,
}

async fn advance_clock(State(app): State<Arc<App>>, body: Result<Json<Advance>, JsonRejection>) -> Reply {
    let Json(advance) = body?;
    let mut store = app.store.lock().await;
    store.advance_clock(advance.advance_seconds.into()).map_err(AdminError::internal)?;
    Ok(Json(json!({ "now": app.now(&store) })))
}

async fn clock(State(app): State<Arc<App>>) -> Reply {
    let store = app.store.lock().await;
    Ok(Json(json!({ "now": app.now(&store) })))
}

async fn state(State(app): State<Arc<App>>) -> Reply {
    let store = app.store.lock().await;
    let view = View { state: &store.state, now: app.now(&store) };
    Ok(Json(Value::Object(view.render_all())))
}

#[derive(Deserialize)]
struct RequestFilter {
    method: Option<String>,
    path: Option<String>,
    idempotency_key: Option<String>,
}

async fn requests(State(app): State<Arc<App>>, Query(filter): Query<RequestFilter>) -> Reply {
    let same = |wanted: &Option<String>, is: Option<&str>| wanted.is_none() || wanted.as_deref() == is;
    let entries: Vec<Entry> = app
        .log
        .entries()
        .into_iter()
        .filter(|entry| same(&filter.method, Some(&entry.method)))
        .filter(|entry| same(&filter.path, Some(&entry.path)))
        .filter(|entry| same(&filter.idempotency_key, entry.idempotency_key.as_deref()))
        .collect();
    Ok(Json(json!({ "requests": entries })))
}

/// Answers once no request is under way, those whose caller has gone away included.
async fn idle(State(app): State<Arc<App>>) -> Reply {
    tokio::select! {
        () = app.log.until_idle() => {}
        () = app.faults.shutdown() => {}
    }
    Ok(Json(json!({})))
}
