//! What can go wrong, by meaning, and the status each is.

use chrono::NaiveDate;
use nexus_kit::{
    auth::AuthConfigError,
    db,
    serve::ServeError,
    status::{self, RETRY_SOON},
    validate::Violations,
};
use tonic::{Code, Status};

use crate::{
    app::{flush::FlushError, key_reads::ReadError},
    domain::judge::Refusal,
    spool::SpoolError,
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
    Spool(#[from] SpoolError),
}

/// Why a use case could not be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request is at fault.
    #[error(transparent)]
    Invalid(#[from] Violations),
    /// There is no such account.
    #[error("there is no such account")]
    UnknownAccount,
    /// The account takes nothing any more.
    #[error("the account is closed")]
    ClosedAccount,
    /// An event's time is out of reach.
    #[error("the event is older than 35 days")]
    EventTooOld,
    /// An event's time is out of reach.
    #[error("the event is more than 5 minutes ahead of the server's clock")]
    EventInTheFuture,
    /// An event's identity was used for another payload.
    #[error("another event was recorded under this event_id, account and day")]
    EventConflict,
    /// An API key is unknown, wrong or revoked; which, the caller does not learn.
    #[error("the API key is invalid")]
    InvalidApiKey,
    /// There is no such key, or it is another account's; which, the caller does not learn.
    #[error("there is no such API key")]
    UnknownApiKey,
    /// A revoked key stays revoked.
    #[error("the API key is revoked")]
    RevokedApiKey,
    /// As many old secrets of a key are valid as may be.
    #[error("{0} old secrets of the key are still valid; wait, or rotate with a grace period of 0")]
    TooManySecrets(i64),
    /// As many keys of the account were made within a day as may be.
    #[error("{0} API keys of the account were made within 24 hours: no more for now")]
    TooManyKeys(i64),
    /// As many secrets of a key were made within a day as may be.
    #[error("the key was rotated {0} times within 24 hours: not again for now")]
    TooManyRotations(i64),
    /// The raw log of a day was dropped, at least in part.
    #[error("the raw log of {0} is not wholly retained")]
    DayNotRetained(NaiveDate),
    /// The queue of the writer is full; nothing was taken.
    #[error("too many events are waiting to be written")]
    Overloaded,
    /// As many clients hold units over streams as may, of all accounts or of this one.
    #[error("too many streams of LeaseQuota are open")]
    TooManyClients,
    /// As many calls wait to read where one account stands, or what API keys open, as may.
    #[error("too many calls wait to be read for")]
    TooManyReads,
    /// The server stops; whether the events were written is unknown.
    #[error("the server is stopping")]
    Stopping,
    /// A flush failed, and said so in the log.
    #[error(transparent)]
    Flush(#[from] FlushError),
    /// A read that many waited for failed, and said so in the log.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A statement failed.
    #[error("database: {0}")]
    Database(#[from] sqlx::Error),
}

impl Error {
    /// Whether the database is away.
    pub fn is_outage(&self) -> bool {
        matches!(self, Error::Database(error) if db::is_away(error))
    }

    /// Whether the database did not answer this caller: it is away, or others hold what this one needs.
    pub fn is_unanswered(&self) -> bool {
        match self {
            Error::Database(error) => db::is_unavailable(error),
            Error::Read(error) => *error == ReadError::Unavailable,
            _ => false,
        }
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::UnknownAccount => Error::UnknownAccount,
            Refusal::ClosedAccount => Error::ClosedAccount,
            Refusal::TooOld => Error::EventTooOld,
            Refusal::InTheFuture => Error::EventInTheFuture,
            Refusal::ForeignKey => {
                Error::Invalid(Violations::one("event.api_key_id", "must be a key of the event's account"))
            }
        }
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        Status::from(&error)
    }
}

impl From<&Error> for Status {
    fn from(error: &Error) -> Self {
        let precondition = |reason| status::with_reason(Code::FailedPrecondition, reason, error.to_string());
        let unavailable = |reason| status::unavailable(reason, error.to_string(), RETRY_SOON);
        match error {
            Error::Invalid(violations) => status::invalid(violations),
            Error::UnknownAccount => status::not_found("ACCOUNT_NOT_FOUND", error.to_string()),
            Error::ClosedAccount => precondition("ACCOUNT_CLOSED"),
            Error::EventTooOld => precondition("EVENT_TOO_OLD"),
            Error::EventInTheFuture => precondition("EVENT_IN_THE_FUTURE"),
            Error::EventConflict => {
                status::with_reason(Code::AlreadyExists, "EVENT_CONFLICT", error.to_string())
            }
            Error::InvalidApiKey => {
                status::with_reason(Code::Unauthenticated, "INVALID_API_KEY", error.to_string())
            }
            Error::UnknownApiKey => status::not_found("API_KEY_NOT_FOUND", error.to_string()),
            Error::RevokedApiKey => precondition("API_KEY_REVOKED"),
            Error::TooManySecrets(_) => precondition("TOO_MANY_SECRETS"),
            Error::TooManyKeys(_) => precondition("TOO_MANY_API_KEYS"),
            Error::TooManyRotations(_) => precondition("TOO_MANY_ROTATIONS"),
            Error::DayNotRetained(_) => precondition("DAY_NOT_RETAINED"),
            Error::Overloaded | Error::TooManyClients | Error::TooManyReads => unavailable("OVERLOADED"),
            Error::Stopping => unavailable("STOPPING"),
            Error::Flush(FlushError::Unavailable) => unavailable("DATABASE_UNAVAILABLE"),
            Error::Flush(FlushError::Busy) => unavailable("DATABASE_BUSY"),
            Error::Flush(FlushError::Failed | FlushError::Rejected) => status::internal(),
            Error::Read(ReadError::Unavailable) => unavailable("DATABASE_UNAVAILABLE"),
            Error::Read(ReadError::Failed) => status::internal(),
            Error::Database(e) if db::is_unavailable(e) => {
                tracing::warn!(error = %e, "the database is unavailable");
                status::unavailable("DATABASE_UNAVAILABLE", "the database is unavailable", RETRY_SOON)
            }
            Error::Database(e) => {
                tracing::error!(error = %e, "a statement failed");
                status::internal()
            }
        }
    }
}
