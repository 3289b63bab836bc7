//! analytics-svc as its callers see it: the real server, the real database, gRPC.

mod endpoint_stats;
mod export;
mod forecast;
mod overview;
mod plans;
mod revenue;
mod support;
mod top_users;
mod total_usage_history;
mod usage_history;
mod users;
