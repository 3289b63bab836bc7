//! `/api/subscriptions/*`, with a stand-in Stripe behind it.

use anyhow::{Context, Result};
use nexus_core::plan::Plan;
use serde_json::{Value, json};
use stripe_webhook::Webhook;

use crate::{
    answer::{Answer, assert_answer},
    suite::{Suite, WEBHOOK_SECRET},
};

const CURRENT: &str = "/api/subscriptions/current";
const CHECKOUT: &str = "/api/subscriptions/checkout";
const CANCEL: &str = "/api/subscriptions/cancel";
const REACTIVATE: &str = "/api/subscriptions/reactivate";

async fn price(suite: &Suite, lookup_key: &str) -> Result<String> {
    let price = [
        ("currency", "usd"),
        ("unit_amount", "4900"),
        ("recurring[interval]", "month"),
        ("product_data[name]", "X"),
        ("lookup_key", lookup_key),
    ];
    suite.stripe("prices", &price).await
}

/// The account has a subscription, and its event was heard.
async fn subscribe(suite: &Suite, eco_id: &str, price: &str) -> Result<String> {
    let customer = suite.stripe("customers", &[("metadata[eco_id]", eco_id)]).await?;
    let form = [("customer", customer.as_str()), ("items[0][price]", price)];
    let subscription = suite.stripe("subscriptions", &form).await?;
    tell(suite, eco_id, "customer.subscription.created", &subscription).await?;
    Ok(subscription)
}

/// Stripe tells of an object, and the account has a subscription there by that, which is shown.
async fn tell(suite: &Suite, eco_id: &str, kind: &str, id: &str) -> Result<Answer> {
    let event = json!({
        "id": format!("evt_{}", uuid::Uuid::new_v4().simple()), "object": "event",
        "type": kind, "data": { "object": { "id": id } },
    });
    let body = event.to_string();
    let signature = Webhook::generate_test_header(&body, WEBHOOK_SECRET, None);
    let sent = suite.request("POST", "/webhooks/stripe")?.header("stripe-signature", signature).body(body);
    assert_eq!(Answer::of(sent).await?.status, 200);
    let ask = async |suite: &Suite| suite.get_as(eco_id, CURRENT).await;
    suite.until(ask, |answer| answer.body["paid_at_stripe"] == true).await
}

#[tokio::test]
async fn a_free_account_has_a_subscription_that_nobody_pays_for() -> Result<()> {
    let suite = Suite::start().await?;
    suite.account("eco_a", Plan::Free).await?;
    assert_answer!(suite.get_as("eco_a", CURRENT).await?);
    for path in [CANCEL, REACTIVATE] {
        let refused = suite.post_as("eco_a", path, &json!({})).await?;
        assert_eq!(
            (refused.status.as_u16(), &refused.body["error"]),
            (409, &"No subscription".into()),
            "{path}"
        );
    }
    assert_eq!(suite.get_as("eco_nobody", CURRENT).await?.status, 404);
    for (method, path) in [("GET", CURRENT), ("POST", CHECKOUT), ("POST", CANCEL), ("POST", REACTIVATE)] {
        assert_eq!(Answer::of(suite.request(method, path)?).await?.status, 401, "{path}");
    }
    for (body, field) in
        [(json!({}), "plan"), (json!({ "plan": "free" }), "plan"), (json!({ "plan": 1 }), "plan")]
    {
        let refused = suite.post_as("eco_a", CHECKOUT, &body).await?;
        assert_eq!((refused.status.as_u16(), &refused.body["field"]), (400, &field.into()), "{body}");
    }
    Ok(())
}

#[tokio::test]
async fn a_subscription_ends_with_its_period_and_goes_on_and_ends_now() -> Result<()> {
    let suite = Suite::start().await?;
    suite.account("eco_a", Plan::Free).await?;
    let pro = price(&suite, "pro").await?;
    subscribe(&suite, "eco_a", &pro).await?;
    let refused = suite.post_as("eco_a", CHECKOUT, &json!({ "plan": "enterprise" })).await?;
    assert_eq!((refused.status.as_u16(), &refused.body["error"]), (409, &"Already subscribed".into()));
    // Without a body.
    let token = format!("Bearer {}", nexus_testkit::settings::user_token("eco_a")?);
    let ends = Answer::of(suite.request("POST", CANCEL)?.header("authorization", &token)).await?;
    assert_eq!(
        (ends.status.as_u16(), &ends.body["cancel_at_period_end"]),
        (200, &true.into()),
        "{}",
        ends.body
    );
    assert_eq!((&ends.body["plan"], &ends.body["cancel_at"]), (&"pro".into(), &ends.body["period_end"]));
    let goes_on = suite.post_as("eco_a", REACTIVATE, &json!({})).await?;
    assert_eq!(
        (&goes_on.body["cancel_at_period_end"], &goes_on.body["cancel_at"]),
        (&false.into(), &Value::Null)
    );
    // A repeat of a request is answered as the first was, and changes nothing any more.
    let request = json!({ "request_id": uuid::Uuid::new_v4() });
    let ends = suite.post_as("eco_a", CANCEL, &request).await?;
    assert_eq!(ends.body["cancel_at_period_end"], true, "{}", ends.body);
    let other = suite.post_as("eco_a", REACTIVATE, &request).await?;
    assert_eq!((other.status.as_u16(), &other.body["field"]), (400, &"request_id".into()));
    suite.post_as("eco_a", REACTIVATE, &json!({})).await?;
    assert_eq!(suite.post_as("eco_a", CANCEL, &request).await?.body, ends.body);
    assert_eq!(suite.get_as("eco_a", CURRENT).await?.body["cancel_at_period_end"], false);
    let ended = suite.post_as("eco_a", CANCEL, &json!({ "apply_now": true })).await?;
    assert_eq!(
        (&ended.body["plan"], &ended.body["paid_at_stripe"]),
        (&"free".into(), &false.into()),
        "{}",
        ended.body
    );
    let refused = suite.post_as("eco_a", CANCEL, &json!({ "apply_now": "yes" })).await?;
    assert_eq!((refused.status.as_u16(), &refused.body["field"]), (400, &"apply_now".into()));
    Ok(())
}

