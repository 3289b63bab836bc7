//! `POST /api/cron/process-overage`.

use std::time::Duration;

use anyhow::Result;
use nexus_core::plan::Plan;
use serde_json::json;

use crate::{
    answer::{Answer, assert_answer},
    suite::{CRON_SECRET, Suite, event},
};

const ROUTE: &str = "/api/cron/process-overage";

#[tokio::test]
async fn a_run_charges_once_and_lists_who_could_not_be() -> Result<()> {
    let suite = Suite::start().await?;
    suite.account("eco_owes", Plan::Pro).await?;
    suite.stripe_customer("eco_owes").await?;
    suite.account("eco_stranger", Plan::Pro).await?;
    suite
        .record(vec![event("eco_owes", "/v1/x", 200, 112_500), event("eco_stranger", "/v1/x", 200, 101_000)])
        .await?;
    assert_answer!(suite.run_overage().await?);
    assert_answer!(suite.get_as("eco_owes", "/api/usage/overage").await?);
    let again = suite.run_overage().await?;
    assert_answer!(again);
    assert_eq!(again.body["results"]["charged"], 0, "{}", again.body);
    assert_eq!(again.body["results"]["total_usd"], "0.00", "{}", again.body);

    suite.record(vec![event("eco_owes", "/v1/x", 200, 2_500)]).await?;
    assert_answer!(suite.get_as("eco_owes", "/api/usage/overage").await?);
    Ok(())
}

/// A scheduler is answered in time; the run goes on, and another call finds it at work.
#[tokio::test]
async fn a_run_that_takes_longer_goes_on_and_says_so() -> Result<()> {
    let suite = Suite::start_with(|config| config.cron_timeout = Duration::from_secs(4)).await?;
    suite.account("eco_owes", Plan::Pro).await?;
    suite.stripe_customer("eco_owes").await?;
    suite.record(vec![event("eco_owes", "/v1/x", 200, 112_500)]).await?;
    let held = json!({ "hold": true, "method": "POST", "path": "/v1/invoiceitems" });
    suite.sim("POST", "/faults", &held).await?;

    let running = suite.run_overage().await?;
    assert_answer!(running);
    assert_eq!((running.status.as_u16(), &running.body["running"]), (200, &json!(true)), "{}", running.body);
    assert_eq!(running.body["results"]["charged"], 0, "{}", running.body);
    assert!(running.body["run_id"].is_string(), "{}", running.body);
    let second = suite.run_overage().await?;
    assert_answer!(second);
    assert_eq!((second.status.as_u16(), &second.body["already_running"]), (200, &json!(true)));
    assert_eq!(
        second.body["results"],
        json!({ "processed": 0, "charged": 0, "total_usd": "0.00", "totals": [], "errors": [] }),
        "{}",
        second.body
    );

    suite.sim("POST", "/release", &json!({})).await?;
    let after = suite.until(Suite::run_overage, |answer| answer.body["already_running"] == false).await?;
    assert_eq!((&after.body["running"], &after.body["results"]["charged"]), (&json!(false), &json!(0)));
    let charged = "select count(*) from eco_overage_charges where status = 'succeeded'";
    assert_eq!(sqlx::query_scalar::<_, i64>(charged).fetch_one(&suite.db.pool).await?, 1);
    Ok(())
}

#[tokio::test]
async fn a_run_that_failed_is_no_success() -> Result<()> {
    let suite = Suite::start().await?;
    sqlx::query("revoke update on eco_usage_records from nexus_billing").execute(&suite.db.pool).await?;
    let failed = suite.run_overage().await?;
    assert_answer!(failed);
    assert_eq!((failed.status.as_u16(), &failed.body), (503, &json!({"error": "Service unavailable"})));
    sqlx::query("grant update on eco_usage_records to nexus_billing").execute(&suite.db.pool).await?;
    assert_eq!(suite.run_overage().await?.body["success"], true);
    Ok(())
}

#[tokio::test]
async fn a_restored_database_is_told_of() -> Result<()> {
    let suite = Suite::start().await?;
    sqlx::query("update eco_database_identity set timeline_id = timeline_id + 1")
        .execute(&suite.db.pool)
        .await?;
    let refused = suite.run_overage().await?;
    assert_answer!(refused);
    assert_eq!((refused.status.as_u16(), &refused.body["error"]), (409, &json!("Reconciliation required")));
    assert!(
        refused.body["message"].as_str().is_some_and(|m| m.contains("nexus reconcile")),
        "{}",
        refused.body
    );
    Ok(())
}

#[tokio::test]
async fn only_the_secret_opens() -> Result<()> {
    let suite = Suite::start().await?;
    let long = format!("{CRON_SECRET}x");
    for authorization in [
        format!("Bearer {long}"),
        format!("Bearer {}", &CRON_SECRET[1..]),
        format!("Basic {CRON_SECRET}"),
        CRON_SECRET.to_owned(),
        format!("Bearer {}", nexus_testkit::settings::admin_token()?),
        "Bearer ".to_owned(),
    ] {
        let answer =
            Answer::of(suite.request("POST", ROUTE)?.header("authorization", &authorization)).await?;
        assert_eq!(answer.status, 401, "{authorization}");
        assert_eq!(answer.body, serde_json::json!({"error": "Unauthorized"}));
    }
    assert_answer!(Answer::of(suite.request("POST", ROUTE)?).await?);
    Ok(())
}

#[tokio::test]
async fn without_a_configured_secret_nothing_opens() -> Result<()> {
    for secret in [None, Some("".into())] {
        let suite = Suite::start_with(|config| config.cron_secret = secret).await?;
        let answer = Answer::of(suite.request("POST", ROUTE)?.header("authorization", "Bearer ")).await?;
        assert_answer!(answer);
    }
    Ok(())
}

#[tokio::test]
async fn a_body_may_be_left_out_and_must_else_be_json() -> Result<()> {
    let suite = Suite::start().await?;
    let send = |body: &'static str| {
        let request = suite.request("POST", ROUTE)?.bearer_auth(CRON_SECRET);
        anyhow::Ok(Answer::of(request.header("content-type", "application/json").body(body)))
    };
    let refused = send("{bad")?.await?;
    assert_answer!(refused);
    assert_eq!((refused.status.as_u16(), &refused.body["field"]), (400, &"body".into()), "{}", refused.body);
    for body in ["", "{}"] {
        assert_eq!(send(body)?.await?.status, 200, "{body}");
    }
    Ok(())
}
