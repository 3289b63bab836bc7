//! The way of a request.

mod admin;
mod answer;
mod api;
mod auth;
mod brackets;
pub(crate) mod error;
mod expand;
pub(crate) mod forms;
mod idempotency;
pub(crate) mod lists;
mod log;
mod page;
mod routes;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use serde_json::Value;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::config::SecretKey;
use crate::deliver::{self, Sender};
use crate::faults::Faults;
use crate::http::error::ApiError;
use crate::http::idempotency::KeysInUse;
use crate::http::log::RequestLog;
use crate::limits::Limits;
use crate::objects::webhooks;
use crate::store::{Ending, Store};
use crate::tx::Tx;

/// The version whose form the answers and events have.
pub(crate) const API_VERSION: &str = "2026-09-30.endive";

/// What all requests share.
pub(crate) struct App {
    secret_key: Option<SecretKey>,
    pub(crate) clock: Clock,
    pub(crate) store: tokio::sync::Mutex<Store>,
    pub(crate) faults: Faults,
    limits: Limits,
    pub(crate) sender: Sender,
    /// Says that there are webhooks to send.
    pub(crate) wake: Notify,
    /// One move of the clock at a time.
    moving: tokio::sync::Mutex<()>,
    keys_in_use: KeysInUse,
    log: RequestLog,
}

impl App {
    pub(crate) fn new(
        secret_key: Option<SecretKey>,
        clock: Clock,
        store: Store,
        sender: Sender,
        shutdown: CancellationToken,
    ) -> Self {
        Self {
            secret_key,
            clock,
            store: tokio::sync::Mutex::new(store),
            faults: Faults::new(shutdown),
            limits: Limits::default(),
            sender,
            wake: Notify::new(),
            moving: tokio::sync::Mutex::default(),
            keys_in_use: KeysInUse::default(),
            log: RequestLog::new(),
        }
    }

    pub(crate) fn now(&self, store: &Store) -> i64 {
        self.clock.millis(store.state.clock_advance).div_euclid(1000)
    }

    /// Lets happen what is due by now.
    pub(crate) async fn catch_up(&self) -> io::Result<()> {
        let mut store = self.store.lock().await;
        let now = self.now(&store);
        store.catch_up(now)
    }

    /// Changes objects as a request would, by the time of the object of that id, if there is one.
    async fn change(
        &self,
        id: Option<&str>,
        work: impl FnOnce(&mut Tx<'_>) -> Result<Value, ApiError>,
    ) -> io::Result<Result<Value, ApiError>> {
        let mut store = self.store.lock().await;
        let now = self.now(&store);
        store.catch_up(now)?;
        let result = store.transact(now, None, |tx| {
            let state = tx.state();
            let clock = id.and_then(|id| state.find(id)).and_then(|object| state.clock_of(object));
            tx.go_by(clock.as_deref());
            match work(tx) {
                Ok(value) => (Ok(value), Ending::Commit(None)),
                Err(error) => (Err(error), Ending::RollBack(None)),
            }
        });
        self.wake_if_due(&store, now);
        result
    }

    /// From now on events of these types go to the URL that was configured, and no longer to the one before it.
    pub(crate) async fn send_webhooks_to(
        &self,
        url: String,
        secret: String,
        events: Vec<String>,
    ) -> io::Result<()> {
        let mut store = self.store.lock().await;
        let now = self.now(&store);
        store.transact(now, None, |tx| {
            webhooks::configure(tx, url, secret, events);
            ((), Ending::Commit(None))
        })
    }

    /// Has the webhooks sent that are due.
    fn wake_if_due(&self, store: &Store, now: i64) {
        if store.state.next_delivery().is_some_and(|at| at <= now) {
            self.wake.notify_one();
        }
    }

    /// Moves the clock to a time, from one thing that falls due to the next: each happens at its
    /// own time, and the webhooks it leads to are tried before the next.
    async fn move_clock(&self, target: impl FnOnce(i64) -> i64) -> io::Result<()> {
        let _one = self.moving.lock().await;
        let target = {
            let store = self.store.lock().await;
            target(self.now(&store))
        };
        loop {
            self.catch_up().await?;
            deliver::send_due(self).await?;
            let mut store = self.store.lock().await;
            let now = self.now(&store);
            if now >= target || self.faults.is_shutting_down() {
                return Ok(());
            }
            let next = [store.state.next_due(None), store.state.next_delivery()].into_iter().flatten().min();
            let step = next.unwrap_or(target).min(target) - now;
            if step > 0 {
                store.advance_clock(step)?;
            }
        }
    }
}

pub(crate) fn router(app: Arc<App>) -> Router {
    let people = page::router();
    Router::new().nest("/_sim", admin::router()).merge(people).fallback(api::handle).with_state(app)
}

/// Locks a mutex whose short critical sections leave it sound even if one panics.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
