//! A customer's server: hears webhooks, verifies them as Standard Webhooks says, answers as it is told.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use hmac::{Hmac, Mac};
use nexus_testkit::settings::ANY_PORT;
use serde_json::Value;
use sha2::Sha256;
use tokio::{
    net::TcpListener,
    sync::{Notify, mpsc},
    task::JoinHandle,
};

/// How it answers a request.
#[derive(Debug, Clone)]
pub(crate) enum Answer {
    Status(u16),
    RetryAfter(u16, u64),
    Redirect(String),
    /// Never.
    Hang,
    /// 204, once it is told to go on.
    Wait,
}

/// A request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Received {
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

/// The server.
pub(crate) struct Receiver {
    pub(crate) address: SocketAddr,
    pub(crate) url: String,
    received: mpsc::UnboundedReceiver<Received>,
    answers: Arc<Mutex<VecDeque<Answer>>>,
    go_on: Arc<Notify>,
    server: JoinHandle<std::io::Result<()>>,
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.server.abort();
    }
}

#[derive(Clone)]
struct Shared {
    heard: mpsc::UnboundedSender<Received>,
    answers: Arc<Mutex<VecDeque<Answer>>>,
    go_on: Arc<Notify>,
}

impl Receiver {
    pub(crate) async fn start() -> Result<Self> {
        Self::start_at(ANY_PORT).await
    }

    pub(crate) async fn start_at(address: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let (heard, received) = mpsc::unbounded_channel();
        let answers = Arc::<Mutex<VecDeque<Answer>>>::default();
        let go_on = Arc::<Notify>::default();
        let shared = Shared { heard, answers: answers.clone(), go_on: go_on.clone() };
        let router = Router::new().fallback(hear).with_state(shared);
        let server = tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(Self { address, url: format!("http://{address}/hook"), received, answers, go_on, server })
    }

    /// The next request that has no answer yet is answered so; without one: 204.
    pub(crate) fn answer(&self, answer: Answer) {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).push_back(answer);
    }

    /// Answers a request that waits for it.
    pub(crate) fn go_on(&self) {
        self.go_on.notify_one();
    }

    /// The next request.
    pub(crate) async fn next(&mut self) -> Result<Received> {
        let received = tokio::time::timeout(Duration::from_secs(60), self.received.recv()).await;
        received.context("no request came")?.context("the receiver has ended")
    }

    /// The requests that came and were not asked for.
    pub(crate) fn rest(&mut self) -> Vec<Received> {
        std::iter::from_fn(|| self.received.try_recv().ok()).collect()
    }
}

async fn hear(State(shared): State<Shared>, headers: HeaderMap, body: Bytes) -> Response {
    let body = String::from_utf8_lossy(&body).into_owned();
    // The test may have ended.
    drop(shared.heard.send(Received { headers, body }));
    let answer = shared.answers.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    let status = |code: u16| StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    match answer.unwrap_or(Answer::Status(204)) {
        Answer::Status(code) => status(code).into_response(),
        Answer::RetryAfter(code, seconds) => {
            (status(code), [(header::RETRY_AFTER, seconds.to_string())]).into_response()
        }
        Answer::Redirect(to) => (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, to)]).into_response(),
        Answer::Hang => std::future::pending().await,
        Answer::Wait => {
            shared.go_on.notified().await;
            StatusCode::NO_CONTENT.into_response()
        }
    }
}

impl Received {
    pub(crate) fn header(&self, name: &str) -> Result<&str> {
        Ok(self.headers.get(name).with_context(|| format!("no header {name}"))?.to_str()?)
    }

    pub(crate) fn id(&self) -> Result<String> {
        Ok(self.header("webhook-id")?.to_owned())
    }

    pub(crate) fn json(&self) -> Result<Value> {
        Ok(serde_json::from_str(&self.body)?)
    }

    /// How many of the signatures are by this secret, of a request that is not older than five minutes.
    pub(crate) fn signed_by(&self, secret: &str) -> Result<usize> {
        let key = BASE64.decode(secret.strip_prefix("whsec_").context("whsec_")?)?;
        let timestamp: i64 = self.header("webhook-timestamp")?.parse()?;
        ensure!((chrono::Utc::now().timestamp() - timestamp).abs() < 300, "an old request");
        let mut mac = Hmac::<Sha256>::new_from_slice(&key)?;
        let id = self.header("webhook-id")?;
        mac.update(format!("{id}.{timestamp}.{}", self.body).as_bytes());
        let mut good = 0;
        for signature in self.header("webhook-signature")?.split(' ') {
            let (version, signature) = signature.split_once(',').context("a version")?;
            ensure!(version == "v1", "a signature of the version {version}");
            good += usize::from(mac.clone().verify_slice(&BASE64.decode(signature)?).is_ok());
        }
        Ok(good)
    }
}
