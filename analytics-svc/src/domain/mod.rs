//! Types and rules; pure.
//!
//! | module | what it holds |
//! |---|---|
//! | [`history`] | usage of a day and its busiest endpoints |
//! | [`endpoints`] | statistics of an endpoint over some days |
//! | [`overview`] | the whole business at a glance |
//! | [`revenue`] | the MRR month by month, and what moved it |
//! | [`forecast`] | how the current period is expected to end |
//! | [`export`] | usage by the hour |
//! | [`users`] | the list of accounts: filter, order, rows |

pub mod endpoints;
pub mod export;
pub mod forecast;
pub mod history;
pub mod overview;
pub mod revenue;
pub mod users;

/// Mean of `sum` over `events`; 0 of none.
pub(crate) fn mean(sum: i64, events: i64) -> f64 {
    if events == 0 { 0.0 } else { sum as f64 / events as f64 }
}
