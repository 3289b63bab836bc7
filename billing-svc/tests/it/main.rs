//! billing-svc over gRPC, with a database of its own and a stand-in Stripe where one is needed.

mod accounts;
mod books;
mod change_plan;
mod dry_run;
mod engine;
mod memory;
mod overage;
mod payments;
mod process_overage;
mod proxy;
mod rechecks;
mod reconcile;
mod reconcile_at_scale;
mod restored;
mod runs;
mod spend_cap;
mod support;
