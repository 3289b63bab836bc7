//! `POST /webhooks/stripe`.

use anyhow::Result;
use nexus_core::plan::Plan;
use reqwest::RequestBuilder;
use serde_json::json;
use stripe_webhook::Webhook;

use crate::{
    answer::{Answer, assert_answer},
    suite::{Suite, WEBHOOK_SECRET},
};

const ROUTE: &str = "/webhooks/stripe";
// With blanks, an order and letters that no program would write again like this.
const BODY: &str = "{ \"id\": \"evt_1\",\n \"type\":\"customer.tax_id.created\", \"object\": \"event\", \"data\": {\"object\": {\"id\": \"txi_1\", \"name\": \"Gr\\u00f6\u{df}e\"}}}\n";

fn signed(suite: &Suite, body: &str) -> Result<RequestBuilder> {
    let signature = Webhook::generate_test_header(body, WEBHOOK_SECRET, None);
    Ok(suite.request("POST", ROUTE)?.header("stripe-signature", signature).body(body.to_owned()))
}

#[tokio::test]
async fn an_event_is_taken_byte_for_byte_and_once() -> Result<()> {
    let suite = Suite::start().await?;
    assert_answer!(Answer::of(signed(&suite, BODY)?).await?);
    let again = Answer::of(signed(&suite, BODY)?).await?;
    assert_eq!((again.status.as_u16(), &again.body), (200, &json!({ "received": true, "duplicate": true })));
    let stored: i64 =
        sqlx::query_scalar("select count(*) from eco_stripe_events").fetch_one(&suite.db.pool).await?;
    assert_eq!(stored, 1);
    Ok(())
}

#[tokio::test]
async fn what_stripe_did_not_sign_is_refused() -> Result<()> {
    let suite = Suite::start().await?;
    let send = |signature: &str| {
        let request = suite.request("POST", ROUTE)?.header("stripe-signature", signature);
        anyhow::Ok(Answer::of(request.body(BODY)))
    };
    let foreign = Webhook::generate_test_header(BODY, "whsec_other", None);
    assert_answer!(send(&foreign)?.await?);
    let old = Webhook::generate_test_header(BODY, WEBHOOK_SECRET, Some(1_700_000_000));
    for signature in [old.as_str(), "", "t=1,v1=", "x"] {
        let refused = send(signature)?.await?;
        assert_eq!(
            (refused.status.as_u16(), &refused.body["field"]),
            (400, &"Stripe-Signature".into()),
            "{signature}"
        );
    }
    assert_answer!(Answer::of(suite.request("POST", ROUTE)?.body(BODY)).await?);
    let twice = signed(&suite, BODY)?.header("stripe-signature", &foreign);
    assert_eq!(Answer::of(twice).await?.status, 400);
    // Signed, and no event.
    let refused = Answer::of(signed(&suite, "{}")?).await?;
    assert_eq!((refused.status.as_u16(), &refused.body["field"]), (400, &"body".into()), "{}", refused.body);
    let large = signed(&suite, &"x".repeat(1024 * 1024 + 1))?;
    assert_eq!(Answer::of(large).await?.status, 413);
    Ok(())
}

#[tokio::test]
async fn without_billing_svc_stripe_is_asked_to_try_again() -> Result<()> {
    let mut suite = Suite::start().await?;
    suite.stop_billing().await?;
    let answer = Answer::of(signed(&suite, BODY)?).await?;
    assert_eq!(answer.status, 503);
    assert!(answer.number("retry-after")? >= 1);
    Ok(())
}

#[tokio::test]
async fn a_subscription_at_stripe_is_the_accounts_plan() -> Result<()> {
    let suite = Suite::start().await?;
    suite.account("eco_a", Plan::Free).await?;
    let customer = suite.stripe("customers", &[("metadata[eco_id]", "eco_a")]).await?;
    let price = [
        ("currency", "usd"),
        ("unit_amount", "4900"),
        ("recurring[interval]", "month"),
        ("product_data[name]", "Pro"),
        ("lookup_key", "pro"),
    ];
    let price = suite.stripe("prices", &price).await?;
    let subscription =
        suite.stripe("subscriptions", &[("customer", &customer), ("items[0][price]", &price)]).await?;
    let event = json!({
        "id": "evt_1", "object": "event", "type": "customer.subscription.created",
        "data": { "object": { "id": subscription } },
    });
    assert_eq!(Answer::of(signed(&suite, &event.to_string())?).await?.status, 200);
    let usage = suite
        .until(
            async |suite| suite.get_as("eco_a", "/api/usage/current").await,
            |answer| answer.body["plan"] == "pro",
        )
        .await?;
    assert_eq!(usage.body["limit"], 100_000);
    Ok(())
}
