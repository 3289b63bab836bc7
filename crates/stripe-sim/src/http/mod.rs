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
mod routes;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use tokio_util::sync::CancellationToken;

use crate::config::SecretKey;
use crate::faults::Faults;
use crate::http::idempotency::KeysInUse;
use crate::http::log::RequestLog;
use crate::store::Store;

/// What all requests share.
pub(crate) struct App {
    secret_key: Option<SecretKey>,
    /// The real time, in Unix seconds; [`App::now`] is ahead of it by what a test asked for.
    wall_clock: fn() -> i64,
    store: tokio::sync::Mutex<Store>,
    faults: Faults,
    keys_in_use: KeysInUse,
    log: RequestLog,
}

impl App {
    pub(crate) fn new(
        secret_key: Option<SecretKey>,
        wall_clock: fn() -> i64,
        store: Store,
        shutdown: CancellationToken,
    ) -> Self {
        Self {
            secret_key,
            wall_clock,
            store: tokio::sync::Mutex::new(store),
            faults: Faults::new(shutdown),
            keys_in_use: KeysInUse::default(),
            log: RequestLog::new(),
        }
    }

    fn now(&self, store: &Store) -> i64 {
        (self.wall_clock)() + store.state.clock_advance
    }
}

pub(crate) fn router(app: Arc<App>) -> Router {
    Router::new().nest("/_sim", admin::router()).fallback(api::handle).with_state(app)
}

/// Locks a mutex whose short critical sections leave it sound even if one panics.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
