//! Stripe's own test clocks.

use anyhow::{Context as _, Result};
use serde_json::json;

use crate::harness::{Sim, id, ids, read};

#[tokio::test]
async fn customers_of_a_test_clock_live_in_its_time_alone() -> Result<()> {
    let sim = Sim::start().await?;
    let start = 1_800_000_000;
    let clock = sim
        .create("/v1/test_helpers/test_clocks", &[("frozen_time", &start.to_string()), ("name", "june")])
        .await?;
    let clock_id = id(&clock)?;
    assert_eq!((&clock["status"], &clock["frozen_time"]), (&json!("ready"), &json!(start)));
    let customer = sim.create("/v1/customers", &[("test_clock", &clock_id)]).await?;
    assert_eq!((&customer["created"], &customer["test_clock"]), (&json!(start), &json!(clock_id)));
    let customer = id(&customer)?;
    let subscription = sim.subscription(&customer).await?;
    assert_eq!(subscription["created"], start);
    let end = subscription["items"]["data"][0]["current_period_end"].as_i64().context("an end")?;
    let latest = async || {
        let list = sim.read(&format!("/v1/invoices?customer={customer}&limit=1")).await?;
        anyhow::Ok(list["data"][0].clone())
    };
    // The clock of all does not touch it.
    sim.advance(29 * 86_400).await?;
    assert_eq!(latest().await?["billing_reason"], "subscription_create");

    let advance = format!("/v1/test_helpers/test_clocks/{clock_id}/advance");
    let to =
        async |time: i64| read(sim.post(&advance, &[("frozen_time", &time.to_string())]).send().await?).await;
    assert_eq!(to(start).await?.0, 400);
    assert_eq!(to(start + 70 * 86_400).await?.0, 400);
    let (status, moved) = to(end + 3600).await?;
    assert_eq!((status, &moved["frozen_time"]), (200, &json!(end + 3600)));
    let invoice = latest().await?;
    assert_eq!((&invoice["status"], &invoice["created"]), (&json!("paid"), &json!(end)));
    assert_eq!(invoice["status_transitions"]["paid_at"], end + 3600);
    let clocks = ids(&sim.read("/v1/test_helpers/test_clocks").await?)?;
    assert_eq!(clocks, std::slice::from_ref(&clock_id));
    let told = async |kind: &str| {
        let events = sim.read(&format!("/v1/events?type=test_helpers.test_clock.{kind}")).await?;
        anyhow::Ok(events["data"][0]["data"]["object"].clone())
    };
    let (advancing, ready) = (told("advancing").await?, told("ready").await?);
    assert_eq!((&advancing["status"], &advancing["frozen_time"]), (&json!("advancing"), &json!(start)));
    assert_eq!((&ready["status"], &ready["frozen_time"]), (&json!("ready"), &json!(end + 3600)));

    // Lists leave them out unless they are asked for.
    let other = sim.customer().await?;
    let count = async |path: &str| anyhow::Ok(ids(&sim.read(path).await?)?.len());
    assert_eq!(ids(&sim.read("/v1/customers").await?)?, [other]);
    assert_eq!(count(&format!("/v1/customers?test_clock={clock_id}")).await?, 1);
    assert_eq!(count("/v1/subscriptions").await?, 0);
    assert_eq!(count(&format!("/v1/subscriptions?test_clock={clock_id}")).await?, 1);
    assert_eq!(count(&format!("/v1/subscriptions?customer={customer}")).await?, 1);

    let path = format!("/v1/test_helpers/test_clocks/{clock_id}");
    assert_eq!(sim.delete(&path).send().await?.status(), 200);
    assert_eq!(sim.read(&format!("/v1/customers/{customer}")).await?["deleted"], true);
    sim.stop().await
}

#[tokio::test]
async fn what_happens_in_a_time_long_past_can_be_read_like_all_else() -> Result<()> {
    let sim = Sim::start().await?;
    let clock = id(&sim.create("/v1/test_helpers/test_clocks", &[("frozen_time", "1700000000")]).await?)?;
    sim.create("/v1/customers", &[("test_clock", &clock)]).await?;
    sim.customer().await?;
    let list = sim.read("/v1/events?type=customer.created").await?;
    let events = ids(&list)?;
    assert_eq!(events.len(), 2);
    assert_eq!(list["data"][1]["created"], 1_700_000_000);
    assert_eq!(id(&sim.read(&format!("/v1/events/{}", events[1])).await?)?, events[1]);
    sim.advance(31 * 86_400).await?;
    assert_eq!(ids(&sim.read("/v1/events?type=customer.created").await?)?.len(), 0);
    sim.stop().await
}

#[tokio::test]
async fn a_test_clock_is_deleted_after_thirty_days_of_ours() -> Result<()> {
    let sim = Sim::start().await?;
    let clock = sim.create("/v1/test_helpers/test_clocks", &[("frozen_time", "1800000000")]).await?;
    let customer = id(&sim.create("/v1/customers", &[("test_clock", &id(&clock)?)]).await?)?;
    let session = sim
        .create(
            "/v1/checkout/sessions",
            &[
                ("mode", "subscription"),
                ("success_url", "http://localhost/done"),
                ("customer", &customer),
                ("line_items[0][price]", &sim.price().await?),
            ],
        )
        .await?;
    sim.admin("/clock", json!({ "to": clock["deletes_after"] })).await?;
    assert_eq!(ids(&sim.read("/v1/test_helpers/test_clocks").await?)?.len(), 0);
    assert_eq!(sim.read(&format!("/v1/customers/{customer}")).await?["deleted"], true);
    let session = sim.read(&format!("/v1/checkout/sessions/{}", id(&session)?)).await?;
    assert_eq!(session["status"], "expired");
    sim.stop().await
}
