//! Webhooks: events go to their endpoints, signed, until they are taken or given up.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::http::{Request, StatusCode, header};
use bytes::Bytes;
use hmac::digest::InvalidLength;
use hmac::{Hmac, Mac as _};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use sha2::Sha256;

use crate::http::App;
use crate::objects::Resource as _;
use crate::objects::events::{self, Event};
use crate::objects::webhooks::WebhookEndpoint;
use crate::state::State;
use crate::store::Ending;

/// How long an endpoint may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often the time is looked at when nothing is asked of the stand-in.
const TICK: Duration = Duration::from_millis(250);

pub(crate) struct Sender {
    http: Client<HttpConnector, Full<Bytes>>,
    /// One batch at a time, so that nothing is sent twice by accident.
    one: tokio::sync::Mutex<()>,
}

/// One event for one endpoint.
struct Attempt {
    event: String,
    endpoint: String,
    /// None, when the endpoint is gone.
    target: Option<Target>,
    body: String,
}

struct Target {
    url: String,
    secret: String,
}

impl Sender {
    pub(crate) fn new() -> Self {
        let http = Client::builder(TokioExecutor::new()).build(HttpConnector::new());
        Self { http, one: tokio::sync::Mutex::default() }
    }
}

/// Lets happen what falls due as time passes, and sends the webhooks, until the shutdown.
pub(crate) async fn run(app: Arc<App>) {
    loop {
        if let Err(error) = app.catch_up().await {
            tracing::error!(%error, "the journal could not be written");
        }
        if let Err(error) = send_due(&app).await {
            tracing::error!(%error, "the journal could not be written");
        }
        tokio::select! {
            () = app.faults.shutdown() => return,
            () = app.wake.notified() => {}
            () = tokio::time::sleep(TICK) => {}
        }
    }
}

/// Sends the webhooks that are due, and those that come up meanwhile.
///
/// # Errors
/// When the journal cannot be written. What was just tried is tried again then.
pub(crate) async fn send_due(app: &App) -> io::Result<()> {
    let _one = app.sender.one.lock().await;
    loop {
        let batch = {
            let store = app.store.lock().await;
            let until = app.now(&store);
            attempts(&store.state, until)
        };
        if batch.is_empty() || !send(app, batch).await? {
            return Ok(());
        }
    }
}

/// Sends all that is still to be sent once, whenever it is due.
///
/// # Errors
/// When the journal cannot be written.
pub(crate) async fn send_all(app: &App) -> io::Result<()> {
    let _one = app.sender.one.lock().await;
    let batch = attempts(&app.store.lock().await.state, i64::MAX);
    send(app, batch).await.map(drop)
}

fn attempts(state: &State, until: i64) -> Vec<Attempt> {
    let of_event = |event: &Event| {
        let body = event.render(state).to_string();
        let targets: Vec<Attempt> = event
            .endpoints(until)
            .map(|endpoint| Attempt {
                event: event.id().to_owned(),
                endpoint: endpoint.to_owned(),
                target: state
                    .get::<WebhookEndpoint>(endpoint)
                    .map(|it| Target { url: it.url.clone(), secret: it.secret.clone() }),
                body: body.clone(),
            })
            .collect();
        targets
    };
    state.due_deliveries(until).flat_map(of_event).collect()
}

/// One after the other, in their order. Says whether all were tried: a shutdown ends it.
async fn send(app: &App, batch: Vec<Attempt>) -> io::Result<bool> {
    for attempt in batch {
        let taken = match &attempt.target {
            None => true,
            Some(target) => tokio::select! {
                () = app.faults.shutdown() => return Ok(false),
                taken = app.sender.send(target, &attempt.body, app.clock.real()) => taken,
            },
        };
        let mut store = app.store.lock().await;
        let now = app.now(&store);
        store.transact(now, None, |tx| {
            events::note_attempt(tx, &attempt.event, &attempt.endpoint, taken);
            ((), Ending::Commit(None))
        })?;
    }
    Ok(true)
}

impl Sender {
    /// Whether the endpoint took it.
    async fn send(&self, target: &Target, body: &str, at: i64) -> bool {
        match tokio::time::timeout(PATIENCE, self.post(target, body, at)).await {
            Ok(Ok(status)) if status.is_success() => return true,
            Ok(Ok(status)) => tracing::debug!(url = target.url, %status, "webhook refused"),
            Ok(Err(error)) => tracing::debug!(url = target.url, %error, "webhook not delivered"),
            Err(_) => tracing::debug!(url = target.url, "webhook not answered in time"),
        }
        false
    }

    async fn post(&self, target: &Target, body: &str, at: i64) -> Result<StatusCode, Undelivered> {
        let request = Request::post(&target.url)
            .header(header::CONTENT_TYPE, "application/json; charset=utf-8")
            .header(header::USER_AGENT, "Stripe/1.0 (stripe-sim)")
            .header("Stripe-Signature", signature(&target.secret, at, body)?)
            .body(Full::new(Bytes::from(body.to_owned())))?;
        let response = self.http.request(request).await?;
        let status = response.status();
        // Read to its end, so that the connection can be used again.
        response.into_body().collect().await?;
        Ok(status)
    }
}

#[derive(Debug, thiserror::Error)]
enum Undelivered {
    #[error("the secret: {0}")]
    Secret(#[from] InvalidLength),
    #[error("the request: {0}")]
    Request(#[from] axum::http::Error),
    #[error("the connection: {0}")]
    Connection(#[from] hyper_util::client::legacy::Error),
    #[error("the answer: {0}")]
    Answer(#[from] hyper::Error),
}

/// `t` is the real time: receivers compare it with theirs.
fn signature(secret: &str, at: i64, body: &str) -> Result<String, InvalidLength> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes())?;
    mac.update(format!("{at}.{body}").as_bytes());
    Ok(format!("t={at},v1={}", hex::encode(mac.finalize().into_bytes())))
}

#[cfg(test)]
mod tests {
    use super::signature;

    #[test]
    fn a_signature_is_the_hmac_of_time_and_body() {
        // By `printf '1.{}' | openssl dgst -sha256 -hmac whsec_x`.
        assert_eq!(
            signature("whsec_x", 1, "{}").as_deref(),
            Ok("t=1,v1=36ee2f7498f0c1777d1312b2a7361947fe5ad31223be30d0c62421f4ca753401")
        );
    }
}
