//! `nexus usage show`, `top` and `endpoints`.

use anyhow::Result;
use chrono::{TimeDelta, Utc};
use nexus_core::plan::Plan;
use nexus_proto::usage::v1::{BatchRecordUsageRequest, UsageEvent};
use nexus_testkit::{
    seed,
    settings::{admin_token, user_token},
};
use serde_json::{Value, json};
use uuid::Uuid;

use super::servers::{Servers, blotted, service};

fn event(endpoint: &str, status_code: i32, response_time_ms: i32, units_count: i64) -> UsageEvent {
    UsageEvent {
        eco_id: "eco_a".into(),
        event_id: Uuid::now_v7().to_string(),
        endpoint: endpoint.into(),
        method: "GET".into(),
        status_code,
        response_time_ms,
        units_count,
        ..Default::default()
    }
}

/// The services, and a pro account with 100,200 calls.
async fn with_usage() -> Result<Servers> {
    let servers = Servers::start().await?;
    for (eco_id, plan) in [("eco_a", Plan::Pro), ("eco_b", Plan::Enterprise), ("eco_c", Plan::Free)] {
        seed::account(&servers.db.pool, eco_id, plan, Utc::now() - TimeDelta::days(3)).await?;
    }
    let mut events = vec![event("/v1/reports", 200, 12, 100_000), event("/v1/users/{id}", 404, 3, 150)];
    events.push(event("/v1/users/{id}", 200, 5, 50));
    let options = nexus_client::CallOptions::bearer(&service()?, std::time::Duration::from_secs(30))?;
    let mut usage = nexus_client::usage(nexus_client::channel(&format!("http://{}", servers.usage))?);
    let recorded = usage.batch_record_usage(options.request(BatchRecordUsageRequest { events })).await?;
    assert_eq!(recorded.into_inner().accepted_count, 3);
    Ok(servers)
}

#[tokio::test]
async fn where_an_account_stands_is_shown_to_its_user_and_to_admins() -> Result<()> {
    let servers = with_usage().await?;
    let user = user_token("eco_a")?;
    let shown = servers.says(&user, &["usage", "show", "--days", "7"]).await?;
    insta::assert_snapshot!(blotted(&shown));
    let asked = ["usage", "show", "--account", "eco_a", "--days", "7"];
    assert_eq!(blotted(&servers.says(&admin_token()?, &asked).await?), blotted(&shown));
    insta::assert_json_snapshot!(servers.json(&user, &["usage", "show", "--days", "7"]).await?, {
        ".period_start_time" => "[time]",
        ".period_end_time" => "[time]",
        ".server_time" => "[time]",
        ".days[].date" => "[date]",
    });
    let unlimited = servers.says(&service()?, &["usage", "show", "--account", "eco_b"]).await?;
    insta::assert_snapshot!(blotted(&unlimited));
    let unlimited = servers.json(&service()?, &["usage", "show", "--account", "eco_b"]).await?;
    assert_eq!((&unlimited["limit"], &unlimited["remaining"]), (&json!(-1), &json!(-1)));
    assert_eq!(unlimited.get("days"), None);
    assert_eq!(unlimited.get("forecast"), None);
    let foreign = servers.refuses(&user, &["usage", "show", "--account", "eco_b"]).await?;
    assert!(foreign.contains("GetCurrentUsage") && foreign.contains("PERMISSION_DENIED"), "{foreign}");
    let nameless = servers.refuses(&service()?, &["usage", "show"]).await?;
    assert!(nameless.contains("eco_id: "), "{nameless}");
    Ok(())
}

