//! `nexus keys`: the API keys of an account, by usage-svc.
//!
//! | module | what it does |
//! |---|---|
//! | [`list`] | `list` |
//! | [`change`] | `create`, `rotate`, `revoke` |

mod change;
mod list;

use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;
use nexus_proto::usage::v1::{ApiKey, ApiKeyStatus};
use serde_json::{Value, json};

use crate::text::rfc3339;

pub(crate) const HELP: &str = "\
Examples:
  nexus keys create --name ci              the secret is shown this once
  nexus keys list
  nexus keys rotate eco_api_4kQ0pX6mN2aVbT8sZr1cYd
  nexus keys revoke eco_api_4kQ0pX6mN2aVbT8sZr1cYd";

#[derive(Subcommand)]
pub(crate) enum Action {
    /// Create an API key; prints it with its secret, this once
    #[command(after_help = change::CREATE_HELP)]
    Create(change::CreateArgs),
    /// List an account's API keys, newest first, without secrets
    #[command(after_help = list::HELP)]
    List(list::ListArgs),
    /// Give an API key a new secret; prints the key with it, this once
    #[command(after_help = change::ROTATE_HELP)]
    Rotate(change::RotateArgs),
    /// Revoke an API key, for good
    #[command(after_help = change::REVOKE_HELP)]
    Revoke(change::RevokeArgs),
}

pub(crate) async fn run(action: Action) -> Result<ExitCode> {
    match action {
        Action::Create(args) => change::create(&args).await?,
        Action::List(args) => list::run(&args).await?,
        Action::Rotate(args) => change::rotate(&args).await?,
        Action::Revoke(args) => change::revoke(&args).await?,
    }
    Ok(ExitCode::SUCCESS)
}

fn status_word(key: &ApiKey) -> &'static str {
    match key.status() {
        ApiKeyStatus::Unspecified => "unknown",
        ApiKeyStatus::Active => "active",
        ApiKeyStatus::Revoked => "revoked",
    }
}

fn key_json(key: &ApiKey) -> Value {
    json!({
        "key_id": key.key_id,
        "eco_id": key.eco_id,
        "name": key.name,
        "scopes": key.scopes,
        "test_mode": key.test_mode,
        "status": status_word(key),
        "create_time": rfc3339(key.create_time.as_ref()),
        "last_used_time": rfc3339(key.last_used_time.as_ref()),
    })
}
