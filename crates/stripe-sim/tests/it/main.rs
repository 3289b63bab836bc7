//! The stand-in over HTTP: through async-stripe's own client, and raw.

mod chaos;
mod checkout;
mod collection;
mod contract;
mod contract_cycles;
mod contract_errors;
mod cycles;
mod faults;
mod harness;
mod http;
mod idempotency;
mod invoices;
mod journal;
mod lists;
mod receiver;
mod subscriptions;
mod test_clocks;
mod webhooks;
