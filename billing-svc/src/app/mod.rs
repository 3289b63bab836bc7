//! One use case a file; each owns its transaction.
//!
//! | module | what it does |
//! |---|---|
//! | [`create_account`], [`get_account`], [`list_accounts`] | accounts |
//! | [`list_plans`] | plans |
//! | [`change_plan`] | moves an account to another plan, now or at its period's end |
//! | [`get_overage`], [`list_charges`] | what an account owes and was charged |
//! | [`refresh`] | keeps the summary `eco_usage_records` in step with the counters |
//! | [`handle_stripe_event`], [`stripe_events`] | stores Stripe's events; applies them |
//! | [`process_overage`] | charges what is owed: the run, and one account in it |
//! | [`list_runs`] | the runs there were, and whom they could not charge |

pub mod change_plan;
pub mod create_account;
pub mod get_account;
pub mod get_overage;
pub mod handle_stripe_event;
pub mod list_accounts;
pub mod list_charges;
pub mod list_plans;
pub mod list_runs;
pub mod process_overage;
pub mod refresh;
pub mod stripe_events;
