//! What goes wrong, when, and the requests a test holds back.

use std::sync::Mutex;
use std::time::Duration;

use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::chaos::Reign;
use crate::http::error::ApiError;
use crate::http::lock;

/// A fault, as `POST /_sim/faults` and the `Sim-Fault` request header have it. By the header it
/// strikes that request; else the next `times` requests of that method and path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Fault {
    /// All methods, if absent.
    #[serde(default)]
    method: Option<String>,
    /// A path such as `/v1/invoiceitems`, or a prefix that ends in `*`; all paths, if absent.
    #[serde(default)]
    path: Option<String>,
    #[serde(default = "once")]
    times: u32,
    /// How long the request waits before it is executed (its idempotency key is in use meanwhile).
    #[serde(default)]
    delay_ms: u64,
    /// Whether it waits until `POST /_sim/release`.
    #[serde(default)]
    hold: bool,
    #[serde(default)]
    pub(crate) outcome: Outcome,
}

/// What becomes of the request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Outcome {
    /// It is executed and answered as ever.
    #[default]
    Normal,
    /// It is answered with an error before it is executed; nothing is stored under its key.
    Error(Failure),
    /// It is answered with an error that is stored under its key; with `effect`, it was executed.
    StoredError {
        #[serde(default)]
        effect: bool,
        #[serde(default = "internal_server_error")]
        status: u16,
    },
    /// The connection is closed without an answer; with `effect` (the default), it was executed.
    Drop {
        #[serde(default = "yes")]
        effect: bool,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Failure {
    status: u16,
    #[serde(default, rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    code: Option<String>,
    #[serde(default)]
    message: Option<String>,
    /// The value of the `Retry-After` header, in seconds.
    #[serde(default)]
    pub(crate) retry_after: Option<u32>,
    /// The value of the `Stripe-Should-Retry` header.
    #[serde(default)]
    pub(crate) should_retry: Option<bool>,
}

fn once() -> u32 {
    1
}

fn yes() -> bool {
    true
}

fn internal_server_error() -> u16 {
    500
}

impl Fault {
    /// # Errors
    /// When a status is no HTTP error status.
    pub(crate) fn check(&self) -> Result<(), String> {
        match &self.outcome {
            Outcome::Error(Failure { status, .. }) | Outcome::StoredError { status, .. }
                if !(400..600).contains(status) =>
            {
                Err(format!("outcome.status: {status} is not between 400 and 599"))
            }
            _ => Ok(()),
        }
    }

    fn strikes(&self, method: &str, path: &str) -> bool {
        strikes(self.method.as_deref(), self.path.as_deref(), method, path)
    }

    /// A fault that chance has put on a request.
    pub(crate) fn of_chaos(outcome: Outcome, delay_ms: u64) -> Self {
        Self { method: None, path: None, times: 1, delay_ms, hold: false, outcome }
    }
}

/// Whether a request is of the method and the path, or the path's prefix, that are wanted.
pub(crate) fn strikes(
    wanted_method: Option<&str>,
    wanted_path: Option<&str>,
    method: &str,
    path: &str,
) -> bool {
    let same_path = wanted_path.is_none_or(|wanted| match wanted.strip_suffix('*') {
        Some(prefix) => path.starts_with(prefix),
        None => path == wanted,
    });
    same_path && wanted_method.is_none_or(|wanted| wanted.eq_ignore_ascii_case(method))
}

impl Failure {
    pub(crate) fn new(status: u16, code: Option<&str>) -> Self {
        Self {
            status,
            kind: None,
            code: code.map(str::to_owned),
            message: None,
            retry_after: None,
            should_retry: None,
        }
    }

    pub(crate) fn error(&self) -> ApiError {
        let mut error = error_of_status(self.status);
        if let Some(kind) = &self.kind {
            error.kind = kind.as_str().into();
        }
        if let Some(code) = &self.code {
            error = error.code(code);
            if code == LOCK_TIMEOUT {
                error.message = IN_USE.into();
            }
        }
        if let Some(message) = &self.message {
            error.message = message.as_str().into();
        }
        error
    }
}

/// 409 or 429.
pub(crate) const LOCK_TIMEOUT: &str = "lock_timeout";
const IN_USE: &str = "Another request is using this object.";

/// What Stripe most often answers with that status.
pub(crate) fn error_of_status(status: u16) -> ApiError {
    let http = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let invalid = |message| ApiError::new(http, "invalid_request_error", message);
    match status {
        402 => ApiError::card_declined(),
        409 => invalid(IN_USE).code(LOCK_TIMEOUT),
        429 => invalid("Too many requests in too short a time.").code("rate_limit"),
        500.. => ApiError::new(http, "api_error", "Something went wrong on the server's side."),
        _ => invalid("The request was refused by a fault."),
    }
}

/// The faults to come, and the gate at which held requests wait.
pub(crate) struct Faults {
    coming: Mutex<Vec<Fault>>,
    pub(crate) chaos: Reign,
    /// How often the gate was opened.
    releases: watch::Sender<u64>,
    held: watch::Sender<usize>,
    shutdown: CancellationToken,
}

impl Faults {
    pub(crate) fn new(shutdown: CancellationToken) -> Self {
        Self {
            coming: Mutex::default(),
            chaos: Reign::default(),
            releases: watch::Sender::new(0),
            held: watch::Sender::new(0),
            shutdown,
        }
    }

    pub(crate) fn add(&self, fault: Fault) {
        lock(&self.coming).push(fault);
    }

    pub(crate) fn clear(&self) {
        lock(&self.coming).clear();
    }

    pub(crate) fn coming(&self) -> Vec<Fault> {
        lock(&self.coming).clone()
    }

    /// The first fault that strikes the request; one of its times is used up.
    pub(crate) fn take(&self, method: &str, path: &str) -> Option<Fault> {
        let mut coming = lock(&self.coming);
        coming.retain(|fault| fault.times > 0);
        let fault = coming.iter_mut().find(|fault| fault.strikes(method, path))?;
        fault.times -= 1;
        Some(fault.clone())
    }

    /// Waits as the fault says, if there is one; a shutdown ends every waiting.
    pub(crate) async fn wait_for(&self, fault: Option<&Fault>) {
        let Some(fault) = fault else { return };
        if fault.hold {
            let mut releases = self.releases.subscribe();
            self.held.send_modify(|held| *held += 1);
            tokio::select! {
                // The sender lives in `self`, so only a release ends this.
                _ = releases.changed() => {}
                () = self.shutdown.cancelled() => {}
            }
            self.held.send_modify(|held| *held -= 1);
        }
        if fault.delay_ms > 0 {
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(fault.delay_ms)) => {}
                () = self.shutdown.cancelled() => {}
            }
        }
    }

    pub(crate) fn is_shutting_down(&self) -> bool {
        self.shutdown.is_cancelled()
    }

    pub(crate) async fn shutdown(&self) {
        self.shutdown.cancelled().await;
    }

    /// Lets all held requests go on.
    pub(crate) fn release(&self) {
        self.releases.send_modify(|releases| *releases += 1);
    }

    /// Waits until that many requests are held, and says how many are.
    pub(crate) async fn until_held(&self, at_least: usize) -> usize {
        let mut held = self.held.subscribe();
        tokio::select! {
            // The sender lives in `self`, so this ends only when there are enough.
            result = held.wait_for(|held| *held >= at_least) => result.map_or(0, |held| *held),
            () = self.shutdown.cancelled() => *self.held.borrow(),
        }
    }
}
