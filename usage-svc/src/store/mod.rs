//! The only SQL of the service, one file a table. Functions take a connection; the use case owns the transaction.

pub mod accounts;
pub mod api_key_rotations;
pub mod api_keys;
pub mod api_usage;
pub mod changes;
pub mod imports;
pub mod quota_holders;
pub mod quota_leases;
pub mod usage_counters;
pub mod usage_daily;
pub mod writer_slot;
