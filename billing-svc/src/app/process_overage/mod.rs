//! Charges every account the difference between what it owes and what was charged before.
//!
//! | module | what it does |
//! |---|---|
//! | `engine` | one run at a time: begins it, hands out its figures, ends with the server |
//! | `run` | a run: who owes, so many at once, the heartbeat |
//! | `pages` | who has something to do, page by page |
//! | `together` | statements that charges of a run share |
//! | `charge` | one account: the ledger's algorithm |
//! | `send` | one intent: until it is known what became of it |
//! | `recheck` | replaced charges, looked through once more: what came late is taken back |
//! | `dry_run` | what a run would charge, read only |

mod charge;
mod dry_run;
mod engine;
mod pages;
mod recheck;
mod run;
mod send;
mod together;

pub(super) use charge::passes;
pub use charge::{ChargeContext, charge_account};
pub use dry_run::{DryRun, PlannedCharge, dry_run};
pub use engine::{Answer, Engine, Request, Snapshot};
pub(super) use pages::owing;
pub use recheck::rechecker;
pub(super) use send::{MAX_TRIES, back_off};
pub use together::Together;
