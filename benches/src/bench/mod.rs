//! One file a benchmark.

pub(crate) mod analytics;
pub(crate) mod changes;
pub(crate) mod check_quota;
mod checks;
pub(crate) mod current_usage;
pub(crate) mod decision;
pub(crate) mod ingest;
pub(crate) mod process_overage;
pub(crate) mod rate_limit;
pub(crate) mod record;
pub(crate) mod soak;

use chrono::{TimeDelta, Utc};
use nexus_kit::auth::{self, Scope};
use secrecy::SecretString;

use crate::process::Environment;

/// Secrets of the servers of one run, which listen on loopback.
const JWT_SECRET: &str = "users-of-a-benchmark-0123456789abcdef";
const SERVICE_TOKEN_SECRET: &str = "services-of-a-benchmark-0123456789abcdef";

/// Settings of a server that needs no database.
fn server_environment() -> Environment {
    vec![("JWT_SECRET", JWT_SECRET.to_owned()), ("SERVICE_TOKEN_SECRET", SERVICE_TOKEN_SECRET.to_owned())]
}

/// A token that those servers accept for a day.
fn token(scopes: &[Scope]) -> anyhow::Result<String> {
    let expires = Utc::now() + TimeDelta::days(1);
    Ok(auth::service_token(&SecretString::from(SERVICE_TOKEN_SECRET), "nexus-bench", scopes, expires)?)
}
