//! billing-svc over gRPC, with a database of its own and a stand-in Stripe where one is needed.

mod accounts;
mod books;
mod change_plan;
mod dry_run;
mod engine;
mod memory;
mod operators;
mod outgoing;
mod overage;
mod payments;
mod process_overage;
mod proxy;
mod receiver;
mod rechecks;
mod reconcile;
mod reconcile_at_scale;
mod restored;
mod runs;
mod spend_cap;
mod support;
mod thresholds;
mod webhook_delivery;
mod webhook_support;
mod webhooks;
