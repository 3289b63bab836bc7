//! The only SQL; one file a table, but five for the ledger. Every function takes a connection: the use case owns the transaction.

pub mod account_figures;
pub mod accounts;
pub mod adjustments;
pub mod audit;
pub mod changes;
pub mod charge_entries;
pub mod charges;
pub mod checkouts;
pub mod counts;
pub mod crossings;
pub mod ended_subscriptions;
pub mod facts;
pub mod identity;
pub mod lease;
pub mod ledger_repairs;
pub mod listed_subscriptions;
pub mod mrr;
pub mod notices;
pub mod open_charges;
pub mod parked;
pub mod plan_requests;
pub mod plans;
pub mod rechecks;
pub mod reconciliation_list;
pub mod reconciliations;
pub mod records;
pub mod requests;
pub mod run_accounts;
pub mod run_totals;
pub mod runs;
pub mod sale_requests;
pub mod segments;
pub mod settlements;
pub mod spend_cap_requests;
pub mod stripe_books;
pub mod stripe_changes;
pub mod stripe_customers;
pub mod stripe_events;
pub mod stripe_prices;
pub mod stripe_subscriptions;
pub mod subscriptions;
pub mod take_backs;
pub mod thresholds;
pub mod told_invoices;
pub mod webhook_deliveries;
pub mod webhook_endpoints;
pub mod webhook_messages;
pub mod webhook_secrets;
pub mod withheld;

/// A word of the database that the code does not know.
pub fn unknown_word(error: impl std::error::Error + Send + Sync + 'static) -> sqlx::Error {
    sqlx::Error::Decode(Box::new(error))
}
