//! Drives a request: authentication, faults, idempotency key, execution, answer.

use std::sync::Arc;

use axum::body::{Body, to_bytes};
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::Response;
use bytes::Bytes;

use crate::connection::Link;
use crate::faults::{Fault, Outcome, error_of_status};
use crate::http::answer::{Answer, failure, header_value, planned_failure, rate_limited, success};
use crate::http::error::ApiError;
use crate::http::forms::Params;
use crate::http::log::{Ended, Entry};
use crate::http::{API_VERSION, App, auth, brackets, expand, idempotency, routes};
use crate::state::{KeySlot, StoredAnswer};
use crate::store::Ending;
use crate::tx::{Cause, Tx};

const MAX_BODY: usize = 1024 * 1024;

const REQUEST_ID: HeaderName = HeaderName::from_static("request-id");
const STRIPE_VERSION: HeaderName = HeaderName::from_static("stripe-version");
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");
const ORIGINAL_REQUEST: HeaderName = HeaderName::from_static("original-request");
const SIM_FAULT: HeaderName = HeaderName::from_static("sim-fault");

/// A request that has arrived whole.
struct Received {
    id: String,
    at: i64,
    at_millis: i64,
    method: String,
    path: String,
    query: String,
    headers: HeaderMap,
    body: Bytes,
}

/// What becomes of it.
enum Reply {
    Answer(Answer),
    /// The connection is cut.
    Nothing,
}

pub(crate) async fn handle(
    State(app): State<Arc<App>>,
    ConnectInfo(link): ConnectInfo<Link>,
    request: Request,
) -> Response {
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, MAX_BODY).await;
    let (id, at_millis) = {
        let mut store = app.store.lock().await;
        (store.new_id("req"), app.clock.millis(store.state.clock_advance))
    };
    let at = at_millis.div_euclid(1000);
    let echoed = [
        (REQUEST_ID, header_value(&id)),
        (STRIPE_VERSION, Some(HeaderValue::from_static(API_VERSION))),
        (STRIPE_VERSION, parts.headers.get(STRIPE_VERSION).cloned()),
        (IDEMPOTENCY_KEY, parts.headers.get(IDEMPOTENCY_KEY).cloned()),
    ];
    let reply = match body {
        Err(error) => {
            let message = format!("The request body could not be read: {error}");
            Reply::Answer(failure(&ApiError::refused(message), &id, at))
        }
        Ok(body) => {
            let received = Received {
                id: id.clone(),
                at,
                at_millis,
                method: parts.method.to_string(),
                path: parts.uri.path().to_owned(),
                query: parts.uri.query().unwrap_or("").to_owned(),
                headers: parts.headers,
                body,
            };
            // A task of its own: the work goes on when the caller goes away, as it does at Stripe.
            tokio::spawn(logged(Arc::clone(&app), received)).await.unwrap_or_else(|error| {
                tracing::error!(request_id = id, %error, "a request panicked");
                app.log.end(&id, &Ended { status: Some(500), replayed: false });
                Reply::Answer(failure(&ApiError::internal("An internal error."), &id, at))
            })
        }
    };
    let answer = match reply {
        Reply::Answer(answer) => answer,
        Reply::Nothing => {
            link.cut();
            failure(&ApiError::internal("Never sent."), &id, at)
        }
    };
    let mut response = Response::new(Body::from(answer.body));
    *response.status_mut() = answer.status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    for (name, value) in echoed {
        if let Some(value) = value {
            headers.insert(name, value);
        }
    }
    headers.extend(answer.headers);
    response
}

async fn logged(app: Arc<App>, received: Received) -> Reply {
    let key = received.headers.get(IDEMPOTENCY_KEY).and_then(|key| key.to_str().ok());
    app.log.begin(Entry {
        request_id: received.id.clone(),
        at: received.at,
        method: received.method.clone(),
        path: received.path.clone(),
        idempotency_key: key.map(str::to_owned),
        status: None,
        replayed: false,
        dropped: false,
    });
    let reply = process(&app, &received).await;
    let ended = match &reply {
        Reply::Answer(answer) => Ended {
            status: Some(answer.status.as_u16()),
            replayed: answer.headers.iter().any(|(name, _)| *name == IDEMPOTENT_REPLAYED),
        },
        Reply::Nothing => Ended { status: None, replayed: false },
    };
    app.log.end(&received.id, &ended);
    reply
}

