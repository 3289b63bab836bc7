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

use crate::chaos::Chaos;
use crate::deliver;
use crate::faults::Fault;
use crate::http::App;
use crate::http::error::ApiError;
use crate::http::log::Entry;
use crate::limits::Rates;
use crate::objects::customers::Poison;
use crate::objects::events::Unreliable;
use crate::objects::{checkout, customers, subscriptions, webhooks};
use crate::state::Settings;
use crate::tx::Tx;

type Reply = Result<Json<Value>, AdminError>;

pub(crate) fn router() -> Router<Arc<App>> {
    Router::new()
        .route("/faults", post(add_fault).get(list_faults).delete(clear_faults))
        .route("/chaos", post(begin_chaos).get(chaos).delete(end_chaos))
        .route("/limits", post(set_limits).get(limits))
        .route("/held", get(held))
        .route("/release", post(release))
        .route("/customers/{id}", post(poison_customer))
        .route("/subscriptions/{id}", post(set_subscription))
        .route("/checkout/{id}/complete", post(complete_checkout))
        .route("/clock", post(move_clock).get(clock))
        .route("/settings", post(set_settings).get(settings))
        .route("/webhooks", post(set_webhook))
        .route("/webhooks/send", post(send_webhooks))
        .route("/webhooks/unreliable", post(set_unreliable))
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

async fn begin_chaos(State(app): State<Arc<App>>, body: Result<Json<Chaos>, JsonRejection>) -> Reply {
    let Json(chaos) = body?;
    chaos.check().map_err(AdminError::bad_request)?;
    app.faults.chaos.begin(chaos.clone());
    Ok(Json(json!({ "chaos": chaos })))
}

async fn chaos(State(app): State<Arc<App>>) -> Reply {
    Ok(Json(json!({ "chaos": app.faults.chaos.current() })))
}

async fn end_chaos(State(app): State<Arc<App>>) -> Reply {
    app.faults.chaos.end();
    Ok(Json(json!({ "chaos": null })))
}

async fn set_limits(State(app): State<Arc<App>>, body: Result<Json<Rates>, JsonRejection>) -> Reply {
    let Json(rates) = body?;
    app.limits.set(rates);
    Ok(Json(json!(rates)))
}

async fn limits(State(app): State<Arc<App>>) -> Reply {
    Ok(Json(json!(app.limits.rates())))
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

/// Changes objects as a request would.
async fn change(
    app: &App,
    id: Option<&str>,
    work: impl FnOnce(&mut Tx<'_>) -> Result<Value, ApiError>,
) -> Reply {
    match app.change(id, work).await.map_err(AdminError::internal)? {
        Ok(value) => Ok(Json(value)),
        Err(error) => Err(AdminError(error.status, error.message.into())),
    }
}

async fn poison_customer(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    body: Result<Json<Poison>, JsonRejection>,
) -> Reply {
    let Json(poison) = body?;
    change(&app, Some(&id), |tx| customers::poison(tx, &id, poison)).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SetSubscription {
    status: subscriptions::Status,
}

async fn set_subscription(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    body: Result<Json<SetSubscription>, JsonRejection>,
) -> Reply {
    let Json(set) = body?;
    change(&app, Some(&id), |tx| subscriptions::set_status(tx, &id, set.status)).await
}

/// What the customer does on the page of the session.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Completion {
    email: Option<String>,
    declined: bool,
}

async fn complete_checkout(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    body: Result<Json<Completion>, JsonRejection>,
) -> Reply {
    let Json(completion) = body?;
    change(&app, Some(&id), |tx| checkout::complete(tx, &id, completion.email, completion.declined)).await
}

/// Moves the clock ahead, or to a time, or lets it run so many times as fast; 0: it stands still.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum ClockChange {
    AdvanceSeconds(u32),
    To(i64),
    Scale(u32),
}

async fn move_clock(State(app): State<Arc<App>>, body: Result<Json<ClockChange>, JsonRejection>) -> Reply {
    let Json(change) = body?;
    let moved = match change {
        ClockChange::AdvanceSeconds(seconds) => app.move_clock(|now| now + i64::from(seconds)).await,
        ClockChange::To(time) => app.move_clock(|_| time).await,
        ClockChange::Scale(scale) => {
            let mut store = app.store.lock().await;
            let gained = app.clock.set_scale(scale);
            store.advance_clock(gained)
        }
    };
    moved.map_err(AdminError::internal)?;
    clock(State(app)).await
}

async fn clock(State(app): State<Arc<App>>) -> Reply {
    let store = app.store.lock().await;
    Ok(Json(json!({ "now": app.now(&store), "scale": app.clock.scale() })))
}

async fn set_settings(State(app): State<Arc<App>>, body: Result<Json<Settings>, JsonRejection>) -> Reply {
    let Json(new) = body?;
    app.store.lock().await.configure(new).map_err(AdminError::internal)?;
    settings(State(app)).await
}

async fn settings(State(app): State<Arc<App>>) -> Reply {
    Ok(Json(json!(app.store.lock().await.state.settings)))
}

/// A webhook endpoint whose receiver has its secret already.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SetWebhook {
    url: String,
    secret: String,
    #[serde(default = "all_events")]
    enabled_events: Vec<String>,
}

fn all_events() -> Vec<String> {
    vec!["*".to_owned()]
}

async fn set_webhook(State(app): State<Arc<App>>, body: Result<Json<SetWebhook>, JsonRejection>) -> Reply {
    let Json(set) = body?;
    webhooks::check_url(&set.url).map_err(AdminError::bad_request)?;
    change(&app, None, |tx| Ok(webhooks::set(tx, set.url, set.secret, set.enabled_events))).await
}

/// Answers once all webhooks that are still to be sent were tried, whenever they are due.
async fn send_webhooks(State(app): State<Arc<App>>) -> Reply {
    deliver::send_all(&app).await.map_err(AdminError::internal)?;
    let store = app.store.lock().await;
    let waiting = store.state.due_deliveries(i64::MAX).count();
    Ok(Json(json!({ "undelivered": waiting })))
}

async fn set_unreliable(State(app): State<Arc<App>>, body: Result<Json<Unreliable>, JsonRejection>) -> Reply {
    let Json(unreliable) = body?;
    app.store.lock().await.state.unreliable = unreliable.clone();
    Ok(Json(json!(unreliable)))
}

async fn state(State(app): State<Arc<App>>) -> Reply {
    let store = app.store.lock().await;
    Ok(Json(Value::Object(store.state.render_all())))
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
