//! One use case a file; each owns its transaction.
//!
//! | module | what it does |
//! |---|---|
//! | [`create_account`], [`get_account`], [`list_accounts`] | accounts |
//! | [`list_plans`] | plans |
//! | [`change_plan`] | moves an account to another plan, now or at its period's end |
//! | [`set_spend_cap`] | says what an account's overage may cost |
//! | [`get_overage`], [`list_charges`] | what an account owes and was charged |
//! | [`refresh`] | keeps the summary `eco_usage_records` in step with the counters |
//! | [`reconcile`] | compares every record of the same fact, and repairs when told to |
//! | [`tell_thresholds`], [`usage_thresholds`] | what accounts are told of their usage |
//! | [`webhooks`] | customers' webhooks: their endpoints, and the delivery of messages to them |
//! | [`notify_operators`] | tells operators of runs that failed or are overdue, and of drift |
//! | [`process_overage`] | charges what is owed: the run, and one account in it |

pub mod change_plan;
pub mod create_account;
pub mod get_account;
pub mod get_overage;
pub mod list_accounts;
pub mod list_charges;
pub mod list_plans;
pub mod notify_operators;
pub mod process_overage;
pub mod reconcile;
pub mod refresh;
pub mod set_spend_cap;
pub mod tell_thresholds;
pub mod usage_thresholds;
pub mod webhooks;
