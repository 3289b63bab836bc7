//! usage-svc as its callers see it: the real server on free ports, a real database, real gRPC.

mod access;
mod admission;
mod api_keys;
mod billing;
mod current_usage;
mod exactly_once;
mod feed;
mod group_commit;
mod lease_terms;
mod leases;
mod list_api_keys;
mod outages;
mod plan_changes;
mod quota;
mod rate_limit;
mod rebuild;
mod record;
mod reservations;
mod revoke_api_key;
mod rotate_api_key;
mod rules;
mod segments;
mod spool;
mod stream;
mod support;
mod verify_api_key;
