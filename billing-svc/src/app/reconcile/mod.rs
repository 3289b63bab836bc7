//! Compares every record of the same fact: raw log, counters, summary, ledger, Stripe.
//!
//! | module | what it does |
//! |---|---|
//! | `reconciler` | one at a time: begins it, hands out what it found, ends with the server |
//! | `work` | one reconciliation: the order of its steps |
//! | `database` | raw log, counters, segments, summary, ledger, at one snapshot |
//! | `stripe` | ledger and Stripe |
//! | `strays` | items that are nobody's as far as our tables know: whose accounts are not charged |
//! | `subscriptions` | the accounts' subscriptions and Stripe's |
//! | `adopt` | takes what only Stripe has into the ledger |
//! | `repair` | what else can be repaired without a person |
//! | `drift` | the metrics |
//!
//! Nothing is held up meanwhile: flushes, refreshes and runs go on. The database is compared with itself at one
//! snapshot. Stripe's books are listed into tables of ours, and what seems to differ is looked at once more, one
//! charge after the other: the ledger, the item at Stripe, and the ledger again. What is in doubt, or is still to be
//! rechecked, is a run's to resolve and no difference.

mod adopt;
mod database;
mod drift;
mod reconciler;
mod repair;
mod strays;
mod stripe;
mod subscriptions;
mod work;

pub use drift::Drift;
pub use reconciler::{Answer, Reconciler, Request, Snapshot};
