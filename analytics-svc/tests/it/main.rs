//! analytics-svc as its callers see it: the real server, the real database, gRPC.

mod endpoint_stats;
mod overview;
mod support;
mod usage_history;
mod users;
