//! A receiver of webhooks, which takes or refuses them as told.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

#[derive(Clone)]
pub(crate) struct Received {
    pub(crate) signature: String,
    pub(crate) body: String,
}

impl Received {
    pub(crate) fn event(&self) -> Result<Value> {
        Ok(serde_json::from_str(&self.body)?)
    }
}

struct Inner {
    received: Vec<Received>,
    answer: StatusCode,
}

pub(crate) struct Receiver {
    pub(crate) url: String,
    inner: Arc<Mutex<Inner>>,
    server: JoinHandle<()>,
}

impl Receiver {
    pub(crate) async fn start() -> Result<Self> {
        let inner = Arc::new(Mutex::new(Inner { received: Vec::new(), answer: StatusCode::OK }));
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}/hook", listener.local_addr()?);
        let app = Router::new().route("/hook", post(take)).with_state(Arc::clone(&inner));
        let server = tokio::spawn(async move {
            axum::serve(listener, app).await.expect("a listener does not fail");
        });
        Ok(Self { url, inner, server })
    }

    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn answer_with(&self, status: StatusCode) {
        self.inner().answer = status;
    }

    pub(crate) fn received(&self) -> Vec<Received> {
        self.inner().received.clone()
    }

    /// The ids and types that came, in their order.
    pub(crate) fn events(&self) -> Result<Vec<(String, String)>> {
        let text =
            |event: &Value, field: &str| anyhow::Ok(event[field].as_str().context("a text")?.to_owned());
        self.received()
            .iter()
            .map(|received| {
                let event = received.event()?;
                Ok((text(&event, "id")?, text(&event, "type")?))
            })
            .collect()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn take(State(inner): State<Arc<Mutex<Inner>>>, headers: HeaderMap, body: String) -> StatusCode {
    let signature = headers.get("stripe-signature").and_then(|value| value.to_str().ok()).unwrap_or("");
    let mut inner = inner.lock().unwrap_or_else(PoisonError::into_inner);
    inner.received.push(Received { signature: signature.to_owned(), body });
    inner.answer
}
