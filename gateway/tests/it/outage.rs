//! A part is away: 503 with `Retry-After`, at once, and no word of the inside.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nexus_core::plan::Plan;

use crate::{
    answer::{Answer, assert_answer},
    suite::Suite,
};

const USAGE: [&str; 2] = ["/api/usage/current", "/api/keys/list"];
const BILLING: [&str; 4] =
    ["/api/usage/overage", "/api/usage/spend-cap", "/api/usage/charges", "/api/subscriptions/current"];
const ANALYTICS: [&str; 4] = [
    "/api/usage/history",
    "/api/usage/endpoints",
    "/api/usage/forecast",
    "/api/usage/export?start=2026-11-01&end=2026-12-01",
];
const ADMIN: [&str; 3] =
    ["/api/admin/analytics/overview", "/api/admin/analytics/users", "/api/admin/revenue"];
const ACCOUNT: &str = "/api/admin/accounts/eco_pro";

fn assert_unavailable(answer: &Answer, what: &str) -> Result<()> {
    assert_eq!(answer.status, 503, "{what}: {answer:?}");
    assert_eq!(answer.body, serde_json::json!({"error": "Service unavailable"}), "{what}");
    assert!((1..=60).contains(&answer.number("retry-after")?), "{what}");
    Ok(())
}

/// An account with a key on a suite that works.
async fn working() -> Result<(Suite, String)> {
    let suite = Suite::start().await?;
    suite.account("eco_pro", Plan::Pro).await?;
    let key = suite.api_key("eco_pro", false).await?;
    assert_eq!(suite.get("/api/secure/ping", &key).await?.status, 200);
    Ok((suite, key))
}

#[tokio::test]
async fn without_the_database_every_route_says_so_and_all_go_on_when_it_is_back() -> Result<()> {
    let (suite, _key) = working().await?;
    suite.account("eco_new", Plan::Pro).await?;
    let unknown = suite.api_key("eco_new", false).await?;
    suite.cut_database();
    let began = Instant::now();
    for path in USAGE.iter().chain(&BILLING).chain(&ANALYTICS) {
        assert_unavailable(&suite.get_as("eco_pro", path).await?, path)?;
    }
    for path in ADMIN {
        assert_unavailable(&suite.get_as_admin(path).await?, path)?;
    }
    assert_unavailable(&suite.get_as_admin(ACCOUNT).await?, ACCOUNT)?;
    let new = serde_json::json!({"name": "new"});
    assert_unavailable(&suite.post_as("eco_pro", "/api/keys/generate", &new).await?, "a write")?;
    assert_unavailable(&suite.run_overage().await?, "the scheduler's")?;
    // Neither this key nor what its account may use is known. (Where both are, a call may be served.)
    assert_unavailable(&suite.get("/api/secure/ping", &unknown).await?, "a tracked one")?;
    assert_answer!(suite.get_as("eco_pro", "/api/usage/current").await?);
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());

    suite.mend_database();
    let back = async |path: &str| {
        suite.until(async |suite| suite.get_as("eco_pro", path).await, |answer| answer.status == 200).await
    };
    assert_eq!(back("/api/usage/current").await?.body["api_calls"], 1);
    assert_eq!(suite.get_as("eco_new", "/api/usage/current").await?.body["api_calls"], 0, "it was refused");
    back("/api/usage/history").await?;
    back("/api/usage/overage").await?;
    Ok(())
}

/// The answer to a metered call goes out when its event is committed, unless none can be.
#[tokio::test]
async fn an_open_account_waits_for_no_event_that_cannot_be_delivered() -> Result<()> {
    let suite = Suite::start_with(|config| config.backend_timeout = Duration::from_secs(3600)).await?;
    suite.account("eco_pro", Plan::Pro).await?;
    let key = suite.api_key("eco_pro", false).await?;
    assert_eq!(suite.get("/api/secure/ping", &key).await?.status, 200);
    suite.cut_database();
    for _ in 0..3 {
        assert_eq!(suite.get("/api/secure/ping", &key).await?.status, 200);
    }
    suite.mend_database();
    let current = async |suite: &Suite| suite.get_as("eco_pro", USAGE[0]).await;
    suite.until(current, |answer| answer.status == 200 && answer.body["api_calls"] == 4).await?;
    Ok(())
}

