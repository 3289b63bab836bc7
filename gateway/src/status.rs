//! What the services' statuses mean over REST. Texts of a service are for the log; what a caller reads is
//! ours.

use std::time::Duration;

use chrono::{DateTime, Utc};
use http::HeaderMap;
use nexus_client::{
    guard::{GuardError, Refused},
    is_transient,
};
use nexus_kit::{
    status::{RETRY_SOON, reason},
    validate::Violations,
};
use rand::Rng;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::error::{Error, LimitExceeded};

/// Whose credentials a call carried, and so whose fault it is when they do not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Credentials {
    /// The user's own.
    User,
    /// The gateway's.
    Gateway,
}

/// When to try again what may be done so often within 24 hours, where the service does not say: it may be possible then.
const RETRY_LATER: Duration = Duration::from_secs(3600);

/// Names of fields over REST that are called otherwise over gRPC.
const FIELDS: [(&str, &str); 11] = [
    ("days_count", "days"),
    ("months_count", "months"),
    ("start_time", "start"),
    ("end_time", "end"),
    // No route but an admin's takes the id of an account, as a part of its path.
    ("eco_id", "id"),
    ("page_size", "limit"),
    ("skip_count", "page"),
    ("query", "q"),
    ("spend_cap_micros", "spend_cap_usd"),
    ("currency_code", "currency"),
    ("payload", "body"),
];

/// The meaning of a status; `not_found` is the text for an unknown thing.
pub fn rest(status: &Status, credentials: Credentials, not_found: &'static str) -> Error {
    if is_transient(status) {
        return unavailable(status);
    }
    match (status.code(), credentials) {
        (Code::FailedPrecondition, _) => match reason(status).as_str() {
            "ACCOUNT_CLOSED" => Error::AccountClosed,
            "API_KEY_REVOKED" => Error::ApiKeyRevoked,
            "TOO_MANY_SECRETS" => Error::TooManySecrets,
            "RECONCILE_REQUIRED" => Error::ReconcileRequired,
            "NO_SUBSCRIPTION" => Error::NoSubscription,
            "ALREADY_SUBSCRIBED" => Error::AlreadySubscribed,
            "CHECKOUT_REQUIRED" => Error::CheckoutRequired,
            "CHANGE_SUPERSEDED" => Error::ChangeSuperseded,
            "NO_PRICE_AT_STRIPE" => Error::NotForSale,
            "TOO_MANY_API_KEYS" | "TOO_MANY_ROTATIONS" => {
                Error::TooMany { retry: RETRY_LATER, reason: describe(status) }
            }
            "BASIS_NOT_KEPT" => Error::ExplanationNotKept,
            "STRIPE_REFUSED" => Error::PaymentRefused(status.message().to_owned()),
            _ => internal(status),
        },
        (Code::ResourceExhausted, Credentials::User) => match retry_info(status) {
            Some(retry) => Error::TooMany { retry, reason: describe(status) },
            None => internal(status),
        },
        (Code::NotFound, _) => Error::NotFound(not_found),
        (Code::Unauthenticated, Credentials::User) => Error::Unauthorized,
        (Code::PermissionDenied, Credentials::User) => Error::Forbidden,
        (Code::InvalidArgument, Credentials::User) => bad_request(status),
        _ => internal(status),
    }
}

/// The meaning of a refusal of `VerifyApiKey`.
pub fn of_api_key(status: &Status) -> Error {
    match reason(status).as_str() {
        "INVALID_API_KEY" => Error::InvalidApiKey,
        _ => rest(status, Credentials::Gateway, "Account not found"),
    }
}

/// The meaning of a refusal of `HandleStripeEvent`: the call is ours, what is in it is the sender's.
pub fn of_webhook(status: &Status) -> Error {
    match (status.code(), reason(status).as_str()) {
        (Code::InvalidArgument, "BAD_SIGNATURE") => {
            let message =
                "must be that of this body, by the endpoint's secret, made within the last five minutes";
            Violations::one("Stripe-Signature", message).into()
        }
        (Code::InvalidArgument, _) => bad_request(status),
        (Code::FailedPrecondition, "NO_WEBHOOK_SECRET") => Error::NoWebhookSecret,
        _ => rest(status, Credentials::Gateway, "Not found"),
    }
}

/// The meaning of a check that came to no decision.
pub fn of_check(error: GuardError) -> Error {
    match error {
        GuardError::Unavailable(reason) => Error::Unavailable { retry: RETRY_SOON, reason },
        GuardError::UnknownAccount(_) => Error::NotFound("Account not found"),
        GuardError::ClosedAccount(_) => Error::AccountClosed,
        GuardError::Failed(reason) => Error::Internal(reason),
    }
}

/// The meaning of a refusal.
pub fn over_limit(refused: &Refused, now: DateTime<Utc>, rng: &mut impl Rng) -> LimitExceeded {
    let mut headers = HeaderMap::new();
    refused.quota.set(&mut headers, now);
    refused.quota.set_retry_after(&mut headers, refused.retry, now, rng);
    LimitExceeded {
        reason: refused.reason,
        current_usage: refused.current_usage,
        limit: refused.quota.limit,
        period_end: refused.quota.period_end,
        headers,
    }
}

fn unavailable(status: &Status) -> Error {
    let retry = retry_info(status).unwrap_or(RETRY_SOON).clamp(RETRY_SOON, Duration::from_secs(60));
    match reason(status).as_str() {
        "OVERLOADED" => Error::Overloaded { retry, reason: describe(status) },
        _ => Error::Unavailable { retry, reason: describe(status) },
    }
}

fn retry_info(status: &Status) -> Option<Duration> {
    status.get_error_details().retry_info().and_then(|info| info.retry_delay)
}

fn internal(status: &Status) -> Error {
    Error::Internal(describe(status))
}

fn describe(status: &Status) -> String {
    format!("{:?} ({}): {}", status.code(), reason(status), status.message())
}

fn bad_request(status: &Status) -> Error {
    let details = status.get_error_details();
    let Some(fields) = details.bad_request() else {
        return internal(status);
    };
    let mut violations = Violations::new();
    for violation in &fields.field_violations {
        let renamed = FIELDS.iter().find(|(theirs, _)| *theirs == violation.field);
        violations
            .add(renamed.map_or(violation.field.as_str(), |(_, ours)| ours), violation.description.as_str());
    }
    Error::BadRequest(violations)
}

#[cfg(test)]
mod tests {
    use nexus_kit::status::{overloaded, unavailable};

    use super::*;

    /// Whoever asks may be why a service is overloaded, and is not why it is away.
    #[test]
    fn a_service_that_is_away_is_told_from_one_that_is_overloaded() {
        let away = unavailable("DATABASE_UNAVAILABLE", "the database is unavailable", RETRY_SOON);
        assert!(matches!(of_api_key(&away), Error::Unavailable { .. }));
        assert!(matches!(of_api_key(&Status::unavailable("no connection")), Error::Unavailable { .. }));
        assert!(matches!(of_api_key(&overloaded("too many reads wait")), Error::Overloaded { .. }));
    }
}
