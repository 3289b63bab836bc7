//! `/api/usage/*`.

use anyhow::Result;
use chrono::{TimeDelta, Utc};
use nexus_core::{id::EcoId, plan::Plan};
use nexus_kit::auth::{self, Scope};
use nexus_testkit::settings::{ISSUER, JWT_SECRET, service_token};

use crate::{
    answer::assert_answer,
    suite::{Suite, event},
};

const ROUTES: [&str; 6] = [
    "/api/usage/current",
    "/api/usage/history",
    "/api/usage/endpoints",
    "/api/usage/overage",
    "/api/usage/spend-cap",
    "/api/keys/list",
];

#[tokio::test]
async fn current_of_a_plan_with_a_limit() -> Result<()> {
    let suite = Suite::start().await?;
    suite.account("eco_pro", Plan::Pro).await?;
    suite.record(vec![event("eco_pro", "/v1/x", 200, 5_000)]).await?;
    assert_answer!(suite.get_as("eco_pro", "/api/usage/current").await?);
    Ok(())
}

#[tokio::test]
async fn current_beyond_the_limit_shows_overage_and_no_negative_rest() -> Result<()> {
    let suite = Suite::start().await?;
    suite.account("eco_pro", Plan::Pro).await?;
    suite.record(vec![event("eco_pro", "/v1/x", 200, 105_000)]).await?;
    assert_answer!(suite.get_as("eco_pro", "/api/usage/current").await?);
    Ok(())
}

#[tokio::test]
async fn current_of_an_unlimited_plan() -> Result<()> {
    let suite = Suite::start().await?;
    suite.account("eco_big", Plan::Enterprise).await?;
    suite.record(vec![event("eco_big", "/v1/x", 200, 7)]).await?;
    assert_answer!(suite.get_as("eco_big", "/api/usage/current").await?);
    Ok(())
}

#[tokio::test]
async fn current_without_usage_shows_zeros_and_without_an_account_404() -> Result<()> {
    let suite = Suite::start().await?;
    suite.account("eco_new", Plan::Free).await?;
    assert_answer!(suite.get_as("eco_new", "/api/usage/current").await?);
    assert_answer!(suite.get_as("eco_nobody", "/api/usage/current").await?);
    Ok(())
}

#[tokio::test]
async fn history_has_today_live() -> Result<()> {
    let suite = Suite::start().await?;
    suite.account("eco_pro", Plan::Pro).await?;
    suite
        .record(vec![
            event("eco_pro", "/v1/x", 200, 900),
            event("eco_pro", "/v1/x", 500, 30),
            event("eco_pro", "/v1/y", 204, 50),
            event("eco_pro", "/v1/y", 404, 20),
            event("eco_pro", "/v1/y", 302, 1),
        ])
        .await?;
    assert_answer!(suite.get_as("eco_pro", "/api/usage/history").await?);
    let capped = suite.get_as("eco_pro", "/api/usage/history?days=366").await?;
    assert_eq!(capped.body["period_days"], 365);
    assert_answer!(capped);
    let week = suite.get_as("eco_pro", "/api/usage/history?days=7").await?;
    assert_eq!(week.body["period_days"], 7);
    assert_answer!(suite.get_as("eco_nobody", "/api/usage/history").await?);
    Ok(())
}

#[tokio::test]
async fn endpoints_by_calls() -> Result<()> {
    let suite = Suite::start().await?;
    suite.account("eco_pro", Plan::Pro).await?;
    suite
        .record(vec![
            event("eco_pro", "/v1/rare", 200, 4),
            event("eco_pro", "/v1/x", 200, 95),
            event("eco_pro", "/v1/x", 500, 5),
        ])
        .await?;
    assert_answer!(suite.get_as("eco_pro", "/api/usage/endpoints").await?);
    let capped = suite.get_as("eco_pro", "/api/usage/endpoints?days=99999999999").await?;
    assert_eq!(capped.body["period_days"], 365);
    assert_answer!(suite.get_as("eco_nobody", "/api/usage/endpoints").await?);
    Ok(())
}

#[tokio::test]
async fn overage_that_will_be_charged_and_none() -> Result<()> {
    let suite = Suite::start().await?;
    suite.account("eco_pro", Plan::Pro).await?;
    assert_answer!(suite.get_as("eco_pro", "/api/usage/overage").await?);
    suite.record(vec![event("eco_pro", "/v1/x", 200, 105_000)]).await?;
    assert_answer!(suite.get_as("eco_pro", "/api/usage/overage").await?);
    assert_answer!(suite.get_as("eco_nobody", "/api/usage/overage").await?);
    Ok(())
}

#[tokio::test]
async fn days_that_are_no_number_from_1_are_named() -> Result<()> {
    let suite = Suite::start().await?;
    suite.account("eco_pro", Plan::Pro).await?;
    for path in ["/api/usage/history", "/api/usage/endpoints"] {
        for days in ["0", "-1", "x", "", "1.5", "7&days=8"] {
            let answer = suite.get_as("eco_pro", &format!("{path}?days={days}")).await?;
            assert_eq!(
                (answer.status.as_u16(), &answer.body["field"]),
                (400, &"days".into()),
                "{path} {days}"
            );
        }
    }
    assert_answer!(suite.get_as("eco_pro", "/api/usage/history?days=0").await?);
    Ok(())
}

#[tokio::test]
async fn only_a_valid_token_of_a_user_opens() -> Result<()> {
    let suite = Suite::start().await?;
    suite.account("eco_pro", Plan::Pro).await?;
    let eco_id = EcoId::parse("eco_pro")?;
    let secret = JWT_SECRET.into();
    let (soon, past) = (Utc::now() + TimeDelta::hours(1), Utc::now() - TimeDelta::seconds(1));
    let expired = auth::user_token(&secret, ISSUER, None, &eco_id, None, past)?;
    let foreign = auth::user_token(&secret, "elsewhere", None, &eco_id, None, soon)?;
    let forged =
        auth::user_token(&"another-secret-0123456789abcdefghij".into(), ISSUER, None, &eco_id, None, soon)?;
    let good = auth::user_token(&secret, ISSUER, None, &eco_id, None, soon)?;
    let [_, payload, _] = good.split('.').collect::<Vec<_>>()[..] else { anyhow::bail!("a token") };
    // {"alg":"none"}
    let unsigned = format!("eyJhbGciOiJub25lIn0.{payload}.");
    let service = service_token(&Scope::ALL)?;
    let key = suite.api_key("eco_pro", false).await?;
    let refused = [
        format!("Bearer {expired}"),
        format!("Bearer {foreign}"),
        format!("Bearer {forged}"),
        format!("Bearer {unsigned}"),
        format!("Bearer {service}"),
        format!("Basic {good}"),
        "Bearer".to_owned(),
        String::new(),
        key,
    ];
    for path in ROUTES {
        assert_eq!(suite.get(path, &format!("Bearer {good}")).await?.status, 200, "{path}");
        for authorization in &refused {
            let answer = suite.get(path, authorization).await?;
            assert_eq!(answer.status, 401, "{path} {authorization}");
            assert_eq!(answer.body, serde_json::json!({"error": "Unauthorized"}));
        }
    }
    let without = suite.request("GET", "/api/usage/current")?;
    assert_answer!(crate::answer::Answer::of(without).await?);
    Ok(())
}
