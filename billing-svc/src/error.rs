//! What can go wrong, by meaning, and the status each is.

use std::time::Duration;

use nexus_core::{
    id::EcoId,
    money::{Currency, OutOfRange},
    plan::Plan,
};
use nexus_kit::{auth::AuthConfigError, db, serve::ServeError, status, validate::Violations};
use tonic::{Code, Status};
use uuid::Uuid;

use crate::{
    domain::stripe_signature::SignatureError, notify::NotifyConfigError, payments::stripe::StripeConfigError,
};

/// Why the service could not start or serve.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Auth(#[from] AuthConfigError),
    #[error(transparent)]
    Database(#[from] db::BadUrl),
    #[error(transparent)]
    Serve(#[from] ServeError),
    #[error(transparent)]
    Stripe(#[from] StripeConfigError),
    #[error(transparent)]
    Notify(#[from] NotifyConfigError),
}

/// Why a use case could not be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Invalid(#[from] Violations),
    #[error("account {0} does not exist")]
    AccountNotFound(EcoId),
    #[error("account {0} is closed")]
    AccountClosed(EcoId),
    #[error("the subscription of {0} is kept at Stripe")]
    SubscriptionAtStripe(EcoId),
    #[error("account {0} has no subscription at Stripe")]
    NoSubscription(EcoId),
    #[error("account {0} has a subscription at Stripe already")]
    AlreadySubscribed(EcoId),
    #[error("as many checkouts were opened for {eco_id} within 24 hours as may be: no more for now")]
    TooManyCheckouts { eco_id: EcoId, retry: Duration },
    #[error("the plan of {eco_id} was changed as often within 24 hours as may be: not again for now")]
    TooManyChanges { eco_id: EcoId, retry: Duration },
    #[error(
        "as many requests about the plan of {eco_id} were kept within 24 hours as may be: no more for now"
    )]
    TooManyRequests { eco_id: EcoId, retry: Duration },
    #[error("another change of the subscription of {0} came after this request")]
    ChangeSuperseded(EcoId),
    #[error("the plan {0} is paid for by a subscription: it begins with a checkout (CreateCheckoutSession)")]
    CheckoutRequired(Plan),
    /// In a sentence.
    #[error("{0}")]
    StripeRefused(String),
    #[error("Stripe could not be asked, or its answer is not known: {0}")]
    StripeUnavailable(String),
    #[error("no price at Stripe is known of the plan {plan} in {currency}: see eco_stripe_prices")]
    NoPriceAtStripe { plan: Plan, currency: Currency },
    #[error("an account with this eco_id exists")]
    AccountExists,
    #[error("stripe_customer_id belongs to another account")]
    StripeCustomerTaken,
    #[error("stripe_subscription_id belongs to another account")]
    StripeSubscriptionTaken,
    #[error("run {0} was cut short; what it charged stays charged, and a repeat goes on with the rest")]
    RunFailed(Uuid),
    #[error("webhook endpoint {0} does not exist")]
    EndpointNotFound(Uuid),
    #[error("webhook endpoint {0} is disabled: enable it first")]
    EndpointDisabled(Uuid),
    #[error("account {0} has as many webhook endpoints as an account may have")]
    TooManyEndpoints(EcoId),
    #[error(
        "webhook endpoint {0} has as many secrets in grace as one may have: rotate with a grace period of 0"
    )]
    TooManySecrets(Uuid),
    #[error("account {0} has sent as many tests as an account may send in a day")]
    TooManyTests(EcoId),
    #[error("there is no such delivery")]
    DeliveryNotFound,
    #[error(
        "the database was restored or failed over since the ledger was last known to be whole; nothing is charged until a reconciliation of all accounts has found that it agrees with Stripe"
    )]
    ReconcileRequired,
    #[error("reconciliation {0} was cut short; a repeat begins again")]
    ReconciliationFailed(Uuid),
    #[error("Stripe's books could not be read: {0}")]
    BooksUnread(String),
    #[error("ledger and Stripe differ in more than {0} charges; the first of them were looked at")]
    TooManyDifferences(i64),
    #[error("run {0} does not exist")]
    RunNotFound(Uuid),
    #[error("the server is stopping")]
    Stopping,
    #[error("STRIPE_WEBHOOK_SECRET is not configured")]
    NoWebhookSecret,
    #[error(transparent)]
    Signature(#[from] SignatureError),
    #[error("charge {0} does not exist")]
    ChargeNotFound(Uuid),
    #[error("what charge {0} follows from was not kept")]
    BasisNotKept(Uuid),
    #[error("charge {0} is not one that Stripe refused and that its period is parked for")]
    ChargeNotParked(Uuid),
    #[error("the segment has {units} units: no more than these can be taken away")]
    BelowZero { units: i64 },
    #[error(transparent)]
    OutOfRange(#[from] OutOfRange),
    #[error("database: {0}")]
    Database(#[from] sqlx::Error),
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        match error {
            Error::Invalid(violations) => status::invalid(&violations),
            Error::AccountNotFound(_) => status::not_found("ACCOUNT_NOT_FOUND", error.to_string()),
            Error::AccountClosed(_) => {
                status::with_reason(Code::FailedPrecondition, "ACCOUNT_CLOSED", error.to_string())
            }
            Error::SubscriptionAtStripe(_) => {
                status::with_reason(Code::FailedPrecondition, "SUBSCRIPTION_AT_STRIPE", error.to_string())
            }
            Error::AccountExists => {
                status::with_reason(Code::AlreadyExists, "ACCOUNT_EXISTS", error.to_string())
            }
            Error::StripeCustomerTaken | Error::StripeSubscriptionTaken => {
                status::with_reason(Code::AlreadyExists, "STRIPE_ID_TAKEN", error.to_string())
            }
            Error::EndpointNotFound(_) => status::not_found("ENDPOINT_NOT_FOUND", error.to_string()),
            Error::DeliveryNotFound => status::not_found("DELIVERY_NOT_FOUND", error.to_string()),
            Error::EndpointDisabled(_) => {
                status::with_reason(Code::FailedPrecondition, "ENDPOINT_DISABLED", error.to_string())
            }
            Error::TooManyEndpoints(_) => {
                status::with_reason(Code::FailedPrecondition, "TOO_MANY_ENDPOINTS", error.to_string())
            }
            Error::TooManyTests(_) => {
                status::with_reason(Code::FailedPrecondition, "TOO_MANY_TESTS", error.to_string())
            }
            Error::TooManySecrets(_) => {
                status::with_reason(Code::FailedPrecondition, "TOO_MANY_SECRETS", error.to_string())
            }
            Error::RunFailed(_) => status::unavailable("RUN_FAILED", error.to_string(), status::RETRY_SOON),
            Error::ReconcileRequired => {
                status::with_reason(Code::FailedPrecondition, "RECONCILE_REQUIRED", error.to_string())
            }
            Error::ReconciliationFailed(_) => {
                status::unavailable("RECONCILIATION_FAILED", error.to_string(), status::RETRY_SOON)
            }
            Error::NoSubscription(_) => {
                status::with_reason(Code::FailedPrecondition, "NO_SUBSCRIPTION", error.to_string())
            }
            Error::AlreadySubscribed(_) => {
                status::with_reason(Code::FailedPrecondition, "ALREADY_SUBSCRIBED", error.to_string())
            }
            Error::TooManyCheckouts { retry, .. } => {
                status::too_many("TOO_MANY_CHECKOUTS", error.to_string(), retry)
            }
            Error::TooManyChanges { retry, .. } => {
                status::too_many("TOO_MANY_PLAN_CHANGES", error.to_string(), retry)
            }
            Error::TooManyRequests { retry, .. } => {
                status::too_many("TOO_MANY_REQUESTS", error.to_string(), retry)
            }
            Error::ChangeSuperseded(_) => {
                status::with_reason(Code::FailedPrecondition, "CHANGE_SUPERSEDED", error.to_string())
            }
            Error::CheckoutRequired(_) => {
                status::with_reason(Code::FailedPrecondition, "CHECKOUT_REQUIRED", error.to_string())
            }
            Error::StripeRefused(_) => {
                status::with_reason(Code::FailedPrecondition, "STRIPE_REFUSED", error.to_string())
            }
            Error::NoPriceAtStripe { .. } => {
                tracing::error!(%error, "a plan cannot be sold");
                status::with_reason(Code::FailedPrecondition, "NO_PRICE_AT_STRIPE", error.to_string())
            }
            Error::StripeUnavailable(_) | Error::BooksUnread(_) => {
                status::unavailable("STRIPE_UNAVAILABLE", error.to_string(), status::RETRY_SOON)
            }
            Error::TooManyDifferences(_) => {
                status::with_reason(Code::ResourceExhausted, "TOO_MANY_DIFFERENCES", error.to_string())
            }
            Error::ChargeNotFound(_) => status::not_found("CHARGE_NOT_FOUND", error.to_string()),
            Error::BasisNotKept(_) => {
                status::with_reason(Code::FailedPrecondition, "BASIS_NOT_KEPT", error.to_string())
            }
            Error::ChargeNotParked(_) => {
                status::with_reason(Code::FailedPrecondition, "CHARGE_NOT_PARKED", error.to_string())
            }
            Error::BelowZero { .. } => {
                status::with_reason(Code::FailedPrecondition, "USAGE_BELOW_ZERO", error.to_string())
            }
            Error::RunNotFound(_) => status::not_found("RUN_NOT_FOUND", error.to_string()),
            Error::NoWebhookSecret => {
                tracing::error!("a webhook cannot be verified: STRIPE_WEBHOOK_SECRET is not configured");
                status::with_reason(Code::FailedPrecondition, "NO_WEBHOOK_SECRET", error.to_string())
            }
            Error::Signature(_) => {
                status::with_reason(Code::InvalidArgument, "BAD_SIGNATURE", error.to_string())
            }
            Error::Stopping => status::unavailable("STOPPING", error.to_string(), status::RETRY_SOON),
            Error::OutOfRange(e) => {
                tracing::error!(error = %e, "an amount cannot be computed");
                status::with_reason(Code::FailedPrecondition, "AMOUNT_OUT_OF_RANGE", e.to_string())
            }
            Error::Database(e) if db::is_unavailable(&e) => {
                tracing::warn!(error = %e, "the database is unavailable");
                status::unavailable("DATABASE_UNAVAILABLE", "the database is unavailable", status::RETRY_SOON)
            }
            Error::Database(e) => {
                tracing::error!(error = %e, "a statement failed");
                status::internal()
            }
        }
    }
}