#[tokio::test]
async fn a_checkout_leads_to_a_page_of_stripes_and_from_there_to_the_plan() -> Result<()> {
    let suite = Suite::start().await?;
    suite.account("eco_a", Plan::Free).await?;
    price(&suite, "pro").await?;
    let opened = suite.post_as("eco_a", CHECKOUT, &json!({ "plan": "pro" })).await?;
    assert_eq!(opened.status, 200, "{}", opened.body);
    let url = opened.body["checkout_url"].as_str().context("a page")?;
    assert!(url.starts_with("http"), "{url}");
    let again = suite.post_as("eco_a", CHECKOUT, &json!({ "plan": "pro" })).await?;
    assert_eq!(again.body, opened.body);
    // The customer pays there.
    let session_id = opened.body["session_id"].as_str().context("a session")?;
    suite.go_through(session_id).await?;
    let shown = tell(&suite, "eco_a", "checkout.session.completed", session_id).await?;
    assert_eq!((&shown.body["plan"], &shown.body["status"]), (&"pro".into(), &"active".into()), "{shown:?}");
    let refused = suite.post_as("eco_a", CHECKOUT, &json!({ "plan": "pro" })).await?;
    assert_eq!((refused.status.as_u16(), &refused.body["error"]), (409, &"Already subscribed".into()));
    Ok(())
}

#[tokio::test]
async fn a_plan_is_changed_so_often_a_day_and_429_says_when_again() -> Result<()> {
    let suite = Suite::start().await?;
    suite.account("eco_a", Plan::Free).await?;
    let pro = price(&suite, "pro").await?;
    let subscription = subscribe(&suite, "eco_a", &pro).await?;
    let seeded = "insert into eco_stripe_changes
            (eco_id, stripe_subscription_id, change, outcome, created_time, finished_time)
        select 'eco_a', $1, '{\"kind\": \"go_on\"}', 'done', now() - interval '23 hours', now()
        from generate_series(1, 99)";
    sqlx::query(seeded).bind(&subscription).execute(&suite.db.pool).await?;
    let ends = suite.post_as("eco_a", CANCEL, &json!({})).await?;
    assert_eq!(ends.body["cancel_at_period_end"], true, "{}", ends.body);
    let refused = suite.post_as("eco_a", REACTIVATE, &json!({})).await?;
    assert_eq!((refused.status.as_u16(), &refused.body["error"]), (429, &"Too many requests".into()));
    let retry: u64 = refused.headers["retry-after"].to_str()?.parse()?;
    assert!((3_500..=3_600).contains(&retry), "{retry}");
    Ok(())
}

#[tokio::test]
async fn an_end_by_a_later_date_is_shown_as_what_it_is() -> Result<()> {
    let suite = Suite::start().await?;
    suite.account("eco_a", Plan::Free).await?;
    let pro = price(&suite, "pro").await?;
    let subscription = subscribe(&suite, "eco_a", &pro).await?;
    // At Stripe's dashboard.
    let date = (chrono::Utc::now().timestamp() + 200 * 86_400).to_string();
    suite.stripe(&format!("subscriptions/{subscription}"), &[("cancel_at", date.as_str())]).await?;
    tell(&suite, "eco_a", "customer.subscription.updated", &subscription).await?;
    let ask = async |suite: &Suite| suite.get_as("eco_a", CURRENT).await;
    let shown = suite.until(ask, |answer| !answer.body["cancel_at"].is_null()).await?;
    assert_eq!(shown.body["cancel_at_period_end"], false, "{}", shown.body);
    let ends = suite.post_as("eco_a", CANCEL, &json!({})).await?;
    assert_eq!(
        (&ends.body["cancel_at_period_end"], &ends.body["cancel_at"]),
        (&true.into(), &ends.body["period_end"])
    );
    suite.stripe(&format!("subscriptions/{subscription}"), &[("cancel_at", date.as_str())]).await?;
    let goes_on = suite.post_as("eco_a", REACTIVATE, &json!({})).await?;
    assert_eq!(
        (goes_on.status.as_u16(), &goes_on.body["cancel_at"]),
        (200, &Value::Null),
        "{}",
        goes_on.body
    );
    Ok(())
}
