//! Use cases, one a file; each owns its transaction.
//!
//! | module | what it does |
//! |---|---|
//! | [`record_usage`] | takes events for recording and waits for their commit |
//! | [`writer`] | the one task that writes: group commit of what gathered meanwhile |
//! | [`flush`] | the transaction that counts a group of events exactly once |
//! | [`check_quota`] | admits units, exactly up to a hard limit |
//! | [`current_usage`] | an account's current period, live |
//! | [`api_keys`] | makes and verifies API keys |
//! | [`register_import`] | the time shift of an imported file |
//! | [`rebuild_day`] | rebuilds a day's rollup from the raw log |
//! | [`maintenance`] | partitions made ahead and dropped, settled leases deleted |

pub mod api_keys;
pub mod check_quota;
pub mod current_usage;
pub mod flush;
pub mod maintenance;
pub mod rebuild_day;
pub mod record_usage;
pub mod register_import;
pub mod writer;
