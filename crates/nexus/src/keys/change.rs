//! `nexus keys create`, `rotate` and `revoke`. A secret is written to standard output and nowhere else: what is said
//! of it goes to standard error, so that the output is the key alone.

use std::time::Duration;

use anyhow::{Result, anyhow};
use clap::Args;
use nexus_kit::config::parse_duration;
use nexus_proto::usage::v1::{CreateApiKeyRequest, RevokeApiKeyRequest, RotateApiKeyRequest};
use serde_json::json;

use super::key_json;
use crate::{
    call::{Account, Once, Usage, in_doubt},
    text::{print, rfc3339, utc},
};

pub(super) const CREATE_HELP: &str = "\
Examples:
  nexus keys create --name ci
  KEY=$(nexus keys create --name importer --account eco_acme --scopes usage.write)
  nexus keys create --name staging --test --json
Prints `<key_id>.<secret>`, what a client sends as `Authorization: ApiKey …`. This is the only time that the secret is
shown: keep it now. A user creates for the own account; admins and service tokens with the scope accounts.write for any.
Exit code: 0 it is made, 1 it failed.";

pub(super) const ROTATE_HELP: &str = "\
Examples:
  nexus keys rotate eco_api_4kQ0pX6mN2aVbT8sZr1cYd
  nexus keys rotate eco_api_4kQ0pX6mN2aVbT8sZr1cYd --grace 2h
  nexus keys rotate eco_api_4kQ0pX6mN2aVbT8sZr1cYd --grace 0s     the old secret is refused at once
Prints `<key_id>.<new secret>`. This is the only time that the new secret is shown: keep it now. The old one is good
until --grace is over.
Exit code: 0 it has a new secret, 1 it failed.";

pub(super) const REVOKE_HELP: &str = "\
Example:
  nexus keys revoke eco_api_4kQ0pX6mN2aVbT8sZr1cYd
Every server refuses the key within a second. There is no way back; a key that is revoked already stays so.
Exit code: 0 it is revoked, 1 it failed.";

#[derive(Args)]
pub(crate) struct CreateArgs {
    /// Name for people
    #[arg(long)]
    name: String,
    #[command(flatten)]
    account: Account,
    /// What it may do, comma separated; over gRPC usage.write lets it record, usage.check check and read; default:
    /// everything an API key may
    #[arg(long, value_delimiter = ',', value_name = "SCOPES")]
    scopes: Vec<String>,
    /// Its calls are metered apart, never limited or billed
    #[arg(long)]
    test: bool,
    #[command(flatten)]
    once: Once,
    /// Print JSON, with the secret
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: Usage,
}

pub(super) async fn create(args: &CreateArgs) -> Result<()> {
    let id = args.once.id();
    let request = CreateApiKeyRequest {
        eco_id: args.account.id(),
        name: args.name.clone(),
        scopes: args.scopes.clone(),
        test_mode: args.test,
        request_id: id.to_string(),
    };
    let made = args.server.client()?.create_api_key(args.server.request(request)?).await;
    let refused = |status| {
        let failed = in_doubt(args.server.refused("CreateApiKey", &status), id, &status);
        anyhow!(args.account.if_missing(failed, &args.server.credentials, &status))
    };
    let made = made.map_err(refused)?.into_inner();
    let key = made.api_key.unwrap_or_default();
    if args.json {
        return print(&format!("{:#}\n", json!({ "api_key": key_json(&key), "key": made.key })));
    }
    print(&format!("{}\n", made.key))?;
    eprintln!("This is a key of {}. Keep it now: its secret is not shown again.", key.eco_id);
    Ok(())
}

#[derive(Args)]
pub(crate) struct RotateArgs {
    /// The key's id (`nexus keys list` lists them)
    #[arg(value_name = "KEY_ID")]
    key_id: String,
    /// How long the old secret stays good, at most 30d; 0s: not at all, nor do those of earlier rotations
    #[arg(long, default_value = "24h", value_parser = parse_duration, value_name = "DURATION")]
    grace: Duration,
    #[command(flatten)]
    once: Once,
    /// Print JSON, with the secret
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: Usage,
}

pub(super) async fn rotate(args: &RotateArgs) -> Result<()> {
    let id = args.once.id();
    let request = RotateApiKeyRequest {
        key_id: args.key_id.clone(),
        // What is too long for the field is too long for the server.
        grace_period_ms: Some(args.grace.as_millis().try_into().unwrap_or(i64::MAX)),
        request_id: id.to_string(),
    };
    let rotated = args.server.client()?.rotate_api_key(args.server.request(request)?).await;
    let refused = |status| anyhow!(in_doubt(args.server.refused("RotateApiKey", &status), id, &status));
    let rotated = rotated.map_err(refused)?.into_inner();
    let (key, until) = (rotated.api_key.unwrap_or_default(), rotated.previous_expire_time.as_ref());
    if args.json {
        let all =
            json!({ "api_key": key_json(&key), "key": rotated.key, "previous_expire_time": rfc3339(until) });
        return print(&format!("{all:#}\n"));
    }
    print(&format!("{}\n", rotated.key))?;
    eprintln!(
        "This is the key with its new secret. Keep it now: that is not shown again. The old one is good until {}.",
        utc(until)
    );
    Ok(())
}

#[derive(Args)]
pub(crate) struct RevokeArgs {
    /// The key's id (`nexus keys list` lists them)
    #[arg(value_name = "KEY_ID")]
    key_id: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: Usage,
}

pub(super) async fn revoke(args: &RevokeArgs) -> Result<()> {
    let request = args.server.request(RevokeApiKeyRequest { key_id: args.key_id.clone() })?;
    let revoked = args.server.client()?.revoke_api_key(request).await;
    let revoked =
        revoked.map_err(|status| anyhow!(args.server.refused("RevokeApiKey", &status)))?.into_inner();
    let key = revoked.api_key.unwrap_or_default();
    if args.json {
        return print(&format!("{:#}\n", json!({ "api_key": key_json(&key) })));
    }
    print(&format!("{} of {} is revoked.\n", key.key_id, key.eco_id))
}