async fn process(app: &App, received: &Received) -> Reply {
    let (method, path) = (received.method.as_str(), received.path.as_str());
    let endpoint = routes::endpoint(method, path);
    if let Err(reason) = app.limits.check(&endpoint, received.at_millis) {
        return Reply::Answer(rate_limited(reason, &received.id, received.at));
    }
    let fault = match received.fault() {
        Ok(given) => given
            .or_else(|| app.faults.take(method, path))
            .or_else(|| app.faults.chaos.take(method, path, &endpoint)),
        Err(error) => return Reply::Answer(failure(&error, &received.id, received.at)),
    };
    let outcome = fault.as_ref().map(|fault| fault.outcome.clone()).unwrap_or_default();
    let result = match &outcome {
        Outcome::Error(failure) => {
            app.faults.wait_for(fault.as_ref()).await;
            return Reply::Answer(planned_failure(failure, &received.id, received.at));
        }
        Outcome::Drop { effect: false } => {
            app.faults.wait_for(fault.as_ref()).await;
            return Reply::Nothing;
        }
        outcome => answer(app, received, fault.as_ref(), outcome).await,
    };
    match outcome {
        Outcome::Drop { .. } => Reply::Nothing,
        _ => Reply::Answer(result.unwrap_or_else(|error| failure(&error, &received.id, received.at))),
    }
}

async fn answer(
    app: &App,
    received: &Received,
    fault: Option<&Fault>,
    outcome: &Outcome,
) -> Result<Answer, ApiError> {
    let api_key = auth::authenticate(&received.headers, app.secret_key.as_ref())?;
    received.check_version()?;
    received.check_content_type()?;
    let pairs = brackets::pairs(&received.query, &received.body);
    let mut params = Params::parse(&pairs)?;
    let paths = params.texts("expand")?;
    let in_use = match received.idempotency_key()? {
        Some(key) => Some(app.keys_in_use.acquire(idempotency::slot(&api_key, key)?)?),
        None => None,
    };
    let fingerprint = brackets::fingerprint(&received.method, &received.path, &pairs);
    if let Some(in_use) = &in_use
        && let Some(replay) = stored_answer(app, &in_use.slot, &fingerprint).await?
    {
        return Ok(replay);
    }
    app.faults.wait_for(fault).await;

    let keep = in_use.as_ref().map(|in_use| (in_use.slot.clone(), fingerprint));
    let cause = Cause {
        request_id: received.id.clone(),
        idempotency_key: received.idempotency_key()?.map(str::to_owned),
        host: received.host(),
    };
    let mut store = app.store.lock().await;
    let now = app.now(&store);
    let done = store.catch_up(now).and_then(|()| {
        store.transact(now, Some(&cause), |tx| execute(tx, received, params, &paths, keep, outcome))
    });
    app.wake_if_due(&store, now);
    drop(store);
    done.unwrap_or_else(|error| {
        tracing::error!(%error, "the journal could not be written");
        Err(ApiError::internal("The journal could not be written; nothing has changed."))
    })
}

/// The answer kept for the key, if there is one.
async fn stored_answer(app: &App, slot: &KeySlot, fingerprint: &str) -> Result<Option<Answer>, ApiError> {
    let mut store = app.store.lock().await;
    let now = app.now(&store);
    store.state.prune_answers(now);
    let Some(stored) = store.state.answer(slot) else {
        return Ok(None);
    };
    idempotency::check_same_request(stored, fingerprint)?;
    let mut answer = Answer {
        status: StatusCode::from_u16(stored.status).unwrap_or(StatusCode::OK),
        body: stored.body.clone(),
        headers: vec![(IDEMPOTENT_REPLAYED, HeaderValue::from_static("true"))],
    };
    answer.headers.extend(header_value(&stored.request_id).map(|id| (ORIGINAL_REQUEST, id)));
    Ok(Some(answer))
}

