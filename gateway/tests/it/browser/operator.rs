//! What an admin does.

use anyhow::{Context, Result};
use chrono::{TimeDelta, Utc};
use nexus_core::plan::Plan;
use nexus_testkit::{seed, settings::ADMIN};

use super::driver::browser_or_leave_out;
use crate::suite::{Suite, event};

#[tokio::test]
async fn the_business_shows_as_the_api_gives_it() -> Result<()> {
    let suite = Suite::start().await?;
    let browser = browser_or_leave_out!(&suite);
    for (eco_id, plan) in [("eco_a", Plan::Pro), ("eco_b", Plan::Enterprise), ("eco_c", Plan::Free)] {
        suite.account(eco_id, plan).await?;
    }
    suite.record(vec![event("eco_a", "/v1/x", 200, 115_000), event("eco_c", "/v1/x", 200, 7)]).await?;
    let ask = async |suite: &Suite| suite.get_as_admin("/api/admin/analytics/overview").await;
    let api = suite.until(ask, |overview| overview.body["total_api_calls_this_month"] == 115_007).await?;
    browser.sign_in(ADMIN, "/admin").await?;
    for (figure, member) in [("overage", "overage_revenue_usd"), ("total", "total_revenue_usd")] {
        let shown = browser.text(&format!("[data-figure={figure}]")).await?;
        assert_eq!(shown, api.body[member], "{figure}");
    }
    assert_eq!(browser.text("[data-figure=mrr]").await?, "$549.00");
    assert_eq!(browser.text("[data-figure=calls]").await?, "115,007");
    let top = browser.texts("section[aria-labelledby=top-users] tbody th").await?;
    assert_eq!(top, ["eco_a", "eco_c"]);
    let days = suite.get_as_admin("/api/admin/analytics/history?days=7").await?;
    assert_eq!(days.body["history"][0]["total_calls"], 115_007);
    browser.press("7 days").await?;
    let chart = browser.find("section[aria-labelledby=calls] svg.wide").await?.attr("aria-label").await?;
    assert_eq!(chart.as_deref(), Some("Calls per day. 115,007 calls in 7 days, 0 of them failed"));
    assert_eq!(browser.texts("section[aria-labelledby=calls] svg.wide rect.hit").await?.len(), 7);
    browser.find("section[aria-labelledby=calls] summary").await?.click().await?;
    let today = browser.texts("section[aria-labelledby=calls] tbody tr:first-child td").await?;
    assert_eq!(today[..3], ["115,007", "115,007", "0"], "calls, successful, failed");
    browser.press("eco_a").await?;
    assert_eq!(browser.text("h1").await?, "eco_a");
    assert_eq!(browser.text("[data-figure=calls]").await?, "115,000");
    browser.finish().await
}

#[tokio::test]
async fn accounts_are_searched_sorted_filtered_and_each_is_on_one_page() -> Result<()> {
    let suite = Suite::start().await?;
    let browser = browser_or_leave_out!(&suite);
    for i in 0..60 {
        let plan = if i % 3 == 0 { Plan::Pro } else { Plan::Free };
        let anchor = Utc::now() - TimeDelta::days(10);
        seed::account(&suite.db.pool, &format!("eco_{i:02}"), plan, anchor).await?;
    }
    suite.record((0..60).map(|i| event(&format!("eco_{i:02}"), "/v1/x", 200, 1 + i)).collect()).await?;
    suite.record(vec![event("eco_03", "/v1/x", 200, 150_000)]).await?;
    let ask = async |suite: &Suite| suite.get_as_admin("/api/admin/analytics/users?limit=1").await;
    suite.until(ask, |users| users.body["users"][0]["api_calls"] == 150_004).await?;
    browser.sign_in(ADMIN, "/admin/users").await?;
    let mut listed = Vec::new();
    for page in 1..=3 {
        assert_eq!(browser.text(".pager span").await?, format!("Page {page} of 3"));
        listed.extend(browser.texts("tbody th a").await?);
        if page < 3 {
            browser.press("Next").await?;
        }
    }
    let by_usage = ["eco_03".to_owned()]
        .into_iter()
        .chain((0..60).rev().filter(|i| *i != 3).map(|i| format!("eco_{i:02}")));
    assert_eq!(listed, by_usage.collect::<Vec<_>>());
    browser.press("Back").await?;
    assert_eq!(browser.text(".pager span").await?, "Page 2 of 3");

    browser.open("/admin/users").await?;
    browser.press("Revenue").await?;
    assert_eq!(
        browser.find("th[aria-sort=descending]").await?.text().await?.trim_end_matches(" ↓"),
        "Revenue"
    );
    let revenue = browser.texts("tbody tr td:nth-of-type(3)").await?;
    assert_eq!(
        (revenue[0].as_str(), revenue[1].as_str(), revenue[20].as_str()),
        ("$99.00", "$49.00", "$0.00")
    );
    browser.choose("plan", "pro").await?;
    browser.press("Show").await?;
    assert!(browser.path().await?.contains("sort=revenue"), "the order stays");
    assert_eq!(browser.texts("tbody tr").await?.len(), 20);
    browser.fill("q", "eco_1").await?;
    browser.press("Show").await?;
    let mut found = browser.texts("tbody th a").await?;
    found.sort_unstable();
    assert_eq!(found, ["eco_12", "eco_15", "eco_18"]);
    browser.finish().await
}

