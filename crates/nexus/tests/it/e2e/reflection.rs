//! What an admin does with grpcurl and with `buf curl` alone, by reflection. `./test` brings both tools.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use nexus_kit::auth::Scope;
use nexus_proto::common::v1::Plan;
use nexus_testkit::settings::{admin_token, service_token};
use serde_json::{Value, json};
use tokio::process::Command;

use super::suite::{Suite, event};

async fn run(program: &str, arguments: &[&str]) -> Result<(bool, String)> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .await
        .with_context(|| format!("{program} is not there: run the tests with ./test, which brings it"))?;
    let text = [output.stdout, output.stderr].concat();
    Ok((output.status.success(), String::from_utf8(text)?))
}

async fn grpcurl(token: &str, address: &str, method: &str, message: &Value) -> Result<Value> {
    let header = format!("authorization: Bearer {token}");
    let (ok, text) =
        run("grpcurl", &["-plaintext", "-H", &header, "-d", &message.to_string(), address, method]).await?;
    ensure!(ok, "{method}: {text}");
    Ok(serde_json::from_str(&text)?)
}

async fn buf_curl(token: &str, address: &str, method: &str, message: &Value) -> Result<Value> {
    let (header, url) = (format!("authorization: Bearer {token}"), format!("http://{address}/{method}"));
    let message = message.to_string();
    let arguments =
        ["curl", "--http2-prior-knowledge", "--protocol", "grpc", "-H", &header, "-d", &message, &url];
    let (ok, text) = run("buf", &arguments).await?;
    ensure!(ok, "{method}: {text}");
    Ok(serde_json::from_str(&text)?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_line_by_grpcurl_and_buf_curl() -> Result<()> {
    let suite = Suite::start().await?;
    suite.account("eco_pro", Plan::Pro).await?;
    let service = service_token(&[Scope::UsageWrite, Scope::UsageCheck, Scope::BillingRun])?;
    let admin = admin_token()?;
    let (usage, billing, analytics) =
        (&suite.servers["usage"].main, &suite.servers["billing"].main, &suite.servers["analytics"].main);

    let e = event("eco_pro", 100_000);
    let message = json!({"event": {
        "ecoId": e.eco_id, "eventId": e.event_id, "endpoint": e.endpoint, "method": e.method,
        "statusCode": e.status_code, "unitsCount": "100000",
    }});
    let record = "nexus.usage.v1.UsageService/RecordUsage";
    assert_eq!(grpcurl(&service, usage, record, &message).await?["outcome"], "EVENT_OUTCOME_ACCEPTED");
    assert_eq!(buf_curl(&service, usage, record, &message).await?["outcome"], "EVENT_OUTCOME_DUPLICATE");
    let check = "nexus.usage.v1.UsageService/CheckQuota";
    assert!(buf_curl(&service, usage, check, &json!({"ecoId": "eco_pro"})).await?["admission"].is_string());

    let e = event("eco_pro", 3_000);
    let message = json!({"event": {
        "ecoId": e.eco_id, "eventId": e.event_id, "endpoint": e.endpoint, "method": e.method,
        "statusCode": e.status_code, "unitsCount": "3000",
    }});
    buf_curl(&service, usage, record, &message).await?;
    let process = "nexus.billing.v1.BillingService/ProcessOverage";
    let dry = grpcurl(&service, billing, process, &json!({"dryRun": true})).await?;
    assert_eq!(dry["plannedCharges"][0]["chargeMicros"], "3000000");
    assert_eq!(suite.stripe_items().await?.len(), 0, "a dry run touches nothing");
    assert_eq!(buf_curl(&service, billing, process, &json!({})).await?["totalMicros"], "3000000");
    assert_eq!(suite.stripe_items().await?.len(), 1);
    let again = grpcurl(&service, billing, process, &json!({})).await?;
    assert!(again.get("chargedCount").is_none(), "{again}");

    let list = "nexus.analytics.v1.AnalyticsService/ListUsers";
    let users = grpcurl(&admin, analytics, list, &json!({"plan": "PLAN_PRO"})).await?;
    assert_eq!((&users["users"][0]["ecoId"], &users["totalSize"]), (&json!("eco_pro"), &json!("1")));
    let overview =
        buf_curl(&admin, analytics, "nexus.analytics.v1.AnalyticsService/GetOverview", &json!({})).await?;
    assert_eq!(
        (&overview["mrrMicros"], &overview["overageRevenueMicros"]),
        (&json!("49000000"), &json!("3000000"))
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_are_listed_health_is_served_and_error_details_are_decoded() -> Result<()> {
    let suite = Suite::start().await?;
    for (server, service) in [
        ("usage", "nexus.usage.v1.UsageService"),
        ("billing", "nexus.billing.v1.BillingService"),
        ("analytics", "nexus.analytics.v1.AnalyticsService"),
    ] {
        let address = &suite.servers[server].main;
        let (ok, services) = run("grpcurl", &["-plaintext", address, "list"]).await?;
        assert!(ok && services.lines().any(|line| line == service), "{service} in {services}");
        let health = json!({"service": service}).to_string();
        let (ok, answer) =
            run("grpcurl", &["-plaintext", "-d", &health, address, "grpc.health.v1.Health/Check"]).await?;
        assert!(ok && answer.contains("SERVING"), "{service}: {answer}");
    }
    let header = format!("authorization: Bearer {}", service_token(&[Scope::UsageWrite])?);
    let address = &suite.servers["usage"].main;
    let call = [
        "-plaintext",
        "-H",
        &header,
        "-d",
        "{\"event\":{}}",
        address,
        "nexus.usage.v1.UsageService/RecordUsage",
    ];
    let (ok, text) = run("grpcurl", &call).await?;
    assert!(!ok && text.contains("InvalidArgument"), "{text}");
    for part in
        ["google.rpc.ErrorInfo", "google.rpc.BadRequest", "event.eco_id", "event.event_id", "event.method"]
    {
        assert!(text.contains(part), "{part} in {text}");
    }
    Ok(())
}
