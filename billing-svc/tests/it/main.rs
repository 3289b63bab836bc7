//! billing-svc over gRPC, with a database of its own and a stand-in Stripe where one is needed.

mod accounts;
mod engine;
mod overage;
mod payments;
mod process_overage;
mod rechecks;
mod runs;
mod support;
