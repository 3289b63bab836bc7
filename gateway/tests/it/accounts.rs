//! `/api/admin/accounts/{id}`: one account in depth.

use anyhow::Result;
use nexus_core::plan::Plan;
use serde_json::json;

use crate::{
    answer::{Answer, assert_answer},
    suite::{Suite, event},
};

const ACCOUNT: &str = "/api/admin/accounts/eco_owes";

#[tokio::test]
async fn all_of_an_account_is_shown_and_no_secret() -> Result<()> {
    let suite = Suite::start().await?;
    suite.account("eco_owes", Plan::Pro).await?;
    suite.stripe_customer("eco_owes").await?;
    let key = suite.api_key("eco_owes", false).await?;
    suite.record(vec![event("eco_owes", "/v1/x", 200, 112_500)]).await?;
    suite.run_overage().await?;
    suite.put_as("eco_owes", r#"{"spend_cap_usd": 20}"#).await?;
    let shown = suite.get_as_admin(ACCOUNT).await?;
    assert_answer!(shown);
    let secret = &key[key.len() - 22..];
    assert!(!shown.body.to_string().contains(secret), "{}", shown.body);
    for (path, member) in [
        ("/api/usage/current", "usage"),
        ("/api/usage/overage", "overage"),
        ("/api/usage/spend-cap", "spend_cap"),
        ("/api/subscriptions/current", "subscription"),
    ] {
        assert_eq!(suite.get_as("eco_owes", path).await?.body, shown.body[member], "{path}");
    }
    Ok(())
}

#[tokio::test]
async fn a_closed_account_is_shown_as_one() -> Result<()> {
    let suite = Suite::start().await?;
    suite.account("eco_owes", Plan::Free).await?;
    let close = "update eco_identities set status = 'closed', closed_time = now() where eco_id = 'eco_owes'";
    sqlx::query(close).execute(&suite.db.pool).await?;
    let shown = suite.get_as_admin(ACCOUNT).await?;
    assert_eq!((shown.status.as_u16(), &shown.body["account_status"]), (200, &"closed".into()), "{shown:?}");
    assert!(shown.body["closed_at"].is_string(), "{shown:?}");
    Ok(())
}

#[tokio::test]
async fn who_is_not_there_is_404_and_what_is_no_account_is_named() -> Result<()> {
    let suite = Suite::start().await?;
    assert_answer!(suite.get_as_admin("/api/admin/accounts/eco_nobody").await?);
    assert_answer!(suite.get_as_admin("/api/admin/accounts/x%20y").await?);
    // An empty id would mean the admin's own account.
    assert_eq!(suite.get_as_admin("/api/admin/accounts/").await?.status, 404);
    assert_eq!(suite.get_as_admin("/api/admin/accounts//charges").await?.status, 404);
    Ok(())
}

#[tokio::test]
async fn others_do_not_see_even_their_own() -> Result<()> {
    let suite = Suite::start().await?;
    suite.account("eco_owes", Plan::Pro).await?;
    assert_eq!(suite.get_as("eco_owes", ACCOUNT).await?.body, json!({"error": "Forbidden"}));
    let without = Answer::of(suite.request("GET", ACCOUNT)?).await?;
    assert_eq!((without.status.as_u16(), &without.body), (401, &json!({"error": "Unauthorized"})));
    Ok(())
}
