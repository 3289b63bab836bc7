//! An account that pays in another currency than US dollars.

use anyhow::Result;
use nexus_core::plan::Plan;
use nexus_testkit::settings::{ADMIN, user_token};
use serde_json::json;

use crate::{
    answer::Answer,
    suite::{Suite, event},
    visitor::Visitor,
};

async fn suite() -> Result<Suite> {
    let suite = Suite::start().await?;
    let priced = "insert into eco_plan_prices (plan, version, currency_code, monthly_micros, overage_micros)
                  values ('pro', 1, 'EUR', 45000000, 1000)";
    sqlx::query(priced).execute(&suite.db.pool).await?;
    for eco_id in ["eco_eur", "eco_usd"] {
        suite.account(eco_id, Plan::Pro).await?;
        suite.stripe_customer(eco_id).await?;
    }
    sqlx::query("update eco_identities set currency_code = 'EUR' where eco_id = 'eco_eur'")
        .execute(&suite.db.pool)
        .await?;
    Ok(suite)
}

#[tokio::test]
async fn every_amount_is_told_with_its_currency_and_currencies_are_not_added_up() -> Result<()> {
    let suite = suite().await?;
    suite
        .record(vec![event("eco_eur", "/v1/x", 200, 110_000), event("eco_usd", "/v1/x", 200, 105_000)])
        .await?;
    let due = async |suite: &Suite| suite.get_as("eco_eur", "/api/usage/overage").await;
    let overage = suite.until(due, |answer| answer.body["overage_calls"] == 10_000).await?;
    assert_eq!(
        (&overage.body["currency"], &overage.body["overage_cost_usd"], &overage.body["message"]),
        (
            &json!("EUR"),
            &json!(10.0),
            &json!(
                "You will be charged 10.00 EUR for 10,000 overage calls at the end of your billing period."
            )
        )
    );
    let run = suite.run_overage().await?;
    let results = &run.body["results"];
    assert_eq!((&results["charged"], &results["total_usd"]), (&json!(2), &json!("5.00")), "{run:?}");
    let totals = json!([{"currency": "EUR", "total": 10.0}, {"currency": "USD", "total": 5.0}]);
    assert_eq!(results["totals"], totals);

    let users = suite.get_as_admin("/api/admin/analytics/users").await?;
    let currencies: Vec<_> =
        users.body["users"].as_array().into_iter().flatten().map(|user| &user["currency"]).collect();
    assert_eq!(currencies, ["EUR", "USD"]);

    let admin = Visitor::of(&suite, ADMIN)?;
    let runs = admin.get("/admin/billing").await?;
    assert!(runs.says("10.00 EUR + $5.00"), "{}", runs.html);
    let overview = admin.get("/admin").await?;
    assert!(overview.says("accounts in EUR are not in it"), "{}", overview.html);
    let euros = admin.get("/admin?currency=EUR").await?;
    assert!(euros.says("Revenue by month, EUR") && euros.says("45.00 EUR"), "{}", euros.html);
    let dry = admin.post("/admin/billing/dry-run", &[("csrf", &runs.field("csrf")?)]).await?;
    assert!(dry.says("no account owes a difference"), "{}", dry.html);
    Ok(())
}

#[tokio::test]
async fn a_cap_is_in_the_accounts_currency_once_that_is_named() -> Result<()> {
    let suite = suite().await?;
    let put = async |body: &serde_json::Value| {
        let request = suite.request("PUT", "/api/usage/spend-cap")?.bearer_auth(user_token("eco_eur")?);
        Answer::of(request.json(body)).await
    };
    let dollars = put(&json!({"spend_cap_usd": 12.5})).await?;
    assert_eq!((dollars.status.as_u16(), &dollars.body["field"]), (400, &json!("currency")), "{dollars:?}");
    let euros = put(&json!({"spend_cap_usd": 12.5, "currency": "EUR"})).await?;
    assert_eq!(
        (&euros.body["spend_cap_usd"], &euros.body["currency"]),
        (&json!(12.5), &json!("EUR")),
        "{euros:?}"
    );
    Ok(())
}
