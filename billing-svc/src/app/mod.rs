//! One use case a file; each owns its transaction.
//!
//! | module | what it does |
//! |---|---|
//! | [`create_account`], [`get_account`], [`list_accounts`] | accounts |
//! | [`list_plans`] | plans |
//! | [`change_plan`] | moves an account to another plan, now or at its period's end |
//! | [`get_subscription`], [`sales`] | an account's subscription; at Stripe: a checkout that leads to one, changes, its end |
//! | [`set_spend_cap`] | says what an account's overage may cost |
//! | [`close_account`] | ends an account |
//! | [`upsert_plan`] | makes a version of a plan, which accounts get with their next period |
//! | [`adjust_usage`] | corrects an account's usage |
//! | [`explain_charge`], [`retry_charge`] | what a charge follows from; lets one that was refused be attempted again |
//! | [`list_audit_log`] | who changed what |
//! | [`get_overage`], [`list_charges`] | what an account owes and was charged |
//! | [`refresh`] | keeps the summary `eco_usage_records` in step with the counters |
//! | [`reconcile`] | compares every record of the same fact, and repairs when told to |
//! | [`handle_stripe_event`], [`stripe_events`] | stores Stripe's events; applies them |
//! | [`settle_draft`] | charges on a draft of a billing cycle what its period owes |
//! | [`clear_ended`], [`take_back`] | clears subscriptions that have ended: charges what is owed, off drafts that nobody finalises, too |
//! | [`collect`] | makes an invoice for charges that no other takes |
//! | [`tell_thresholds`], [`usage_thresholds`] | what accounts are told of their usage |
//! | [`webhooks`] | customers' webhooks: their endpoints, and the delivery of messages to them |
//! | [`notify_operators`] | tells operators of runs that failed or are overdue, and of drift |
//! | [`process_overage`] | charges what is owed: the run, and one account in it |
//! | [`list_invoices`] | an account's invoices, as Stripe told of them |
//! | [`list_reconciliations`] | the reconciliations there were |
//! | [`list_runs`] | the runs there were, and whom they could not charge |

pub mod adjust_usage;
pub mod change_plan;
pub mod clear_ended;
pub mod close_account;
pub mod collect;
pub mod create_account;
pub mod explain_charge;
pub mod get_account;
pub mod get_overage;
pub mod get_subscription;
pub mod handle_stripe_event;
pub mod list_accounts;
pub mod list_audit_log;
pub mod list_charges;
pub mod list_invoices;
pub mod list_plans;
pub mod list_reconciliations;
pub mod list_runs;
pub mod notify_operators;
pub mod process_overage;
pub mod reconcile;
pub mod refresh;
pub mod retry_charge;
pub mod sales;
pub mod set_spend_cap;
pub mod settle_draft;
pub mod stripe_events;
pub mod take_back;
pub mod tell_thresholds;
pub mod upsert_plan;
pub mod usage_thresholds;
pub mod webhooks;
