//! `nexus keys create`, `list`, `rotate` and `revoke`.

use std::time::Duration;

use anyhow::{Context, Result};
use chrono::{TimeDelta, Utc};
use nexus_core::{id::ApiKeyText, plan::Plan};
use nexus_proto::usage::v1::VerifyApiKeyRequest;
use nexus_testkit::{seed, settings::user_token};
use serde_json::json;

use super::servers::{Servers, service};
use crate::support::text;

/// Whether the server takes a key now.
async fn opens(servers: &Servers, key: &str) -> Result<bool> {
    let options = nexus_client::CallOptions::bearer(&service()?, Duration::from_secs(30))?;
    let mut usage = nexus_client::usage(nexus_client::channel(&format!("http://{}", servers.usage))?);
    let verified = usage.verify_api_key(options.request(VerifyApiKeyRequest { key: key.to_owned() })).await;
    match verified {
        Ok(_) => Ok(true),
        Err(status) if status.code() == tonic::Code::Unauthenticated => Ok(false),
        Err(status) => Err(status.into()),
    }
}

fn key_id(key: &str) -> Result<String> {
    Ok(ApiKeyText::parse(key)?.key_id().to_owned())
}

#[tokio::test]
async fn a_secret_is_printed_alone_and_once() -> Result<()> {
    let servers = Servers::start().await?;
    seed::account(&servers.db.pool, "eco_a", Plan::Pro, Utc::now() - TimeDelta::days(3)).await?;
    let user = user_token("eco_a")?;
    let create = ["keys", "create", "--name", "ci", "--scopes", "usage.write,usage.check"];
    let made = servers.run(&user, &create).await?;
    let (printed, said) = (text(&made.stdout), text(&made.stderr));
    let key = printed.strip_suffix('\n').context("a line")?;
    assert!(opens(&servers, key).await?);
    assert_eq!(said, "This is a key of eco_a. Keep it now: its secret is not shown again.\n");

    let list = servers.json(&user, &["keys", "list"]).await?;
    let id = key_id(key)?;
    insta::assert_json_snapshot!(list, {
        ".api_keys[].key_id" => "[key id]",
        ".api_keys[].create_time" => "[time]",
        ".api_keys[].last_used_time" => "[time]",
    });
    assert_eq!(list["api_keys"][0]["key_id"], json!(id));
    let table = servers.says(&user, &["keys", "list"]).await?;
    let row = table.lines().nth(1).context("a row")?;
    assert!(row.starts_with(&format!("{id}  ci    usage.write, usage.check  live  active  ")), "{table}");
    let secret = key.split_once('.').context("two parts")?.1;
    assert!(!table.contains(secret) && !list.to_string().contains(secret));

    let test =
        servers.json(&service()?, &["keys", "create", "--name", "t", "--test", "--account", "eco_a"]).await?;
    assert_eq!((&test["api_key"]["test_mode"], &test["api_key"]["scopes"]), (&json!(true), &json!([])));
    assert!(opens(&servers, test["key"].as_str().context("a key")?).await?);
    let one = servers.json(&user, &["keys", "list", "--limit", "1"]).await?;
    assert_eq!((&one["api_keys"][0]["name"], &one["more"]), (&json!("t"), &json!(true)));
    let wrong = servers.refuses(&user, &["keys", "create", "--name", "", "--scopes", "A,b"]).await?;
    assert!(wrong.contains("\n  name: ") && wrong.contains("\n  scopes[0]: "), "{wrong}");
    Ok(())
}

#[tokio::test]
async fn a_request_id_makes_a_repeat_print_the_same_key() -> Result<()> {
    let servers = Servers::start().await?;
    seed::account(&servers.db.pool, "eco_a", Plan::Pro, Utc::now() - TimeDelta::days(3)).await?;
    let user = user_token("eco_a")?;
    let id = "0b9c0bd4-55a6-4a2e-8a3f-9d1d4c1a7f00";
    let create = ["keys", "create", "--name", "ci", "--request-id", id];
    let first = servers.says(&user, &create).await?;
    assert_eq!(servers.says(&user, &create).await?, first);
    assert_ne!(servers.says(&user, &create[..4]).await?, first);
    let malformed = servers.refuses(&user, &["keys", "create", "--name", "ci", "--request-id", "7"]).await?;
    assert!(malformed.contains("--request-id"), "{malformed}");
    Ok(())
}

#[tokio::test]
async fn a_key_is_rotated_and_revoked() -> Result<()> {
    let servers = Servers::start().await?;
    seed::account(&servers.db.pool, "eco_a", Plan::Pro, Utc::now() - TimeDelta::days(3)).await?;
    let user = user_token("eco_a")?;
    let printed = servers.says(&user, &["keys", "create", "--name", "ci"]).await?;
    let first = printed.trim_end();
    let id = key_id(first)?;

    let rotated = servers.run(&user, &["keys", "rotate", &id]).await?;
    let second = text(&rotated.stdout);
    let second = second.strip_suffix('\n').context("a line")?;
    assert!(text(&rotated.stderr).contains("The old one is good until "), "{}", text(&rotated.stderr));
    assert!(opens(&servers, first).await? && opens(&servers, second).await?);
    let again = servers.json(&user, &["keys", "rotate", &id, "--grace", "0s"]).await?;
    let third = again["key"].as_str().context("a key")?;
    assert_eq!(again["api_key"]["key_id"], json!(id));
    assert!(
        !opens(&servers, first).await? && !opens(&servers, second).await? && opens(&servers, third).await?
    );
    let long = servers.refuses(&user, &["keys", "rotate", &id, "--grace", "31d"]).await?;
    assert!(long.contains("\n  grace_period_ms: must be 0 to "), "{long}");
    let unit = servers.refuses(&user, &["keys", "rotate", &id, "--grace", "2"]).await?;
    assert!(unit.contains("--grace") && unit.contains("not a duration"), "{unit}");

    assert_eq!(servers.says(&user, &["keys", "revoke", &id]).await?, format!("{id} of eco_a is revoked.\n"));
    assert!(!opens(&servers, third).await?);
    assert_eq!(servers.json(&user, &["keys", "revoke", &id]).await?["api_key"]["status"], "revoked");
    let late = servers.refuses(&user, &["keys", "rotate", &id]).await?;
    assert!(late.contains("FailedPrecondition"), "{late}");
    let secret = servers.refuses(&user, &["keys", "revoke", third]).await?;
    assert!(secret.contains("\n  key_id: ") && !secret.contains(third), "{secret}");
    Ok(())
}