#[tokio::test]
async fn without_usage_svc_its_routes_alone_are_away() -> Result<()> {
    let (mut suite, key) = working().await?;
    suite.stop_usage().await?;
    assert_unavailable(&suite.get_as("eco_pro", USAGE[0]).await?, USAGE[0])?;
    assert_unavailable(&suite.get("/api/secure/ping", &key).await?, "ping")?;
    assert_unavailable(&suite.get_as_admin(ACCOUNT).await?, ACCOUNT)?;
    for path in BILLING.iter().chain(&ANALYTICS) {
        assert_eq!(suite.get_as("eco_pro", path).await?.status, 200, "{path}");
    }
    Ok(())
}

#[tokio::test]
async fn without_billing_svc_its_routes_alone_are_away() -> Result<()> {
    let (mut suite, key) = working().await?;
    suite.stop_billing().await?;
    for path in BILLING {
        assert_unavailable(&suite.get_as("eco_pro", path).await?, path)?;
    }
    assert_unavailable(&suite.get_as_admin(ACCOUNT).await?, ACCOUNT)?;
    assert_unavailable(&suite.run_overage().await?, "the scheduler's")?;
    assert_eq!(suite.get("/api/secure/ping", &key).await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn without_analytics_svc_its_routes_alone_are_away() -> Result<()> {
    let (mut suite, key) = working().await?;
    suite.stop_analytics().await?;
    for path in ANALYTICS {
        assert_unavailable(&suite.get_as("eco_pro", path).await?, path)?;
    }
    for path in ADMIN {
        assert_unavailable(&suite.get_as_admin(path).await?, path)?;
    }
    assert_eq!(suite.get("/api/secure/ping", &key).await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn a_service_that_accepts_and_never_answers_is_given_up_at_the_deadline() -> Result<()> {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = format!("http://{}", silent.local_addr()?);
    let suite = Suite::start_with(|config| {
        config.usage_addr = address;
        config.backend_timeout = Duration::from_millis(300);
    })
    .await?;
    let began = Instant::now();
    assert_unavailable(&suite.get_as("eco_pro", USAGE[0]).await?, "a silent service")?;
    // Else the bound of every request, 30 s, would end it.
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    Ok(())
}

#[tokio::test]
async fn ready_once_all_services_are_reached_and_while_one_is() -> Result<()> {
    let mut suite = Suite::start().await?;
    let ready = async |suite: &Suite| Answer::of(suite.request("GET", "/readyz")?).await;
    suite.until(ready, |answer| answer.status == 200).await?;
    suite.stop_billing().await?;
    // The other services' routes go on. Each is asked for a moment only: a busy one may be asked again.
    suite.until(ready, |answer| answer.status == 200).await?;
    suite.stop_usage().await?;
    suite.stop_analytics().await?;
    assert_eq!(ready(&suite).await?.status, 503);
    assert_eq!(Answer::of(suite.request("GET", "/healthz")?).await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn never_ready_where_a_service_was_never_reached() -> Result<()> {
    let closed = nexus_testkit::settings::nowhere()?;
    let suite = Suite::start_with(|config| config.billing_addr = format!("http://{closed}")).await?;
    let answer = Answer::of(suite.request("GET", "/readyz")?).await?;
    assert_eq!((answer.status.as_u16(), answer.number("retry-after")?), (503, 1));
    let operations = reqwest::get(format!("{}/readyz", suite.operations)).await.context("operations")?;
    assert_eq!(operations.status(), 503);
    Ok(())
}