#[tokio::test]
async fn a_forecast_is_shown_to_who_asks_for_it() -> Result<()> {
    let servers = with_usage().await?;
    let (user, admin) = (user_token("eco_a")?, admin_token()?);
    let shown = servers.json(&user, &["usage", "show", "--forecast"]).await?;
    let forecast = &shown["forecast"];
    let number = |name: &str| forecast[name].as_i64().unwrap_or_default();
    assert!(100_200 <= number("low_calls") && number("low_calls") <= number("expected_calls"), "{shown}");
    assert!(number("expected_calls") <= number("high_calls"), "{shown}");
    assert!(number("expected_overage_micros") >= 200_000, "200 calls are owed already: {shown}");
    assert_eq!((&forecast["limit"], &forecast["currency_code"]), (&json!(100_000), &json!("USD")));
    assert_eq!(number("subscription_micros"), 49_000_000);
    let asked = ["usage", "show", "--account", "eco_a", "--forecast", "--days", "1"];
    let text = servers.says(&admin, &asked).await?;
    for part in [
        "  expected     ",
        " 100,000 are used by ",
        " of overage ($",
        "$49.00 a month for the plan",
        "busiest endpoint",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let unlimited = servers.says(&user_token("eco_b")?, &["usage", "show", "--forecast"]).await?;
    assert!(unlimited.contains("no limit to reach"), "{unlimited}");
    let free = servers.says(&user_token("eco_c")?, &["usage", "show", "--forecast"]).await?;
    assert!(free.contains("1,000 last until the end"), "{free}");
    let refused = servers.refuses(&user, &["usage", "show", "--account", "eco_b", "--forecast"]).await?;
    assert!(refused.contains("PERMISSION_DENIED"), "{refused}");
    let scope = servers.refuses(&service()?, &["usage", "show", "--account", "eco_a", "--forecast"]).await?;
    assert!(scope.contains("ForecastUsage") && scope.contains("PERMISSION_DENIED"), "{scope}");
    Ok(())
}

#[tokio::test]
async fn endpoints_are_listed_with_latency_and_success() -> Result<()> {
    let servers = with_usage().await?;
    let user = user_token("eco_a")?;
    insta::assert_snapshot!(servers.says(&user, &["usage", "endpoints"]).await?);
    let all = servers.json(&user, &["usage", "endpoints", "--days", "30", "--all"]).await?;
    insta::assert_json_snapshot!(all);
    let one = servers.json(&user, &["usage", "endpoints", "--limit", "1"]).await?;
    assert_eq!((one["endpoints"].as_array().map(Vec::len), &one["more"]), (Some(1), &json!(true)));
    let output = servers.run(&user_token("eco_b")?, &["usage", "endpoints"]).await?;
    assert_eq!((output.stdout.as_slice(), output.stderr.as_slice()), (&b""[..], &b"No endpoints.\n"[..]));
    assert_eq!(
        servers.json(&user_token("eco_b")?, &["usage", "endpoints"]).await?,
        json!({ "endpoints": [], "more": false })
    );
    let days = servers.refuses(&user, &["usage", "endpoints", "--days", "0"]).await?;
    assert!(days.contains("--days"), "{days}");
    Ok(())
}

#[tokio::test]
async fn the_accounts_with_the_most_usage_come_first() -> Result<()> {
    let servers = with_usage().await?;
    sqlx::query("select increment_api_calls('eco_b', 7)").execute(&servers.db.pool).await?;
    // A run brings the figures up to date; it cannot charge who has no customer at Stripe.
    let run = servers.run(&service()?, &["overage", "process"]).await?;
    assert_eq!(run.status.code(), Some(2));
    let admin = admin_token()?;
    assert_eq!(
        servers.says(&admin, &["usage", "top"]).await?,
        "account  plan          calls\neco_a    pro         100,200\neco_b    enterprise        7\n"
    );
    assert_eq!(
        servers.json(&admin, &["usage", "top", "--limit", "1"]).await?,
        json!({ "accounts": [{ "eco_id": "eco_a", "plan": "pro", "api_calls": 100_200 }], "more": true })
    );
    let user = servers.refuses(&user_token("eco_a")?, &["usage", "top"]).await?;
    assert!(user.contains("ListTopUsers") && user.contains("PERMISSION_DENIED"), "{user}");
    Ok(())
}

/// The server and those who look are one command: what the one needs is not asked of the others.
#[tokio::test]
async fn usage_without_a_subcommand_is_the_server() -> Result<()> {
    let servers = with_usage().await?;
    let user = user_token("eco_a")?;
    let mut with_settings = servers.command(&user, &["usage", "show", "--json"]);
    with_settings.env("DATABASE_URL", "postgres://nobody@nowhere/none").env("TLS_CERT", "/no/such/file");
    let output = with_settings.output().await?;
    assert_eq!(serde_json::from_slice::<Value>(&output.stdout)?["api_calls"], 100_200);
    let served = servers.refuses(&user, &["usage"]).await?;
    assert!(served.contains("--database-url") && served.contains("SERVICE_TOKEN_SECRET"), "{served}");
    let both = servers.refuses(&user, &["usage", "--grpc-addr", "127.0.0.1:0", "show"]).await?;
    assert!(both.contains("--grpc-addr"), "{both}");
    Ok(())
}
