//! Subscriptions over time.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::harness::{Sim, id, ids, read};

fn period(subscription: &Value) -> Result<(i64, i64)> {
    let item = &subscription["items"]["data"][0];
    let bound = |field: &str| item[field].as_i64().context("a bound");
    Ok((bound("current_period_start")?, bound("current_period_end")?))
}

#[tokio::test]
async fn the_period_moves_on_with_the_clock() -> Result<()> {
    let sim = Sim::start().await?;
    let customer = sim.customer().await?;
    let created = sim.subscription(&customer).await?;
    let (start, end) = period(&created)?;
    assert_eq!(json!(start), created["billing_cycle_anchor"]);
    let length = end - start;
    ensure!((28 * 86_400..=31 * 86_400).contains(&length));
    sim.advance(u32::try_from(length)?).await?;
    let later = sim.read(&format!("/v1/subscriptions/{}", id(&created)?)).await?;
    assert_eq!(period(&later)?.0, end);
    sim.stop().await
}

#[tokio::test]
async fn canceling_at_the_period_end_happens_then() -> Result<()> {
    let sim = Sim::start().await?;
    let customer = sim.customer().await?;
    let created = sim.subscription(&customer).await?;
    let path = format!("/v1/subscriptions/{}", id(&created)?);
    sim.create(&path, &[("cancel_at_period_end", "true")]).await?;
    let (_, end) = period(&created)?;
    assert_eq!(sim.read(&path).await?["status"], "active");
    sim.advance(31 * 86_400).await?;
    let ended = sim.read(&path).await?;
    assert_eq!((&ended["status"], &ended["ended_at"]), (&json!("canceled"), &json!(end)));
    assert_eq!(period(&ended)?, period(&created)?);
    sim.stop().await
}

#[tokio::test]
async fn a_date_of_its_own_is_taken_away_by_itself_alone() -> Result<()> {
    let sim = Sim::start().await?;
    let customer = sim.customer().await?;
    let created = sim.subscription(&customer).await?;
    let path = format!("/v1/subscriptions/{}", id(&created)?);
    let date = period(&created)?.1 + 200 * 86_400;
    let dated = sim.create(&path, &[("cancel_at", &date.to_string())]).await?;
    assert_eq!((&dated["cancel_at"], &dated["cancel_at_period_end"]), (&json!(date), &json!(false)));
    let stays = sim.create(&path, &[("cancel_at_period_end", "false")]).await?;
    assert_eq!(stays["cancel_at"], json!(date));
    let both = [("cancel_at", ""), ("cancel_at_period_end", "false")];
    assert_eq!(read(sim.post(&path, &both).send().await?).await?.0, 400);
    let goes_on = sim.create(&path, &[("cancel_at", "")]).await?;
    assert_eq!(goes_on["cancel_at"], json!(null));
    // The period's end takes its place.
    sim.create(&path, &[("cancel_at", &date.to_string())]).await?;
    let ends = sim.create(&path, &[("cancel_at_period_end", "true")]).await?;
    assert_eq!(
        (&ends["cancel_at"], &ends["cancel_at_period_end"]),
        (&json!(period(&created)?.1), &json!(true))
    );
    sim.stop().await
}

#[tokio::test]
async fn a_paused_subscription_still_ends_when_it_was_to() -> Result<()> {
    let sim = Sim::start().await?;
    let customer = sim.customer().await?;
    let created = sim.subscription(&customer).await?;
    let subscription = id(&created)?;
    let path = format!("/v1/subscriptions/{subscription}");
    sim.create(&path, &[("cancel_at_period_end", "true")]).await?;
    sim.admin(&format!("/subscriptions/{subscription}"), json!({ "status": "paused" })).await?;
    sim.advance(31 * 86_400).await?;
    let ended = sim.read(&path).await?;
    assert_eq!((&ended["status"], &ended["ended_at"]), (&json!("canceled"), &json!(period(&created)?.1)));
    sim.stop().await
}

#[tokio::test]
async fn a_canceled_subscription_is_out_of_the_list_and_takes_no_items() -> Result<()> {
    let sim = Sim::start().await?;
    let customer = sim.customer().await?;
    let subscription = id(&sim.subscription(&customer).await?)?;
    let path = format!("/v1/subscriptions/{subscription}");
    assert_eq!(sim.delete(&path).send().await?.status(), 200);
    assert_eq!(sim.delete(&path).send().await?.status(), 404);
    assert_eq!(ids(&sim.read("/v1/subscriptions").await?)?.len(), 0);
    assert_eq!(ids(&sim.read("/v1/subscriptions?status=canceled").await?)?.len(), 1);
    assert_eq!(ids(&sim.read("/v1/subscriptions?status=all").await?)?.len(), 1);
    let form = [
        ("customer", customer.as_str()),
        ("amount", "1"),
        ("currency", "usd"),
        ("subscription", &subscription),
    ];
    let (status, body) = read(sim.post("/v1/invoiceitems", &form).send().await?).await?;
    assert_eq!((status, &body["error"]["param"]), (400, &json!("subscription")));
    sim.stop().await
}

#[tokio::test]
async fn deleting_a_customer_ends_its_subscriptions() -> Result<()> {
    let sim = Sim::start().await?;
    let customer = sim.customer().await?;
    let subscription = id(&sim.subscription(&customer).await?)?;
    assert_eq!(sim.delete(&format!("/v1/customers/{customer}")).send().await?.status(), 200);
    let ended = sim.read(&format!("/v1/subscriptions/{subscription}")).await?;
    assert_eq!(ended["status"], "canceled");
    let deleted = sim.read(&format!("/v1/customers/{customer}")).await?;
    assert_eq!(deleted, json!({ "id": customer, "object": "customer", "deleted": true }));
    sim.stop().await
}
