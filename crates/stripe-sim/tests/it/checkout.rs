//! Checkout sessions.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::harness::{Sim, id, ids, read};

async fn session(sim: &Sim, more: &[(&str, &str)]) -> Result<Value> {
    let price = sim.price().await?;
    let mut form = vec![
        ("mode", "subscription"),
        ("success_url", "http://localhost/done?id={CHECKOUT_SESSION_ID}"),
        ("cancel_url", "http://localhost/left"),
        ("line_items[0][price]", price.as_str()),
        ("line_items[0][quantity]", "1"),
        ("subscription_data[metadata][eco_id]", "eco_1"),
        ("metadata[plan]", "pro"),
    ];
    form.extend_from_slice(more);
    sim.create("/v1/checkout/sessions", &form).await
}

#[tokio::test]
async fn a_completed_session_has_made_customer_and_subscription() -> Result<()> {
    let sim = Sim::start().await?;
    let created =
        session(&sim, &[("customer_email", "ada@example.com"), ("client_reference_id", "eco_1")]).await?;
    assert_eq!((&created["status"], &created["payment_status"]), (&json!("open"), &json!("unpaid")));
    assert_eq!(created["amount_total"], 4900);
    let url = created["url"].as_str().context("a url")?.to_owned();
    ensure!(url.starts_with(&sim.base), "{url}");
    let session = id(&created)?;
    let complete = format!("/checkout/{session}/complete");
    ensure!(sim.admin(&complete, json!({ "declined": true })).await.is_err());
    let completed = sim.admin(&complete, json!({})).await?;
    assert_eq!((&completed["status"], &completed["payment_status"]), (&json!("complete"), &json!("paid")));
    assert_eq!((&completed["url"], &completed["client_reference_id"]), (&Value::Null, &json!("eco_1")));

    let path = format!("/v1/checkout/sessions/{session}?expand[]=subscription&expand[]=customer");
    let expanded = sim.read(&path).await?;
    let subscription = &expanded["subscription"];
    assert_eq!(
        (&subscription["status"], &subscription["metadata"]["eco_id"]),
        (&json!("active"), &json!("eco_1"))
    );
    assert_eq!(expanded["customer"]["email"], "ada@example.com");
    assert_eq!(subscription["latest_invoice"], expanded["invoice"]);
    let events = sim.read("/v1/events?type=checkout.session.completed").await?;
    assert_eq!(events["data"][0]["data"]["object"]["id"], session);

    ensure!(sim.admin(&complete, json!({})).await.is_err());
    let items = sim.read(&format!("/v1/checkout/sessions/{session}/line_items")).await?;
    assert_eq!(items["data"][0]["amount_total"], 4900);
    sim.stop().await
}

#[tokio::test]
async fn a_session_expires_by_request_and_by_time() -> Result<()> {
    let sim = Sim::start().await?;
    let customer = sim.customer().await?;
    let first = id(&session(&sim, &[("customer", &customer)]).await?)?;
    let second = id(&session(&sim, &[("customer", &customer)]).await?)?;
    let expire = format!("/v1/checkout/sessions/{first}/expire");
    assert_eq!(sim.create(&expire, &[]).await?["status"], "expired");
    assert_eq!(sim.post(&expire, &[]).send().await?.status(), 400);
    ensure!(sim.admin(&format!("/checkout/{first}/complete"), json!({})).await.is_err());
    sim.advance(24 * 3600).await?;
    assert_eq!(sim.read(&format!("/v1/checkout/sessions/{second}")).await?["status"], "expired");
    let expired = sim.read(&format!("/v1/checkout/sessions?customer={customer}&status=expired")).await?;
    assert_eq!(ids(&expired)?, [second, first]);
    assert_eq!(ids(&sim.read("/v1/events?type=checkout.session.expired").await?)?.len(), 2);
    sim.stop().await
}

#[tokio::test]
async fn a_person_completes_it_on_its_page() -> Result<()> {
    let sim = Sim::start().await?;
    let success_url = format!("{}/?paid={{CHECKOUT_SESSION_ID}}", sim.base);
    let session = id(&session(&sim, &[("success_url", &success_url)]).await?)?;
    let path = format!("/checkout/{session}");
    let page = sim.get(&path).send().await?.text().await?;
    ensure!(page.contains("4900 usd"), "{page}");
    let declined = sim.post(&path, &[("answer", "decline")]).send().await?.text().await?;
    ensure!(declined.contains("declined"), "{declined}");
    let done = sim.post(&path, &[("answer", "pay"), ("email", "ada@example.com")]).send().await?;
    // The browser was sent there.
    assert_eq!(done.url().as_str(), format!("{}/?paid={session}", sim.base));
    let (_, list) = read(sim.get("/v1/customers?email=ada@example.com").send().await?).await?;
    assert_eq!(ids(&list)?.len(), 1);
    sim.stop().await
}

#[tokio::test]
async fn a_session_with_a_trial_takes_no_payment_yet() -> Result<()> {
    let sim = Sim::start().await?;
    let created = session(&sim, &[("subscription_data[trial_period_days]", "14")]).await?;
    assert_eq!(created["amount_total"], 0);
    let completed = sim.admin(&format!("/checkout/{}/complete", id(&created)?), json!({})).await?;
    assert_eq!(completed["payment_status"], "no_payment_required");
    let subscription = completed["subscription"].as_str().context("a subscription")?;
    assert_eq!(sim.read(&format!("/v1/subscriptions/{subscription}")).await?["status"], "trialing");
    sim.stop().await
}
