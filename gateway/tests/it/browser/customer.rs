//! What a customer does.

use anyhow::{Context, Result};
use nexus_core::plan::Plan;
use serde_json::json;

use super::driver::browser_or_leave_out;
use crate::{
    suite::{Suite, event},
    visitor::Visitor,
};

#[tokio::test]
async fn a_customer_signs_in_and_sees_the_figures_that_the_api_gives() -> Result<()> {
    let suite = Suite::start().await?;
    let browser = browser_or_leave_out!(&suite);
    suite.account("eco_pro", Plan::Pro).await?;
    suite
        .record(vec![event("eco_pro", "/v1/x", 200, 104_000), event("eco_pro", "/v1/y", 503, 1_000)])
        .await?;
    browser.sign_in("eco_pro", "/dashboard").await?;
    let api = suite.get_as("eco_pro", "/api/usage/current").await?;
    assert_eq!((&api.body["api_calls"], &api.body["overage_calls"]), (&json!(105_000), &json!(5_000)));
    assert_eq!(browser.text("[data-figure=calls]").await?, "105,000");
    assert_eq!(browser.text("[data-figure=left]").await?, "5,000 calls beyond the included ones");
    let meter = browser.find("[role=meter]").await?;
    let told = meter.attr("aria-valuetext").await?.context("the meter's words")?;
    assert_eq!(told, "105,000 of 100,000 calls are used, 105.0 %");
    let overage = suite.get_as("eco_pro", "/api/usage/overage").await?;
    assert_eq!(overage.body["overage_cost_usd"], 5.0);
    assert_eq!(browser.text("[data-figure=overage]").await?, "$5.00");
    let endpoints = suite.get_as("eco_pro", "/api/usage/endpoints").await?;
    let first = &endpoints.body["endpoints"][0];
    let row = browser.texts("section[aria-labelledby=endpoints] tbody tr:first-child > *").await?;
    assert_eq!(
        row[0],
        format!(
            "{} {}",
            first["method"].as_str().context("a word")?,
            first["endpoint"].as_str().context("a path")?
        )
    );
    assert_eq!((row[1].as_str(), row[3].as_str(), row[4].as_str()), ("104,000", "100.0 %", "0"));
    browser.find("details summary").await?.click().await?;
    let day = browser.texts("details tbody tr:first-child > *").await?;
    assert_eq!((day[1].as_str(), day[2].as_str(), day[3].as_str()), ("105,000", "104,000", "1,000"));
    // What is recorded meanwhile shows by itself.
    suite.record(vec![event("eco_pro", "/v1/x", 200, 250)]).await?;
    browser.until_text("[data-figure=calls]", "105,250").await?;
    browser.until_text("[data-figure=overage]", "$5.25").await?;
    browser.press("Sign out").await?;
    assert_eq!(browser.text(".notice").await?, "You are signed out.");
    browser.open("/dashboard").await?;
    assert_eq!(browser.path().await?, "/sign-in?next=%2Fdashboard");
    browser.finish().await
}

