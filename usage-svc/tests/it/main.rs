//! usage-svc as its callers see it: the real server on free ports, a real database, real gRPC.

mod access;
mod admission;
mod api_keys;
mod current_usage;
mod exactly_once;
mod outages;
mod quota;
mod rebuild;
mod record;
mod rules;
mod support;
