//! A small stateful Stripe over HTTP, for development, demos and fault tests.
//!
//! It answers the part of Stripe's v1 API that billing needs, in the JSON form of API version
//! `2026-09-30.endive`, and lets a test break it on purpose. README.md lists, point by point,
//! which documented behaviour is here and which is not.
//!
//! The map, in the order a request passes through:
//!
//! - [`serve`] wires everything; [`Config`] is what can be set.
//! - `connection`: accepts connections that a fault can cut without an answer.
//! - `http`: the way of a request. `api` drives it (authentication, faults, idempotency key,
//!   execution, headers), `brackets` and `forms` read parameters, `routes` finds the endpoint,
//!   `lists` pages, `expand` expands, `answer` and `error` are what goes back, `log` remembers
//!   the requests, `admin` is the `/_sim` part.
//! - `objects`: one file or folder per resource: what is kept of it, its rules, its JSON form.
//! - `state`: all objects and stored answers, and what falls due when; `tx`: transactions over them.
//! - `store`: the state with its ids and journal; one transaction is one journal line.
//! - `journal`: the file that lets the state survive a restart.
//! - `faults`: what goes wrong, when, and the requests held back by a test; `chaos`: what goes
//!   wrong by seed; `limits`: how many requests a second are taken.
//! - `clock`: the time, which can be moved; `deliver`: what happens by itself as it passes, and
//!   the webhooks.

mod chance;
mod chaos;
mod clock;
mod config;
mod connection;
mod deliver;
mod error;
mod faults;
mod http;
mod ids;
mod journal;
mod limits;
mod objects;
mod state;
mod store;
mod tx;

use std::sync::Arc;

use axum::serve::ListenerExt as _;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use crate::config::{Config, SecretKey, SecretKeyError, WebhookSecret};
pub use crate::error::Error;

use crate::clock::Clock;
use crate::connection::{CuttableListener, Link};
use crate::deliver::Sender;
use crate::http::App;
use crate::ids::Ids;
use crate::store::Store;

/// Serves the stand-in Stripe on `listener` until `shutdown` is cancelled, then finishes the
/// requests under way (held and delayed ones continue at once).
///
/// # Errors
/// When the journal cannot be opened or read, or the listener fails.
pub async fn serve(config: Config, listener: TcpListener, shutdown: CancellationToken) -> Result<(), Error> {
    let ids = Ids::new(StdRng::from_os_rng());
    let store = Store::open(config.data.as_deref(), ids)?;
    let clock = Clock::new(|| chrono::Utc::now().timestamp_millis());
    let app = Arc::new(App::new(config.secret_key, clock, store, Sender::new(), shutdown.clone()));
    let secret = config.webhook_secret.as_ref().and_then(WebhookSecret::expose);
    if let Some((url, secret)) = config.webhook_url.zip(secret) {
        app.send_webhooks_to(url, secret.to_owned(), config.webhook_events).await.map_err(Error::Write)?;
    }
    let listener = CuttableListener::new(listener.tap_io(|stream| {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY could not be set");
        }
    }));
    let webhooks = tokio::spawn(deliver::run(Arc::clone(&app)));
    let served = axum::serve(listener, http::router(app).into_make_service_with_connect_info::<Link>())
        .with_graceful_shutdown(shutdown.clone().cancelled_owned())
        .await;
    // A listener that failed leaves nothing to send webhooks about.
    shutdown.cancel();
    webhooks.await.map_err(Error::Panicked)?;
    served.map_err(Error::Serve)
}