#[tokio::test]
async fn a_key_is_created_rotated_and_revoked_and_the_old_one_refused() -> Result<()> {
    let suite = Suite::start().await?;
    let browser = browser_or_leave_out!(&suite);
    suite.account("eco_pro", Plan::Pro).await?;
    browser.sign_in("eco_pro", "/dashboard/keys").await?;
    assert_eq!(browser.text(".empty").await?, "There is no key yet. Create the first below.");
    browser.fill("name", "Reports <script>alert(1)</script>").await?;
    browser.find("input[value='usage.check']").await?.click().await?;
    browser.fill("other_scopes", "reports.read").await?;
    browser.press("Create the key").await?;
    let key = browser.find("#secret").await?.value().await?.context("the key")?;
    let ping = async |key: &str| {
        anyhow::Ok(suite.get("/api/secure/ping", &format!("ApiKey {key}")).await?.status.as_u16())
    };
    assert_eq!(ping(&key).await?, 200);
    browser.find("[data-copy]").await?.click().await?;
    browser.until_text("[data-copied]", "Copied.").await?;
    // A reload sends the form again, and makes no second key.
    browser.driver.refresh().await?;
    assert_eq!(browser.find("#secret").await?.value().await?.as_deref(), Some(key.as_str()));
    browser.press("To the keys").await?;
    let row = browser.texts("tbody tr > *").await?;
    assert_eq!(row.len(), 5, "one key: {row:?}");
    assert!(row[0].starts_with("Reports <script>alert(1)</script>"), "{row:?}");
    assert_eq!((row[1].as_str(), row[2].as_str()), ("Active", "usage.check, reports.read"));
    assert!(!browser.find("body").await?.text().await?.contains(key.split('.').nth(1).context("a secret")?));

    browser.follow("tbody th a").await?;
    browser.choose("grace", "0").await?;
    browser.press("Rotate the key").await?;
    let rotated = browser.find("#secret").await?.value().await?.context("the new secret")?;
    assert_ne!(rotated, key);
    assert_eq!((ping(&key).await?, ping(&rotated).await?), (401, 200));

    browser.press("To the keys").await?;
    browser.follow("tbody th a").await?;
    browser.press("Revoke this key").await?;
    browser.press("Keep it").await?;
    assert_eq!(ping(&rotated).await?, 200);
    browser.press("Revoke this key").await?;
    browser.press("Revoke it").await?;
    assert_eq!(browser.text(".notice").await?, "The key is revoked. It is refused from now on.");
    assert_eq!(browser.text("tbody td").await?, "Revoked");
    let ask = async |suite: &Suite| suite.get("/api/secure/ping", &format!("ApiKey {rotated}")).await;
    suite.until(ask, |answer| answer.status == 401).await?;
    browser.finish().await
}

#[tokio::test]
async fn spend_is_capped_and_calls_beyond_it_are_refused() -> Result<()> {
    let suite = Suite::start().await?;
    let browser = browser_or_leave_out!(&suite);
    suite.account("eco_pro", Plan::Pro).await?;
    suite.record(vec![event("eco_pro", "/v1/x", 200, 105_000)]).await?;
    let key = suite.api_key("eco_pro", false).await?;
    browser.sign_in("eco_pro", "/dashboard").await?;
    assert_eq!(browser.text("[data-figure=cap]").await?, "None");
    browser.fill("spend_cap", "5").await?;
    browser.press("Set the cap").await?;
    assert_eq!(browser.text(".notice").await?, "The spend cap is set.");
    assert_eq!(browser.text("[data-figure=cap]").await?, "$5.00");
    assert_eq!(suite.get_as("eco_pro", "/api/usage/spend-cap").await?.body["spend_cap_usd"], 5.0);
    let ask = async |suite: &Suite| suite.get("/api/secure/ping", &key).await;
    let refused = suite.until(ask, |answer| answer.status == 429).await?;
    assert_eq!(refused.body["reason"], "spend_cap_reached");
    browser.press("Remove it").await?;
    assert_eq!(browser.text("[data-figure=cap]").await?, "None");
    suite.until(ask, |answer| answer.status == 200).await?;
    browser.finish().await
}

#[tokio::test]
async fn a_wrong_amount_is_said_and_changes_nothing() -> Result<()> {
    let suite = Suite::start().await?;
    let browser = browser_or_leave_out!(&suite);
    suite.account("eco_pro", Plan::Pro).await?;
    browser.sign_in("eco_pro", "/dashboard").await?;
    browser.fill("spend_cap", "a lot").await?;
    browser.press("Set the cap").await?;
    let said = browser.text("[role=alert]").await?;
    assert!(said.contains("spend cap must be an amount of 0 or more"), "{said}");
    assert_eq!(
        suite.get_as("eco_pro", "/api/usage/spend-cap").await?.body["spend_cap_usd"],
        serde_json::Value::Null
    );
    Ok(())
}

