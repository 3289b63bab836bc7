//! The only SQL; one file a table. Every function takes a connection: the use case owns the transaction.

pub mod accounts;
pub mod changes;
pub mod charges;
pub mod counts;
pub mod crossings;
pub mod facts;
pub mod identity;
pub mod lease;
pub mod notices;
pub mod plan_requests;
pub mod plans;
pub mod reconciliations;
pub mod records;
pub mod runs;
pub mod segments;
pub mod spend_cap_requests;
pub mod stripe_books;
pub mod subscriptions;
pub mod thresholds;
pub mod webhook_deliveries;
pub mod webhook_endpoints;
pub mod webhook_messages;
pub mod webhook_secrets;

/// A word of the database that the code does not know.
pub fn unknown_word(error: impl std::error::Error + Send + Sync + 'static) -> sqlx::Error {
    sqlx::Error::Decode(Box::new(error))
}
