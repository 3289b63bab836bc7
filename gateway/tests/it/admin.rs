//! `/api/admin/analytics/*`.

use anyhow::Result;
use nexus_core::plan::Plan;
use nexus_testkit::seed;

use crate::{
    answer::{Answer, assert_answer},
    suite::{Suite, event},
};

const OVERVIEW: &str = "/api/admin/analytics/overview";
const USERS: &str = "/api/admin/analytics/users";

#[tokio::test]
async fn overview_of_an_empty_system() -> Result<()> {
    let suite = Suite::start().await?;
    assert_answer!(suite.get_as_admin(OVERVIEW).await?);
    Ok(())
}

#[tokio::test]
async fn overview_of_six_accounts() -> Result<()> {
    let suite = Suite::start().await?;
    for (eco_id, plan) in [
        ("eco_f1", Plan::Free),
        ("eco_f2", Plan::Free),
        ("eco_p1", Plan::Pro),
        ("eco_p2", Plan::Pro),
        ("eco_p3", Plan::Pro),
        ("eco_e1", Plan::Enterprise),
    ] {
        suite.account(eco_id, plan).await?;
    }
    suite
        .record(vec![
            event("eco_p1", "/v1/x", 200, 115_000),
            event("eco_e1", "/v1/x", 200, 149_000),
            event("eco_f1", "/v1/x", 200, 600),
            event("eco_f2", "/v1/x", 200, 400),
        ])
        .await?;
    let answer = suite
        .until(
            async |suite| suite.get_as_admin(OVERVIEW).await,
            |a| {
                a.body["total_api_calls_this_month"] == 265_000
                    && a.body["overage_revenue_this_month"] == 15.0
            },
        )
        .await?;
    assert_answer!(answer);
    Ok(())
}

#[tokio::test]
async fn the_reference_sum() -> Result<()> {
    let suite = Suite::start().await?;
    for (plan, accounts) in [(Plan::Free, 100), (Plan::Pro, 45), (Plan::Enterprise, 5)] {
        for number in 0..accounts {
            suite.account(&format!("eco_{plan}{number}"), plan).await?;
        }
    }
    let body = suite.get_as_admin(OVERVIEW).await?.body;
    assert_eq!((&body["mrr"], &body["mrr_usd"]), (&4_705.into(), &"$4,705".into()), "{body}");
    assert_eq!(body["users_by_plan"], serde_json::json!({"free": 100, "pro": 45, "enterprise": 5}));
    assert_eq!(body["total_revenue_usd"], "$4,705.00");
    Ok(())
}

#[tokio::test]
async fn users_with_usage_and_revenue() -> Result<()> {
    let suite = Suite::start().await?;
    for (eco_id, plan) in [("eco_pro", Plan::Pro), ("eco_idle", Plan::Pro), ("eco_free", Plan::Free)] {
        suite.account(eco_id, plan).await?;
    }
    suite.record(vec![event("eco_pro", "/v1/x", 200, 105_000)]).await?;
    let answer = suite
        .until(
            async |suite| suite.get_as_admin(&format!("{USERS}?page=1&limit=50&plan=pro&sort=usage")).await,
            |a| a.body["users"][0]["overage_cost_usd"] == 5.0,
        )
        .await?;
    assert!(answer.body["users"][0]["last_api_call"].is_string(), "{}", answer.body);
    let mut shown = answer.shown();
    shown["body"]["users"][0]["last_api_call"] = "[time]".into();
    insta::assert_json_snapshot!(shown, { ".body.users[].created_at" => crate::answer::time() });
    Ok(())
}

#[tokio::test]
async fn users_by_page_filter_and_order() -> Result<()> {
    let suite = Suite::start().await?;
    for number in 0..5 {
        suite.account(&format!("eco_{number}"), Plan::Free).await?;
    }
    seed::account(&suite.db.pool, "eco_x.pro", Plan::Pro, chrono::Utc::now()).await?;
    let ids = async |query: &str| -> Result<Vec<String>> {
        let answer = suite.get_as_admin(&format!("{USERS}?{query}")).await?;
        assert_eq!(answer.status, 200, "{query}: {answer:?}");
        let users = answer.body["users"].as_array().cloned().unwrap_or_default();
        Ok(users.iter().filter_map(|u| u["eco_id"].as_str().map(str::to_owned)).collect())
    };
    assert_eq!(ids("sort=revenue&limit=2").await?, ["eco_x.pro", "eco_0"]);
    assert_eq!(ids("sort=revenue&limit=2&page=2").await?, ["eco_1", "eco_2"]);
    assert_eq!(ids("sort=revenue&limit=2&page=4").await?, [""; 0]);
    assert_eq!(ids("page=2147483647&limit=100").await?, [""; 0]);
    assert_eq!(ids("plan=pro&status=active&q=eco_x").await?, ["eco_x.pro"]);
    assert_eq!(ids("q=eco_x.pro@").await?, ["eco_x.pro"]);
    assert_eq!(ids("status=past_due").await?, [""; 0]);
    assert_answer!(suite.get_as_admin(&format!("{USERS}?sort=revenue&limit=2&page=2")).await?);
    let capped = suite.get_as_admin(&format!("{USERS}?limit=1000")).await?;
    assert_eq!(
        capped.body["pagination"],
        serde_json::json!({"page": 1, "limit": 100, "total": 6, "total_pages": 1})
    );
    Ok(())
}

#[tokio::test]
async fn every_parameter_at_fault_is_named() -> Result<()> {
    let suite = Suite::start().await?;
    assert_answer!(
        suite.get_as_admin(&format!("{USERS}?page=0&limit=x&plan=gold&status=dead&sort=name&q=%00")).await?
    );
    Ok(())
}

#[tokio::test]
async fn others_are_refused() -> Result<()> {
    let suite = Suite::start().await?;
    suite.account("eco_pro", Plan::Pro).await?;
    for path in [OVERVIEW, USERS] {
        assert_answer!(suite.get_as("eco_pro", path).await?);
        assert_answer!(Answer::of(suite.request("GET", path)?).await?);
    }
    Ok(())
}