#[tokio::test]
async fn a_customer_goes_to_a_checkout_and_leaves_a_plan_and_keeps_it() -> Result<()> {
    let suite = Suite::start().await?;
    let browser = browser_or_leave_out!(&suite);
    suite.account("eco_free", Plan::Free).await?;
    suite.account("eco_pro", Plan::Pro).await?;
    let price = [
        ("currency", "usd"),
        ("unit_amount", "4900"),
        ("recurring[interval]", "month"),
        ("product_data[name]", "Pro"),
        ("lookup_key", "pro"),
    ];
    suite.stripe("prices", &price).await?;
    browser.sign_in("eco_free", "/dashboard/billing").await?;
    browser.press("Change to Pro").await?;
    browser.press("Go on to the checkout").await?;
    let stripe = browser.find("main a.primary").await?.attr("href").await?.context("an address")?;
    assert!(stripe.contains("/checkout/cs_"), "{stripe}");
    browser.press("Back without paying").await?;
    browser.press("Sign out").await?;

    // This one was given its plan: nobody pays for it at Stripe.
    browser.sign_in("eco_pro", "/dashboard/billing").await?;
    browser.press("Change to Free").await?;
    browser.press("Change the plan").await?;
    assert_eq!(browser.text(".notice").await?, "The change is noted: it comes with the end of the period.");
    let waits = suite.get_as("eco_pro", "/api/subscriptions/current").await?;
    assert_eq!((&waits.body["plan"], &waits.body["next_plan"]), (&"pro".into(), &"free".into()));
    browser.press("Keep Pro").await?;
    assert_eq!(browser.text(".notice").await?, "The plan goes on.");
    let kept = suite.get_as("eco_pro", "/api/subscriptions/current").await?;
    assert_eq!(kept.body["next_plan"], serde_json::Value::Null);
    browser.finish().await
}

#[tokio::test]
async fn everything_can_be_done_without_scripts() -> Result<()> {
    let suite = Suite::start().await?;
    let browser = browser_or_leave_out!(&suite);
    suite.account("eco_pro", Plan::Pro).await?;
    browser.cdp("Emulation.setScriptExecutionDisabled", json!({"value": true})).await?;
    browser.sign_in("eco_pro", "/dashboard/keys").await?;
    browser.fill("name", "Reports").await?;
    browser.press("Create the key").await?;
    let key = browser.find("#secret").await?.attr("value").await?.context("the key")?;
    assert_eq!(suite.get("/api/secure/ping", &format!("ApiKey {key}")).await?.status, 200);
    assert!(
        !browser.find("[data-copy]").await?.is_displayed().await?,
        "what needs a script is not shown without"
    );
    Ok(())
}

/// Of streams an account has eight; a browser gives up one that is refused.
#[tokio::test]
async fn figures_go_on_once_there_is_room_for_their_stream() -> Result<()> {
    let suite = Suite::start().await?;
    let browser = browser_or_leave_out!(&suite);
    suite.account("eco_pro", Plan::Pro).await?;
    let visitor = Visitor::of(&suite, "eco_pro")?;
    let mut held = Vec::new();
    for _ in 0..8 {
        held.push(visitor.request("GET", "/dashboard/live")?.send().await?);
    }
    // Half a minute is over at once.
    let hurry = "window.refused = 0; const wait = window.setTimeout; \
                 window.setTimeout = (then, ms) => { window.refused += ms === 30000; wait(then, ms / 100); };";
    browser.cdp("Page.addScriptToEvaluateOnNewDocument", json!({"source": hurry})).await?;
    browser.sign_in("eco_pro", "/dashboard").await?;
    let refused = async {
        while browser.driver.execute("return window.refused", vec![]).await?.json() == &json!(0) {}
        anyhow::Ok(())
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), refused).await.context("never refused")??;
    drop(held);
    suite.record(vec![event("eco_pro", "/v1/x", 200, 250)]).await?;
    browser.until_text("[data-figure=calls]", "250").await
}
