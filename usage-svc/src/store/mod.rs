//! The only SQL of the service, one file a table. Functions take a connection; the use case owns the transaction.
//! [`copy_binary`] is the format of bulk writes.

pub mod accounts;
pub mod api_key_rotations;
pub mod api_keys;
pub mod api_usage;
pub mod changes;
pub mod copy_binary;
pub mod imports;
pub mod plan_locks;
pub mod quota_holders;
pub mod quota_leases;
mod rollup_arrays;
pub mod sessions;
pub mod spool_cursors;
pub mod usage_counters;
pub mod usage_daily;
pub mod usage_hourly;
pub mod usage_quarantine;
pub mod usage_routes;
pub mod writer_slot;
