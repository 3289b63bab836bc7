//! What can go wrong, by meaning, and the answer each is.
//!
//! The body is `{"error": "<short>", …}`; for a client that asks for it the same members come as a
//! problem of RFC 9457 (see [`problem`]).

use std::time::Duration;

use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use http::{
    HeaderMap, HeaderValue, StatusCode,
    header::{RETRY_AFTER, WWW_AUTHENTICATE},
};
use nexus_client::guard::RefusalReason;
use nexus_core::text::thousands;
use nexus_kit::{
    auth::AuthConfigError,
    serve::ServeError,
    status::RETRY_SOON,
    validate::{Violation, Violations},
};
use serde_json::json;

use crate::{
    format,
    problem::{self, Members},
};

/// Where an account's owner gets a larger plan.
const UPGRADE_URL: &str = "/dashboard/billing";

/// Why the gateway could not start or serve.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Auth(#[from] AuthConfigError),
    #[error("{variable} (--{flag}): {error}")]
    Address { variable: &'static str, flag: &'static str, error: nexus_client::ClientError },
    #[error("the identity provider: {0}")]
    Oidc(String),
    #[error("the tracker of calls: {0}")]
    Tracker(#[from] nexus_client::BuildError),
    #[error(transparent)]
    Serve(#[from] ServeError),
}

/// A hard limit is reached, or a spend cap.
#[derive(Debug)]
pub struct LimitExceeded {
    /// Which of the two.
    pub reason: RefusalReason,
    /// Units consumed in the period.
    pub current_usage: i64,
    /// Units included in it, or those that the spend cap allows.
    pub limit: i64,
    /// When it ends.
    pub period_end: DateTime<Utc>,
    /// Quota headers and `Retry-After`.
    pub headers: HeaderMap,
}

/// Credentials a route takes, for `WWW-Authenticate`.
#[derive(Debug, Clone, Copy)]
pub enum Scheme {
    /// `Bearer`
    Bearer,
    /// `ApiKey`
    ApiKey,
}

/// Why a request is not answered as its sender wished.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("bad request: {0}")]
    BadRequest(#[from] Violations),
    #[error("credentials are missing or bad")]
    Unauthorized,
    #[error("the API key is missing")]
    MissingApiKey,
    #[error("the API key is bad")]
    InvalidApiKey,
    #[error("CRON_SECRET is not configured")]
    NoCronSecret,
    #[error("STRIPE_WEBHOOK_SECRET is not configured")]
    NoWebhookSecret,
    #[error("not an admin")]
    Forbidden,
    #[error("the account is closed")]
    AccountClosed,
    #[error("the API key is revoked")]
    ApiKeyRevoked,
    #[error("too many old secrets of the API key are valid")]
    TooManySecrets,
    #[error("the account has no subscription at Stripe")]
    NoSubscription,
    #[error("the account has a subscription at Stripe already")]
    AlreadySubscribed,
    #[error("a plan that is paid for begins with a checkout")]
    CheckoutRequired,
    #[error("another change of the subscription came after this request")]
    ChangeSuperseded,
    #[error("the plan has no price at Stripe")]
    NotForSale,
    #[error("what the charge was computed from is not kept")]
    ExplanationNotKept,
    /// More requests a second than the caller may send.
    #[error("the caller sends too many requests a second")]
    TooFast { retry: Duration },
    /// As much was done within 24 hours as may be; the reason is for the log.
    #[error("{reason}")]
    TooMany { retry: Duration, reason: String },
    /// Why is for the log.
    #[error("{0}")]
    PaymentRefused(String),
    #[error("the database was restored or failed over, and must be reconciled with Stripe")]
    ReconcileRequired,
    #[error("{0}")]
    NotFound(&'static str),
    #[error("the method is not allowed")]
    MethodNotAllowed,
    #[error("the body is too large")]
    PayloadTooLarge,
    #[error("the body is of another type: {0} is expected")]
    UnsupportedMediaType(&'static str),
    #[error("path and query are too long")]
    UriTooLong,
    #[error("the headers are too large or too many")]
    HeadersTooLarge,
    #[error("over the limit")]
    LimitExceeded(Box<LimitExceeded>),
    /// A service is away, or we are overloaded; `reason` is for the log.
    #[error("{reason}")]
    Unavailable { retry: Duration, reason: String },
    /// A service is there, and has as much to do as it can, which may be because of who asks; `reason` is for the log.
    #[error("{reason}")]
    Overloaded { retry: Duration, reason: String },
    /// Our own fault; the text is for the log.
    #[error("{0}")]
    Internal(String),
}

impl Error {
    /// Try again in a moment; the reason is for the log.
    pub fn unavailable(reason: &str) -> Self {
        Error::Unavailable { retry: RETRY_SOON, reason: reason.to_owned() }
    }

    /// Status and short text.
    fn kind(&self) -> (StatusCode, &'static str) {
        match self {
            Error::BadRequest(_) => (StatusCode::BAD_REQUEST, "Bad request"),
            Error::Unauthorized => (StatusCode::UNAUTHORIZED, "Unauthorized"),
            Error::MissingApiKey => (StatusCode::UNAUTHORIZED, "Missing API key"),
            Error::InvalidApiKey => (StatusCode::UNAUTHORIZED, "Invalid API key"),
            Error::NoCronSecret => (StatusCode::INTERNAL_SERVER_ERROR, "CRON_SECRET not configured"),
            Error::NoWebhookSecret => {
                (StatusCode::INTERNAL_SERVER_ERROR, "STRIPE_WEBHOOK_SECRET not configured")
            }
            Error::Forbidden => (StatusCode::FORBIDDEN, "Forbidden"),
            Error::AccountClosed => (StatusCode::FORBIDDEN, "Account closed"),
            Error::ApiKeyRevoked => (StatusCode::CONFLICT, "API key revoked"),
            Error::TooManySecrets => (StatusCode::CONFLICT, "Too many secrets in grace"),
            Error::NoSubscription => (StatusCode::CONFLICT, "No subscription"),
            Error::AlreadySubscribed => (StatusCode::CONFLICT, "Already subscribed"),
            Error::CheckoutRequired => (StatusCode::CONFLICT, "Checkout required"),
            Error::ChangeSuperseded => (StatusCode::CONFLICT, "Change superseded"),
            Error::NotForSale => (StatusCode::CONFLICT, "Plan not for sale"),
            Error::ExplanationNotKept => (StatusCode::CONFLICT, "Explanation not kept"),
            Error::TooFast { .. } | Error::TooMany { .. } => {
                (StatusCode::TOO_MANY_REQUESTS, "Too many requests")
            }
            Error::PaymentRefused(_) => (StatusCode::PAYMENT_REQUIRED, "Payment refused"),
            Error::ReconcileRequired => (StatusCode::CONFLICT, "Reconciliation required"),
            Error::NotFound(what) => (StatusCode::NOT_FOUND, what),
            Error::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, "Method not allowed"),
            Error::PayloadTooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "Payload too large"),
            Error::UnsupportedMediaType(_) => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "Unsupported media type"),
            Error::UriTooLong => (StatusCode::URI_TOO_LONG, "URI too long"),
            Error::HeadersTooLarge => {
                (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "Request header fields too large")
            }
            Error::LimitExceeded(_) => (StatusCode::TOO_MANY_REQUESTS, "API limit exceeded"),
            Error::Unavailable { .. } | Error::Overloaded { .. } => {
                (StatusCode::SERVICE_UNAVAILABLE, "Service unavailable")
            }
            Error::Internal(_) => (StatusCode::INTERNAL_SERVER_ERROR, "Internal server error"),
        }
    }

    /// Members of the body beside `error`.
    fn members(&self) -> Members {
        match self {
            Error::BadRequest(violations) => bad_request(&violations.0),
            Error::LimitExceeded(over) => vec![
                ("message", used_up(over).into()),
                ("reason", over.reason.as_str().into()),
                ("current_usage", over.current_usage.into()),
                ("limit", over.limit.into()),
                ("period_end", format::time(over.period_end).into()),
                ("upgrade_url", UPGRADE_URL.into()),
            ],
            Error::TooManySecrets => {
                vec![("message", "Wait until one has ended, or rotate with \"grace_period_ms\": 0.".into())]
            }
            Error::NoSubscription => {
                vec![("message", "There is no subscription that could be changed. It begins with a checkout.".into())]
            }
            Error::AlreadySubscribed => {
                vec![("message", "There is a subscription already: change its plan.".into())]
            }
            Error::ExplanationNotKept => vec![(
                "message",
                "What the charge was computed from was not kept.".into(),
            )],
            Error::TooFast { .. } => vec![(
                "message",
                "You send more requests than you may. Wait for as long as Retry-After says, and send fewer a second.".into(),
            )],
            Error::PayloadTooLarge => {
                vec![("message", "A body may have 32768 bytes at most, a webhook's 1048576.".into())]
            }
            Error::UnsupportedMediaType(expected) => {
                vec![("message", format!("Content-Type must be {expected}.").into())]
            }
            Error::UriTooLong => vec![("message", "Path and query may have 8192 bytes at most.".into())],
            Error::HeadersTooLarge => {
                vec![("message", "There may be 100 headers at most, with 32768 bytes together.".into())]
            }
            Error::CheckoutRequired => {
                vec![("message", "This plan begins with a checkout.".into())]
            }
            Error::TooMany { .. } => {
                vec![("message", "As much of this was done within 24 hours as may be. Try again later.".into())]
            }
            Error::ReconcileRequired => vec![(
                "message",
                "The database was restored or failed over. Nothing is charged until `nexus reconcile` has found that the ledger agrees with Stripe.".into(),
            )],
            _ => Vec::new(),
        }
    }

    fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        match self {
            Error::Unauthorized => challenge(&mut headers, Scheme::Bearer),
            Error::MissingApiKey | Error::InvalidApiKey => challenge(&mut headers, Scheme::ApiKey),
            Error::LimitExceeded(over) => headers = over.headers.clone(),
            Error::Unavailable { retry, .. }
            | Error::Overloaded { retry, .. }
            | Error::TooMany { retry, .. }
            | Error::TooFast { retry } => {
                headers.insert(RETRY_AFTER, HeaderValue::from(format::seconds_up(*retry).max(1)));
            }
            _ => {}
        }
        headers
    }
}

