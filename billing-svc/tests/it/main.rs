//! billing-svc over gRPC, with a database of its own and a stand-in Stripe where one is needed.

mod accounts;
mod audit;
mod change_plan;
mod dry_run;
mod engine;
mod histories;
mod ledger;
mod life;
mod many;
mod memory;
mod memory_subscriptions;
mod overage;
mod payments;
mod plans;
mod process_overage;
mod proxy;
mod rechecks;
mod runs;
mod settlements;
mod stripe_events;
mod subscriptions;
mod support;
mod watch;
mod webhooks;
