//! billing-svc over gRPC, with a database of its own and a stand-in Stripe where one is needed.

mod accounts;
mod change_plan;
mod dry_run;
mod engine;
mod many;
mod life;
mod memory;
mod memory_subscriptions;
mod overage;
mod payments;
mod process_overage;
mod proxy;
mod rechecks;
mod runs;
mod stripe_events;
mod subscriptions;
mod support;
mod watch;
mod webhooks;