fn used_up(over: &LimitExceeded) -> String {
    let calls = thousands(over.limit);
    match over.reason {
        RefusalReason::PlanLimit => format!(
            "All {calls} API calls of this billing period are used. Upgrade the plan to make more calls now."
        ),
        RefusalReason::SpendCap => format!(
            "The spend cap is reached: all {calls} API calls that it allows in this billing period are used. Raise or remove the cap to make more calls now."
        ),
    }
}

fn challenge(headers: &mut HeaderMap, scheme: Scheme) {
    let value = match scheme {
        Scheme::Bearer => r#"Bearer realm="nexus""#,
        Scheme::ApiKey => r#"ApiKey realm="nexus""#,
    };
    headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static(value));
}

/// The first violation, as clients know it, and all of them.
fn bad_request(violations: &[Violation]) -> Members {
    let all: Vec<_> = violations.iter().map(|v| json!({"field": v.field, "message": v.message})).collect();
    let first = violations.first();
    first
        .into_iter()
        .flat_map(|v| [("field", v.field.as_str().into()), ("message", v.message.as_str().into())])
        .chain([("violations", all.into())])
        .collect()
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let (status, error) = self.kind();
        let mut response = problem::answer(problem::Failure {
            status,
            error,
            members: self.members(),
            reason: self.to_string(),
        });
        response.headers_mut().extend(self.headers());
        response
    }
}