#[tokio::test]
async fn a_plan_is_changed_and_the_limit_moves() -> Result<()> {
    let suite = Suite::start().await?;
    let browser = browser_or_leave_out!(&suite);
    suite.account("eco_free", Plan::Free).await?;
    let key = suite.api_key("eco_free", false).await?;
    assert_eq!(suite.get("/api/secure/ping", &key).await?.header("x-ratelimit-limit"), Some("1000"));
    browser.sign_in(ADMIN, "/admin/accounts/eco_free").await?;
    assert_eq!(browser.text(".standing .of").await?, "of 1,000 calls");
    browser.choose("plan", "pro").await?;
    browser.press("Change the plan").await?;
    assert_eq!(browser.text(".notice").await?, "The plan is changed.");
    assert_eq!(browser.text(".standing .of").await?, "of 100,000 calls");
    let ask = async |suite: &Suite| suite.get("/api/secure/ping", &key).await;
    suite.until(ask, |answer| answer.header("x-ratelimit-limit") == Some("100000")).await?;
    // Beside what the services changed on the way.
    let changes = browser.texts("section[aria-labelledby=audit] tbody td").await?;
    assert!(changes.contains(&format!("user:{ADMIN}")), "{changes:?}");
    browser.fill("spend_cap", "12.50").await?;
    browser.press("Set the cap").await?;
    assert_eq!(browser.text("[data-figure=cap]").await?, "$12.50");
    browser.finish().await
}

#[tokio::test]
async fn a_dry_run_lists_what_a_run_charges_then() -> Result<()> {
    let suite = Suite::start().await?;
    let browser = browser_or_leave_out!(&suite);
    for eco_id in ["eco_a", "eco_b", "eco_none"] {
        suite.account(eco_id, Plan::Pro).await?;
    }
    suite.stripe_customer("eco_a").await?;
    suite.stripe_customer("eco_b").await?;
    let events = [("eco_a", 105_000), ("eco_b", 100_500), ("eco_none", 101_000)];
    suite.record(events.iter().map(|(eco_id, units)| event(eco_id, "/v1/x", 200, *units)).collect()).await?;
    browser.sign_in(ADMIN, "/admin/billing").await?;
    assert_eq!(browser.text("section[aria-labelledby=runs] .empty").await?, "No run was made yet.");
    browser.press("Make a dry run").await?;
    assert_eq!(browser.text(".lead").await?, "$5.50 from 2 accounts. Nothing was charged.");
    let planned = browser.texts("section[aria-labelledby=planned] tbody tr").await?;
    assert_eq!(planned.len(), 3, "two charges and an account that has no customer: {planned:?}");
    assert!(
        planned[0].starts_with("eco_a 105,000 100,000 5,000 $0.001 per call $5.00 $0.00 $5.00"),
        "{planned:?}"
    );
    assert!(planned[2].starts_with("eco_none NO_STRIPE_CUSTOMER"), "{planned:?}");
    assert_eq!(
        suite.sim("GET", "/requests?path=/v1/invoiceitems", &serde_json::json!({})).await?["requests"],
        serde_json::json!([])
    );

    let run = suite
        .until(async |suite| suite.run_overage().await, |run| run.body["results"]["charged"] == 2)
        .await?;
    assert_eq!(run.body["results"]["total_usd"], "5.50");
    browser.open("/admin/billing").await?;
    browser.follow("section[aria-labelledby=runs] tbody th a").await?;
    assert_eq!(browser.text("[data-figure=sum]").await?, "$5.50");
    assert_eq!(browser.text("[data-figure=state]").await?, "Finished");
    let failed = browser.text("section[aria-labelledby=errors] tbody tr").await?;
    assert!(failed.starts_with("eco_none NO_STRIPE_CUSTOMER"), "{failed}");
    browser.open("/admin/billing").await?;
    browser.press("Compare the records").await?;
    let verdict = browser.text("section[aria-labelledby=compared] p").await?;
    assert!(verdict.starts_with("They agree"), "{verdict}");

    // The account's side of it.
    browser.press("Sign out").await?;
    browser.sign_in("eco_a", "/dashboard/billing").await?;
    assert_eq!(browser.text("[data-figure=charged]").await?, "$5.00");
    browser.follow("section[aria-labelledby=charges] tbody td a").await?;
    assert_eq!(browser.text("h1").await?, "Why $5.00");
    let segment = browser.text("section[aria-labelledby=segments] tbody tr").await?;
    assert_eq!(segment, "Pro version 1 0 – 105,000 100,000 5,000 $0.001 per call $5.00");
    browser.finish().await.context("what the browser saw beside it")
}
