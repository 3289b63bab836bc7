//! `/api/usage/spend-cap`, and what a cap does to a tracked endpoint.

use anyhow::Result;
use nexus_core::plan::Plan;
use serde_json::json;

use crate::{
    answer::{Answer, assert_answer},
    suite::{Suite, event},
};

const SPEND_CAP: &str = "/api/usage/spend-cap";

impl Suite {
    pub(crate) async fn put_as(&self, eco_id: &str, body: &'static str) -> Result<Answer> {
        let token = nexus_testkit::settings::user_token(eco_id)?;
        let request = self.request("PUT", SPEND_CAP)?.bearer_auth(token).body(body);
        Answer::of(request).await
    }
}

#[tokio::test]
async fn a_cap_is_set_shown_and_removed() -> Result<()> {
    let suite = Suite::start().await?;
    suite.account("eco_pro", Plan::Pro).await?;
    suite.record(vec![event("eco_pro", "/v1/x", 200, 105_000)]).await?;
    assert_answer!(suite.get_as("eco_pro", SPEND_CAP).await?);
    let set = suite.put_as("eco_pro", r#"{"spend_cap_usd": 12.5}"#).await?;
    assert_answer!(set);
    let shown = suite.get_as("eco_pro", SPEND_CAP).await?;
    assert_eq!(shown.body, set.body);
    let removed = suite.put_as("eco_pro", r#"{"spend_cap_usd": null}"#).await?;
    assert_eq!((&removed.body["spend_cap_usd"], &removed.body["limit"]), (&json!(null), &json!(-1)));
    Ok(())
}

#[tokio::test]
async fn a_repeated_request_sets_the_cap_once() -> Result<()> {
    let suite = Suite::start().await?;
    suite.account("eco_pro", Plan::Pro).await?;
    let first = r#"{"spend_cap_usd": 12.5, "request_id": "0b6f5a4e-4b44-4f4a-9a39-6c4a0d8f0c55"}"#;
    suite.put_as("eco_pro", first).await?;
    suite.put_as("eco_pro", r#"{"spend_cap_usd": 20}"#).await?;
    let repeated = suite.put_as("eco_pro", first).await?;
    assert_eq!(
        (repeated.status.as_u16(), &repeated.body["spend_cap_usd"]),
        (200, &json!(20.0)),
        "as it is now"
    );
    let other = r#"{"spend_cap_usd": 1, "request_id": "0b6f5a4e-4b44-4f4a-9a39-6c4a0d8f0c55"}"#;
    let other = suite.put_as("eco_pro", other).await?;
    assert_eq!((other.status.as_u16(), &other.body["field"]), (400, &json!("request_id")));
    Ok(())
}

#[tokio::test]
async fn what_is_no_cap_is_named() -> Result<()> {
    let suite = Suite::start().await?;
    suite.account("eco_pro", Plan::Pro).await?;
    assert_answer!(suite.put_as("eco_pro", r#"{"spend_cap_usd": "12.5", "request_id": 7}"#).await?);
    assert_answer!(suite.put_as("eco_pro", r#"{"spend_cap_usd": 12.505}"#).await?);
    for bad in
        ["{}", r#"{"spend_cap_usd": -1}"#, r#"{"spend_cap_usd": 0.0000001}"#, r#"{"spend_cap_usd": 1e99}"#]
    {
        let answer = suite.put_as("eco_pro", bad).await?;
        assert_eq!((answer.status.as_u16(), &answer.body["field"]), (400, &json!("spend_cap_usd")), "{bad}");
    }
    // Dollars are no yen.
    sqlx::query("update eco_identities set currency_code = 'JPY'").execute(&suite.db.pool).await?;
    let yen = suite.put_as("eco_pro", r#"{"spend_cap_usd": 12}"#).await?;
    assert_eq!((yen.status.as_u16(), &yen.body["field"]), (400, &json!("currency")));
    assert_eq!(yen.body["message"], "must be the account's currency, JPY");
    let named = suite.put_as("eco_pro", r#"{"spend_cap_usd": 12, "currency": "jpy"}"#).await?;
    assert_eq!(
        (&named.body["spend_cap_usd"], &named.body["currency"]),
        (&json!(12.0), &json!("JPY")),
        "{named:?}"
    );
    let none = suite.put_as("eco_pro", r#"{"spend_cap_usd": null}"#).await?;
    assert_eq!(none.body["spend_cap_usd"], json!(null), "{none:?}");
    Ok(())
}

#[tokio::test]
async fn only_users_of_open_accounts_set_a_cap() -> Result<()> {
    let suite = Suite::start().await?;
    suite.account("eco_pro", Plan::Pro).await?;
    let anonymous = Answer::of(suite.request("PUT", SPEND_CAP)?.body(r#"{"spend_cap_usd": 1}"#)).await?;
    assert_eq!((anonymous.status.as_u16(), &anonymous.body["error"]), (401, &json!("Unauthorized")));
    let nobody = suite.put_as("eco_nobody", r#"{"spend_cap_usd": 1}"#).await?;
    assert_eq!((nobody.status.as_u16(), &nobody.body["error"]), (404, &json!("Account not found")));
    sqlx::query("update eco_identities set status = 'closed', closed_time = now()")
        .execute(&suite.db.pool)
        .await?;
    let closed = suite.put_as("eco_pro", r#"{"spend_cap_usd": 1}"#).await?;
    assert_eq!((closed.status.as_u16(), &closed.body["error"]), (403, &json!("Account closed")));
    Ok(())
}

#[tokio::test]
async fn beyond_its_cap_an_account_is_refused_until_it_is_raised() -> Result<()> {
    let suite = Suite::start().await?;
    suite.account("eco_pro", Plan::Pro).await?;
    suite.put_as("eco_pro", r#"{"spend_cap_usd": 0.01}"#).await?;
    suite.record(vec![event("eco_pro", "/v1/x", 200, 100_009)]).await?;
    let key = suite.api_key("eco_pro", false).await?;
    let ping = async |suite: &Suite| suite.get("/api/secure/ping", &key).await;
    assert_answer!(ping(&suite).await?);
    let refused = ping(&suite).await?;
    assert!(refused.number("retry-after")? > 60, "it lasts until the reset");
    let mut shown = refused.shown();
    shown["headers"]["retry-after"] = "[seconds]".into();
    insta::assert_json_snapshot!(shown, {
        ".body.period_end" => crate::answer::time(),
        ".headers[\"x-ratelimit-reset\"]" => crate::answer::time(),
        ".headers[\"ratelimit-policy\"]" => crate::answer::seconds(),
        ".headers.ratelimit" => crate::answer::seconds(),
    });
    let cap = suite.get_as("eco_pro", SPEND_CAP).await?;
    assert_eq!(
        (&cap.body["spent_usd"], &cap.body["left_usd"], &cap.body["limit"]),
        (&json!(0.01), &json!(0.0), &json!(100_010))
    );

    suite.put_as("eco_pro", r#"{"spend_cap_usd": 0.02}"#).await?;
    let raised = suite.until(ping, |answer| answer.status == 200).await?;
    assert_eq!((raised.number("x-ratelimit-limit")?, raised.number("x-ratelimit-remaining")?), (100_020, 9));
    Ok(())
}
