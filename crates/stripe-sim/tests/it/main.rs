//! The stand-in over HTTP: through async-stripe's own client, and raw.

mod contract;
mod contract_errors;
mod faults;
mod harness;
mod http;
mod idempotency;
mod invoices;
mod journal;
mod lists;
mod subscriptions;
