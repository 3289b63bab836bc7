//! What can go wrong, by meaning, and the status each is.

use nexus_core::{id::EcoId, money::OutOfRange};
use nexus_kit::{auth::AuthConfigError, db, serve::ServeError, status, validate::Violations};
use tonic::{Code, Status};

/// Why the service could not start or serve.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Auth(#[from] AuthConfigError),
    #[error(transparent)]
    Database(#[from] db::BadUrl),
    #[error(transparent)]
    Serve(#[from] ServeError),
}

/// Why a use case could not be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Invalid(#[from] Violations),
    #[error("there is no account {0}")]
    AccountNotFound(EcoId),
    #[error("account {0} is closed")]
    AccountClosed(EcoId),
    #[error("too many exports of this account wait for their turn")]
    TooManyWait,
    #[error(transparent)]
    OutOfRange(#[from] OutOfRange),
    #[error("database: {0}")]
    Database(#[from] sqlx::Error),
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        match error {
            Error::Invalid(violations) => status::invalid(&violations),
            Error::AccountNotFound(eco_id) => {
                status::not_found("ACCOUNT_NOT_FOUND", format!("there is no account {eco_id}"))
            }
            Error::AccountClosed(_) => {
                status::with_reason(Code::FailedPrecondition, "ACCOUNT_CLOSED", error.to_string())
            }
            Error::TooManyWait => status::overloaded(error.to_string()),
            Error::OutOfRange(e) => {
                tracing::error!(error = %e, "an amount cannot be computed");
                status::internal()
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