/// Calls the endpoint and decides what of it stays.
fn execute(
    tx: &mut Tx<'_>,
    received: &Received,
    params: Params,
    paths: &[String],
    keep: Option<(KeySlot, String)>,
    outcome: &Outcome,
) -> (Result<Answer, ApiError>, Ending) {
    let now = tx.common_time();
    let stored = |answer: &Answer| {
        keep.map(|(slot, fingerprint)| StoredAnswer {
            slot,
            fingerprint,
            status: answer.status.as_u16(),
            body: answer.body.clone(),
            request_id: received.id.clone(),
            stored_at: now,
        })
    };
    let result = routes::call(tx, &received.method, &received.path, params)
        .unwrap_or_else(|| Err(received.unknown_url()))
        .and_then(|mut value| {
            expand::expand(tx.state(), &mut value, paths)?;
            Ok(value)
        });
    if let Outcome::StoredError { effect, status } = outcome {
        let answer = failure(&error_of_status(*status), &received.id, now);
        let stored = stored(&answer);
        let committed = *effect && result.is_ok();
        let ending = if committed { Ending::Commit(stored) } else { Ending::RollBack(stored) };
        return (Ok(answer), ending);
    }
    match result {
        Ok(value) => {
            let answer = success(&value);
            let stored = stored(&answer);
            (Ok(answer), Ending::Commit(stored))
        }
        Err(error) if error.executed => {
            let answer = failure(&error, &received.id, now);
            let stored = stored(&answer);
            let ending = if error.keeps { Ending::Commit(stored) } else { Ending::RollBack(stored) };
            (Ok(answer), ending)
        }
        Err(error) => (Err(error), Ending::RollBack(None)),
    }
}

impl Received {
    fn idempotency_key(&self) -> Result<Option<&str>, ApiError> {
        // Only POST takes keys; elsewhere they have no effect.
        let Some(key) = self.headers.get(IDEMPOTENCY_KEY).filter(|_| self.method == "POST") else {
            return Ok(None);
        };
        let key = key.to_str().map_err(|_| refused_unexecuted("The idempotency key is not ASCII."))?;
        Ok(Some(key))
    }

    fn host(&self) -> Option<String> {
        Some(self.headers.get(header::HOST)?.to_str().ok()?.to_owned())
    }

    fn fault(&self) -> Result<Option<Fault>, ApiError> {
        let Some(json) = self.headers.get(SIM_FAULT) else {
            return Ok(None);
        };
        let fault: Fault = serde_json::from_slice(json.as_bytes())
            .map_err(|error| refused_unexecuted(format!("Sim-Fault: {error}")))?;
        fault.check().map_err(|error| refused_unexecuted(format!("Sim-Fault: {error}")))?;
        Ok(Some(fault))
    }

    /// `YYYY-MM-DD`, and a release's name since 2024.
    fn check_version(&self) -> Result<(), ApiError> {
        let Some(version) = self.headers.get(STRIPE_VERSION) else {
            return Ok(());
        };
        let text = version.to_str().unwrap_or("");
        let (date, name) = text.split_once('.').unwrap_or((text, "none"));
        let named = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase());
        if named && chrono::NaiveDate::parse_from_str(date, "%Y-%m-%d").is_ok() {
            return Ok(());
        }
        Err(refused_unexecuted(format!("Invalid Stripe API version: {text}")))
    }

    fn check_content_type(&self) -> Result<(), ApiError> {
        const FORM: &str = "application/x-www-form-urlencoded";
        let given = self.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        match given {
            Some(given) if !given.starts_with(FORM) && !self.body.is_empty() => {
                Err(refused_unexecuted(format!("The body must be {FORM}, not {given}.")))
            }
            _ => Ok(()),
        }
    }

    fn unknown_url(&self) -> ApiError {
        let message = format!("Unrecognized request URL ({}: {}).", self.method, self.path);
        let mut error = refused_unexecuted(message);
        error.status = StatusCode::NOT_FOUND;
        error
    }
}

fn refused_unexecuted(message: impl Into<Box<str>>) -> ApiError {
    ApiError { executed: false, ..ApiError::refused(message) }
}
